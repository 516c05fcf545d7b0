"""Train the small face parser: `python demo/train_face_parser.py --output data/face_parser`.

Draws photographs of synthetic people, finds and aligns their faces as references are, and teaches a Segformer the class of each pixel,
which the renderer knows; then measures it, and the oval that stands in for a parser, on people it has not seen.
"""

import sys
from pathlib import Path

sys.path.extend([str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "sat")])

from concat_id.config.parser import Namespace, Parser
from concat_id.startup import prepare_process, run
from minimum import check_minimum

UNSEEN = 80  # people to measure on, further to those to learn from


def read_arguments() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to make")
    parser.add_argument("--people", type=int, default=1200, metavar="N", help="people to learn from (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: %(default)s)")
    arguments = parser.parse_args()
    check_minimum(arguments, people=2, steps=1)
    return arguments


def main() -> int:
    """Draw photographs, train, write, measure what was written."""
    prepare_process()
    arguments = read_arguments()

    from concat_id.config.cogvideox import FaceConfig
    from concat_id.face.parsing import EllipseParser, SegformerParser
    from concat_id.face.reference import load_face_models
    from concat_id.files.paths import folder_written_whole
    from world.kernel_cache import keep_kernels

    keep_kernels()
    from networks.face_parser import overlap, take_photographs, train_parser

    detector = load_face_models(FaceConfig(), "cpu").detector
    with folder_written_whole(arguments.output) as folder:
        photographs = take_photographs(range(arguments.people + UNSEEN), arguments.seed, detector)
        learned, unseen = photographs[:-UNSEEN], photographs[-UNSEEN:]
        train_parser(learned, arguments.steps, arguments.seed, folder)
    for parser in (SegformerParser(arguments.output, "cpu"), EllipseParser()):
        shared = [overlap(parser, photo) for photo in unseen]
        print(f"{parser.name}: kept pixels overlap the exact ones by {sum(shared) / len(shared):.3f}, {min(shared):.3f} at worst")
    return 0


if __name__ == "__main__":
    run(main)
