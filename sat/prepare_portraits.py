"""Prepare photos for ConsistentID's training: `python sat/prepare_portraits.py --photos folder/ --output data/portraits`.

Each photo of one person becomes a square of 512 pixels, cut out around its largest face, the classes of its pixels (in ConsistentID's
numbering, and in colours to look at), and an ArcFace vector of that face, in the folders that ConsistentID's README names. JSON_all.json
lists them with two texts: what the photo shows, from --captions or a.txt beside a.jpg, and what the face looks like, for which one
sentence fits all. Texts that describe each face, its ears, eyes, nose and mouth teach more; give them with --face_captions.

Vectors need an ArcFace of 512 numbers. Released weights understand those of insightface's buffalo_l alone, whose licence allows
non-commercial research; put it into models/buffalo_l. The parser is jonathandinu/face-parsing. Nothing is downloaded.

Look at parsing_color_IMG before you train: eyes, ears, nose and mouth should have colours of their own. A run that was stopped is
continued by the same command. The exit code is 1 if a photo could not be used: it is not readable, shows no face, has no caption, or has
the name of another.
"""

from concat_id.startup import prepare_process, run  # isort: split

from pathlib import Path

from concat_id.config.parser import Namespace, Parser
from concat_id.errors import one_line, report, warn


def read_arguments() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--photos", type=Path, nargs="+", required=True, metavar="PATH", help="all photos of the list, and folders of them")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--captions", type=Path, metavar="FILE", help='JSON object {"a.jpg": "what it shows"}; else a.txt beside a.jpg')
    parser.add_argument("--caption", metavar="TEXT", help="for photos without another caption")
    parser.add_argument("--face_captions", type=Path, metavar="FILE", help='JSON object {"a.jpg": "what the face looks like"}')
    parser.add_argument("--face_caption", metavar="TEXT", help="for photos without another one (default: the released sentence)")
    parser.add_argument("--detector", metavar="FOLDER", help="face detector (default: models/antelopev2, else models/face_detector)")
    parser.add_argument("--recognizer", metavar="FOLDER", help="ArcFace (default: models/buffalo_l, else models/antelopev2)")
    parser.add_argument("--parser", metavar="FOLDER", help="Segformer of faces (default: models/jonathandinu/face-parsing)")
    parser.add_argument("--without_vectors", action="store_true", help="leave ArcFace vectors out; training then takes zeros for them")
    parser.add_argument("--device", default="auto", help="auto, cpu or an accelerator (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    """Prepare what is new, then list all that is named; 1 if a photo could not be used."""
    prepare_process()
    arguments = read_arguments()

    from concat_id.curation.portraits import PortraitPreparation, find_photos, load_portrait_tools, prepare_portraits
    from concat_id.curation.preparing import FaceModelNames
    from concat_id.curation.source_videos import Captions
    from concat_id.files.paths import only_writer
    from concat_id.video.face_parts import FACE_CAPTION

    captions = Captions(arguments.captions, arguments.caption)
    face_captions = Captions(arguments.face_captions, arguments.face_caption or FACE_CAPTION, "face_caption", suffix=None)
    photos, problems = find_photos(arguments.photos)
    models = FaceModelNames(arguments.detector, arguments.recognizer, arguments.parser, arguments.device)
    faces, recognizer = load_portrait_tools(models, not arguments.without_vectors)
    warn(*faces.notices)
    with only_writer(arguments.output):
        preparation = PortraitPreparation(arguments.output, faces, recognizer)
        file, entries, unusable = prepare_portraits(preparation, photos, captions, face_captions)
    if entries:
        print(one_line(f"{file}: {len(entries)} portraits, {len(problems + unusable)} photos that cannot be used"))
    return report(*problems, *unusable)


if __name__ == "__main__":
    run(main)
