"""Measure generated videos: `python sat/evaluate_identity.py --videos outputs/single-identity --output report/`.

Compares the people of every video with their references, and what they do with the prompt. Writes report.html, report.json and
report.csv; several folders are compared over the requests that they share. Run again, it measures only what is new.
The exit code is 1 if a video could not be measured.
"""

from concat_id.startup import prepare_process, run  # isort: split

from pathlib import Path

from concat_id.config.cogvideox import FaceConfig
from concat_id.config.parser import Namespace, Parser
from concat_id.errors import UserError, one_line, report, warn


def read_arguments() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--videos", type=Path, nargs="+", required=True, metavar="FOLDER",
                        help="one or more runs: output folders of sat/sample_video.py, folders with name.mp4, name.png (or name_1.png, "
                             "name_2.png) and name.txt, or with --benchmark a benchmark's videos")
    parser.add_argument("--output", type=Path, default=Path("report"), metavar="FOLDER", help="folder of the report (default: %(default)s)")
    parser.add_argument("--benchmark", type=Path, metavar="PATH",
                        help="whose videos --videos holds: the folder of ConsisID-Bench, or a list of OpenS2V-Eval (Open-Domain_Eval.json)")
    parser.add_argument("--frames", type=int, default=16, metavar="N", help="frames of each video, evenly spaced (default: %(default)s)")
    weights = parser.add_argument_group("weights, all local")
    weights.add_argument("--recognizer", metavar="FOLDER", help="any recogniser of insightface's kind, an .onnx file "
                                                                "(default: models/antelopev2, else SFace in models/face_recognizer)")
    weights.add_argument("--detector", metavar="FOLDER", help="face detector (default: models/antelopev2, else models/face_detector)")
    weights.add_argument("--clip", default="models/clip-vit-base-patch32", metavar="FOLDER", help="CLIP (default: %(default)s)")
    weights.add_argument("--viclip", default="models/viclip", metavar="FOLDER", help="ViCLIP (default: %(default)s)")
    weights.add_argument("--parser", default=FaceConfig().parser, metavar="FOLDER", help="face parser, for FGIS (default: %(default)s)")
    weights.add_argument("--threshold", type=float, metavar="X", help="similarity from which two faces are one person's (SFace: 0.363)")
    meaning = parser.add_argument_group("what the scores mean")
    meaning.add_argument("--calibration", type=Path, metavar="FOLDER",
                         help="photos of people, a folder each, for genuine and impostor similarity; a reference name.png is compared with "
                              "the photos in name/")
    meaning.add_argument("--training_images", type=Path, metavar="FOLDER", help="leave out people closer than 0.45 to one of these images")
    meaning.add_argument("--metric", type=Path, action="append", default=[], metavar="FILE.py",
                         help="a Python file of your own, whose measure(video) returns more scores; may be given again")
    parser.add_argument("--device", default="auto", help="auto, cpu or an accelerator (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="measure again what was measured already")
    arguments = parser.parse_args()
    if arguments.frames < 1:
        raise UserError(f"command line: --frames: found {arguments.frames}, expected 1 or more")
    if not -1 <= (arguments.threshold or 0) <= 1:
        raise UserError(f"command line: --threshold: found {arguments.threshold}, expected -1 to 1, as cosines are")
    return arguments


def main() -> int:
    """Find, measure, put into proportion, report; 1 if a video could not be measured."""
    prepare_process()
    arguments = read_arguments()

    from concat_id.distributed import choose_device
    from concat_id.evaluation.measuring import load_instruments
    from concat_id.evaluation.report import print_summary, write_report
    from concat_id.evaluation.runs import calibrate, drop_trained_on, find_runs, identify, measure_runs, require_images
    from concat_id.evaluation.summary import Summary
    from concat_id.evaluation.user_metrics import UserMetric
    from concat_id.files.paths import check_writable

    metrics = [*{metric.file.resolve(): metric for metric in map(UserMetric, arguments.metric)}.values()]
    runs = find_runs(arguments.videos, arguments.benchmark)
    require_images(arguments.calibration, arguments.training_images)
    check_writable(arguments.output)
    weights = {name: getattr(arguments, name) for name in ("detector", "recognizer", "clip", "viclip", "parser", "threshold")}
    instruments = load_instruments(choose_device(arguments.device), **weights, num_frames=arguments.frames, metrics=metrics)
    recalled = measure_runs(runs, instruments, arguments.output, arguments.overwrite)
    if recalled:
        print(f"{recalled} videos were measured already; --overwrite measures them again")
    overlap = drop_trained_on(runs, images, instruments, arguments.output) if (images := arguments.training_images) else None
    identify(runs)
    calibration = calibrate(runs, arguments.calibration, instruments, arguments.output)
    summary = Summary(runs, instruments, calibration, overlap)
    files = write_report(summary, arguments.output)  # first: nobody may be reading what is printed
    warn(*(note for found in runs for note in found.notes))
    print_summary(summary)
    print("\n".join(map(one_line, files)))
    return report(*(problem for found in runs for problem in found.problems))


if __name__ == "__main__":
    run(main)
