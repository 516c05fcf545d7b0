"""Judge photos before a video is paid for: `python sat/check_photos.py me.jpg you.png [--output report/]`.

Prints one line a photo: good, usable or poor, with the reasons and what to do. With --output also a contact sheet of each (the photo with
its face, the crop, and what the model sees) and report.json. The exit code is 1 if a photo is poor or unreadable, or shows a stranger,
or if its sheet could not be written.
"""

from concat_id.startup import prepare_process, run  # isort: split

import json
from pathlib import Path

from concat_id.config.parser import Namespace, Parser
from concat_id.errors import UserError, one_line, report, warn


def read_arguments() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="photos of people")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder of the contact sheets and report.json")
    parser.add_argument("--same_person", action="store_true", help="compare the photos, which are to show one person, and name strangers")
    parser.add_argument("--json", action="store_true", help="print what report.json holds in place of the lines")
    parser.add_argument("--model", metavar="NAME", help="model whose size and face models are taken (default: as sat/sample_video.py)")
    parser.add_argument("--detector", metavar="FOLDER", help="face detector (default: models/antelopev2, else models/face_detector)")
    parser.add_argument("--recognizer", metavar="FOLDER", help="face recogniser (default: models/antelopev2, else models/face_recognizer)")
    parser.add_argument("--device", default="auto", help="auto, cpu or an accelerator (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    """Judge every photo, compare them, report; 1 if one is of no use."""
    prepare_process()
    arguments = read_arguments()

    from concat_id.config.loading import load_config
    from concat_id.config.presets import choose
    from concat_id.distributed import choose_device
    from concat_id.face.photos import PhotoChecker, sheet_name
    from concat_id.face.recognition import load_recognizer
    from concat_id.face.reference import load_face_models
    from concat_id.face.verdict import POOR
    from concat_id.files.json_files import write_json
    from concat_id.files.paths import check_writable, refuse_to_overwrite

    config, device = load_config(choose(arguments.model, to_run=False)), choose_device(arguments.device)
    if arguments.detector:
        config.model.faces.detector = config.model.faces.fallback_detector = arguments.detector
    models = load_face_models(config.model.faces, device)
    warn(*models.notices)
    recognizer = load_recognizer(arguments.recognizer, device) if arguments.same_person else None
    if arguments.output:
        sheets = (arguments.output / sheet_name(number, path) for number, path in enumerate(arguments.photos, 1))
        refuse_to_overwrite(arguments.photos, sheets)
        check_writable(arguments.output)
    checker = PhotoChecker(config.args.sampling_image_size, models, recognizer, arguments.output)
    failed = False
    for path in arguments.photos:
        try:
            line = checker.check(path)
            if not arguments.json:
                print(one_line(line), flush=True)
        except UserError as error:
            report(error)
            failed = True
    result, strangers = checker.result()
    if arguments.output:
        write_json(arguments.output / "report.json", result)
    if arguments.json:
        print(json.dumps(result, indent=2))
    for line in [] if arguments.json else strangers:
        print(one_line(line))
    return int(failed or bool(strangers) or any(photo.get("level") == POOR for photo in result["photos"]))


if __name__ == "__main__":
    run(main)
