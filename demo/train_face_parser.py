"""Train a small face parser: `python demo/train_face_parser.py --output data/face_parser --lists data/parts/stills.json`.

Makes a Segformer with the 19 classes of CelebAMask in the layout of the released one, from images with exact masks, which
`demo/render_people.py --images --stills 1 --masks` renders. The same command goes on with a run that was stopped. To use it, set
`model.faces.parser` to its folder; it knows the people of that world, not photographs.
"""

import sys
from pathlib import Path

sys.path.extend([str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "sat")])

from concat_id.config.parser import Namespace, Parser
from concat_id.errors import UserError, check_minimum, run
from concat_id.startup import prepare_process


def read_arguments() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to make")
    parser.add_argument("--lists", type=Path, nargs="+", required=True, metavar="FILE", help="clips.json and stills.json with masks beside")
    parser.add_argument("--size", type=int, default=128, metavar="N", help="side of the images it sees (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=800, metavar="N", help="steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="images of a step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, metavar="X", help="its peak (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: %(default)s)")
    arguments = parser.parse_args()
    check_minimum(arguments, {"size": 32, "steps": 1, "batch_size": 1, "seed": 0})
    if arguments.size % 32 or arguments.learning_rate <= 0:
        found = f"--size {arguments.size} and --learning-rate {arguments.learning_rate}"
        raise UserError(f"command line: found {found}, expected a multiple of 32 and a positive number; correct them")
    return arguments


def main() -> int:
    """Read the images, train, measure on those of test people, write."""
    prepare_process()
    arguments = read_arguments()
    if arguments.output.exists():
        raise UserError(f"{arguments.output}: exists already; choose another --output or remove it first")

    from networks.face_parser import FaceParserTrainer, ParserTraining, read_examples

    examples = read_examples(arguments.lists)
    given = {name: getattr(arguments, name) for name in ("size", "steps", "batch_size", "learning_rate", "seed")}
    trainer = FaceParserTrainer(examples, ParserTraining(**given), arguments.output)
    print(f"{len(trainer.examples)} faces to learn from, {len(trainer.held_out)} held out", flush=True)
    trainer.train()
    accuracy = trainer.accuracy()
    print("intersection over union on the faces held out:")
    for name, share in accuracy.items():
        print(f"  {name:16} {share:6.1%}")
    trainer.finish({"faces": len(trainer.examples), "held_out": len(trainer.held_out), "iou": accuracy})
    print(f"{arguments.output} is ready")
    return 0


if __name__ == "__main__":
    run(main)
