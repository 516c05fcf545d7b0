"""Prepare videos and photographs for training: `python sat/prepare_clips.py --videos a.mp4 folder/ list.json --output data/real`.

Finds the people of each video, cuts it at shot changes into clips of the length that training needs, discards clips without a steady
face, and chooses up to five crops of everybody in a clip. Writes a folder for each video, manifest.json, which sat/make_pairs.py
turns into training lists, and summary.html, which shows what was found. A photograph is a clip of one frame. A list is JSON with
`video_path` or `image_path` and, if known, `caption`, `identities` (from left to right in the first clip that is kept), `split` and
`recording` (what several clips were taken from: none of them shows a person anew). `--engine ray` spreads the work over the
machines of a Ray cluster. A run that was stopped is continued by the same command. The exit code is 1 if a video could not be used at
all, or none gave a clip.
"""

from concat_id.startup import prepare_process, run  # isort: split

from pathlib import Path

from concat_id.config.parser import Namespace, Parser
from concat_id.curation.options import add_caption_options, add_engine_options, check_limits, run_stage
from concat_id.errors import one_line, report, warn


def read_arguments() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--videos", type=Path, nargs="+", required=True, metavar="PATH", help="videos, photographs, folders, JSON lists")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 720), metavar=("H", "W"),
                        help="of the videos to train on: what their shape cuts off is not looked at (default: 480 720)")  # fmt: skip
    parser.add_argument("--frames", type=int, default=49, metavar="N", help="frames to train on (default: %(default)s)")
    parser.add_argument("--fps", type=float, default=8, metavar="X", help="of these frames (default: %(default)s)")
    parser.add_argument("--skip", type=int, default=3, metavar="N", help="frames skipped at both ends by training (default: %(default)s)")
    parser.add_argument("--max_clips", type=int, metavar="N", help="clips tried of one video, evenly spread (default: all)")
    parser.add_argument("--rate", type=float, default=3, metavar="X", help="frames a second to look for faces in (default: %(default)s)")
    parser.add_argument("--presence", type=float, default=0.9, metavar="X", help="share of them that shows a face (default: %(default)s)")
    parser.add_argument("--min_face", type=float, default=32, metavar="N", help="minimum size of a face in pixels (default: %(default)s)")
    parser.add_argument("--max_people", type=int, default=3, metavar="N", help="people in a clip (default: %(default)s)")
    parser.add_argument("--references", type=int, default=5, metavar="N", help="crops of a person in a clip (default: %(default)s)")
    parser.add_argument("--crop", type=int, default=448, metavar="N", help="pixels of the side of a crop (default: %(default)s)")
    parser.add_argument("--shard_mb", type=float, metavar="N", help="Parquet manifests of so many MB (default: 256, above 20,000 clips)")
    parser.add_argument("--detector", metavar="FOLDER", help="face detector (default: models/antelopev2, else models/face_detector)")
    parser.add_argument("--recognizer", metavar="FOLDER", help="face recogniser (default: models/antelopev2, else models/face_recognizer)")
    parser.add_argument("--parser", metavar="FOLDER", help="Segformer of faces (default: models/jonathandinu/face-parsing, else an oval)")
    parser.add_argument("--same_person", type=float, metavar="X", help="cosine of two faces of one person (default: the recogniser's)")
    add_caption_options(parser)
    add_engine_options(parser)
    return check_limits(parser.parse_args())


def main() -> int:
    """Prepare what is new, then list everything; 1 if a video could not be used, or none gave a clip."""
    prepare_process()
    arguments = read_arguments()

    from concat_id.curation.source_videos import Captions, read_sources
    from concat_id.data.manifest_files import MANIFEST
    from concat_id.files.paths import only_writer, refuse_to_overwrite

    refuse_to_overwrite(arguments.videos, [arguments.output / MANIFEST])
    sources, problems = read_sources(arguments.videos, Captions(arguments.captions, arguments.caption, optional=bool(arguments.captioner)))
    with only_writer(arguments.output):
        problems += prepare(arguments, sources)
    return report(*problems)


def prepare(arguments: Namespace, sources: list) -> list[str]:
    """Do it in a folder that nobody else writes; return what went wrong."""
    from concat_id.curation.captioning import captioning
    from concat_id.curation.clip_people import Demands
    from concat_id.curation.prepared_videos import tell_of
    from concat_id.curation.preparing import FaceModelNames, Preparation, Settings, conclude, gather, load_tools
    from concat_id.face.recognition import same_person

    models = FaceModelNames(arguments.detector, arguments.recognizer, arguments.parser, arguments.device)
    faces, recognizer = load_tools(models)
    warn(*faces.notices)
    print(one_line(same := same_person(recognizer.name, recognizer.threshold, arguments.same_person)))
    settings = Settings(tuple(arguments.size), arguments.frames, arguments.fps, arguments.skip, arguments.rate, arguments.max_clips,
                        arguments.references, arguments.crop, arguments.timeout,
                        Demands(arguments.presence, arguments.min_face, arguments.max_people), same.threshold)  # fmt: skip
    caption = captioning(arguments.captioner, arguments.caption_prompt, arguments.device, settings)
    stage = Preparation(arguments.output, settings, models, arguments.gpus_per_actor or 0)
    made, failures = gather(sources, run_stage(arguments, stage, sources), tell_of)
    if not (prepared := list(made.values())):
        return failures  # an earlier manifest stays
    return conclude(arguments.output, caption(prepared), failures, recognizer, same.threshold, arguments.shard_mb)


if __name__ == "__main__":
    run(main)
