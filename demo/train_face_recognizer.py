"""Train a small face recogniser: `python demo/train_face_recognizer.py data/mini/prepared/manifest.json --output data/mini/recognizer`.

Learns to tell apart the people of a manifest of sat/prepare_clips.py whose `identities` are known, and measures that on its valid and
test people. Writes an .onnx file of insightface's kind with its threshold, for `sat/evaluate_identity.py --recognizer FOLDER`: a second
opinion that knows the people of that world, not photographs. The same command goes on with a run that was stopped.
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
    parser.add_argument("manifest", type=Path, metavar="MANIFEST", help="manifest.json of sat/prepare_clips.py")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to make")
    parser.add_argument("--steps", type=int, default=1500, metavar="N", help="steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=96, metavar="N", help="faces of a step, two a person (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, metavar="X", help="its peak (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: %(default)s)")
    arguments = parser.parse_args()
    check_minimum(arguments, {"steps": 1, "batch_size": 4, "seed": 0})
    if arguments.learning_rate <= 0:
        raise UserError(f"command line: --learning-rate: found {arguments.learning_rate}, expected a positive number")
    return arguments


def main() -> int:
    """Read the faces, train, measure on people held out, write."""
    prepare_process()
    arguments = read_arguments()
    if arguments.output.exists():
        raise UserError(f"{arguments.output}: exists already; choose another --output or remove it first")

    from networks.face_recognizer import FaceRecognizerTrainer, RecognizerTraining, read_examples

    given = {name: getattr(arguments, name) for name in ("steps", "batch_size", "learning_rate", "seed")}
    trainer = FaceRecognizerTrainer(read_examples(arguments.manifest), RecognizerTraining(**given), arguments.output)
    print(f"{len(trainer.learned)} faces of {len(trainer.people)} people to learn from, {len(trainer.held_out)} faces held out", flush=True)
    trainer.train()
    accuracy = trainer.accuracy()
    trainer.finish(accuracy)
    print(
        f"people held out: mean cosine {accuracy.same:.3f} of one person's recordings, {accuracy.other:.3f} of two people's; the nearest "
        f"other recording is the same person's for {accuracy.nearest:.1%} of the faces;\n{accuracy.matched:.1%} of one person's pairs are "
        f"at or above {accuracy.threshold:.3f}, as are 0.1 % of two people's"
    )
    print(f"{arguments.output} is ready")
    return 0


if __name__ == "__main__":
    run(main)
