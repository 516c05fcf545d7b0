"""Add clothes and backgrounds to a training list: `python sat/add_subjects.py lists/stage_1_train.json --output lists/subjects_train.json`.

Cuts what people wear out of the middle frame of each clip (Grounding DINO finds it, SAM 2 its pixels), and takes the people out of the
first frame (an inpainting pipeline fills their place with some other thing). The list that is written has these images behind the
faces, and `kind` says what each reference is: training mirrors clothes now and then, and nothing else. Images are kept in a folder
beside it, and a run that was stopped is continued by the same command. The exit code is 1 if a clip could not be read.
"""

from pathlib import Path

from concat_id.config.parser import Namespace, Parser
from concat_id.curation.options import add_engine_options, check_engine, run_stage
from concat_id.errors import UserError, one_line, report, run
from concat_id.startup import prepare_process


def read_arguments() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("lists", type=Path, nargs="+", metavar="LIST", help="training lists, or folders of clips")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="list to write; images go to a folder beside it")
    parser.add_argument("--kinds", nargs="+", choices=("clothes", "background"), default=("clothes", "background"),
                        help="what to add (default: both)")  # fmt: skip
    parser.add_argument("--detector", type=Path, required=True, metavar="FOLDER", help="such as models/grounding-dino-base")
    parser.add_argument("--segmenter", type=Path, required=True, metavar="FOLDER", help="such as models/sam2.1-hiera-large")
    parser.add_argument("--inpainter", type=Path, metavar="FOLDER", help="for backgrounds, such as models/stable-diffusion-xl-inpainting")
    parser.add_argument("--words", default="clothes", help="for the detector: what is worn (default: %(default)s)")
    parser.add_argument("--max_refs", type=int, default=3, metavar="N", help="references of a clip at most (default: %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 720), metavar=("H", "W"), help="of training's videos (480 720)")
    parser.add_argument("--skip", type=int, default=3, metavar="N", help="frames skipped at both ends by training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42, metavar="N", help="of what fills people's places (default: %(default)s)")
    add_engine_options(parser)
    arguments = check_engine(parser.parse_args())
    if "background" in arguments.kinds and arguments.inpainter is None:
        raise UserError("command line: --inpainter: missing, expected the folder of an inpainting pipeline; give it, or --kinds clothes")
    if arguments.output.suffix != ".json" or arguments.output.resolve() in (path.resolve() for path in arguments.lists):
        raise UserError(f"command line: --output: found {arguments.output}, expected a .json file that is no list to read")
    return arguments


def main() -> int:
    """Make the images, then write the list; 1 if a clip could not be read."""
    prepare_process()
    arguments = read_arguments()

    from concat_id.curation import subjects
    from concat_id.curation.preparing import gather
    from concat_id.data.records import read_records
    from concat_id.files.json_files import write_json_list
    from concat_id.files.paths import only_writer

    records = read_records(arguments.lists)
    settings = subjects.SubjectSettings(tuple(arguments.kinds), tuple(arguments.size), arguments.skip, arguments.words, arguments.seed,
                                        arguments.timeout)  # fmt: skip
    inpainter = arguments.inpainter if "background" in arguments.kinds else None
    models = subjects.ModelFolders(arguments.detector, arguments.segmenter, inpainter, arguments.device)
    subjects.load_tools(models)
    images = arguments.output.with_suffix("")
    with only_writer(images):
        stage = subjects.SubjectStage(images, settings, models, arguments.gpus_per_actor or 0)
        clips = subjects.listed_clips(records)
        made, problems = gather(clips, run_stage(arguments, stage, clips))
        found = {clips[number].path: images for number, images in made.items()}
        entries, counts = subjects.add_subjects(records, found, arguments.output.parent, arguments.max_refs)
        write_json_list(arguments.output, entries)
    print(one_line(f"{arguments.output}: {len(entries)} entries"))
    for told, number in counts.most_common():
        print(one_line(f"{number} {told}"))
    for problem in problems:
        report(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    run(main)
