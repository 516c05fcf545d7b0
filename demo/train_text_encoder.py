"""Train a small text encoder on captions: `python demo/train_text_encoder.py --output OUT --lists data/people/clips.json --world 8000`.

Makes a sentencepiece vocabulary and a T5 encoder in the layout of the released one. Attributes of the shots, where lists have them
(demo/render_people.py writes them), are what its embeddings are to tell; --world adds captions of shots that are drawn by lot but not
rendered. The same command goes on with a run that was stopped.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.extend([str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "sat")])

from concat_id.config.parser import Namespace, Parser
from concat_id.errors import UserError, check_minimum, run
from concat_id.startup import prepare_process


def read_arguments() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to make")
    parser.add_argument("--lists", type=Path, nargs="*", default=[], metavar="FILE", help="lists in JSON whose entries have a caption")
    parser.add_argument("--text", type=Path, nargs="*", default=[], metavar="FILE", help="plain text about anything, a sentence a line")
    parser.add_argument("--world", type=int, default=0, metavar="N", help="captions of synthetic shots to add (default: none)")
    parser.add_argument("--width", type=int, default=256, metavar="N", help="numbers of a token's embedding (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=4, metavar="N", help="layers of the encoder (default: %(default)s)")
    parser.add_argument("--max-length", type=int, default=32, metavar="N", help="tokens of a prompt (default: %(default)s)")
    parser.add_argument("--pieces", type=int, default=1800, metavar="N", help="largest vocabulary (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="captions of a step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, metavar="X", help="its peak (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: %(default)s)")
    arguments = parser.parse_args()
    if not arguments.lists and not arguments.world:
        raise UserError("command line: found neither --lists nor --world, expected captions; name a list or a number of synthetic shots")
    least = {"world": 0, "width": 64, "layers": 1, "max_length": 4, "pieces": 320, "steps": 1, "batch_size": 8, "seed": 0}
    check_minimum(arguments, least)
    if arguments.width % 64 or arguments.learning_rate <= 0:
        found = f"--width {arguments.width} and --learning-rate {arguments.learning_rate}"
        raise UserError(f"command line: found {found}, expected a multiple of 64 and a positive number; correct them")
    return arguments


def draw_captions(count: int, seed: int) -> list:
    """Draw captions of synthetic shots. Raises `UserError` without the optional packages."""
    if find_spec("numba") is None:
        raise UserError("--world: numba is not installed, and shots are drawn with it; run `bash scripts/setup.sh people`")

    from networks.captions import make_caption
    from world import unseen

    return [make_caption(text, facts) for text, facts in unseen.draw_captions(count, seed).items()]


def main() -> int:
    """Read the captions, train, measure on those held out, write."""
    prepare_process()
    arguments = read_arguments()
    if arguments.output.exists():
        raise UserError(f"{arguments.output}: exists already; choose another --output or remove it first")

    from networks.building import TextEncoderSize
    from networks.captions import check_parts, read_captions, read_sentences
    from networks.text_encoder import TextEncoderTrainer, TextTraining

    captions = read_captions(arguments.lists) + (draw_captions(arguments.world, arguments.seed) if arguments.world else [])
    check_parts(captions)
    given = {name: getattr(arguments, name) for name in ("max_length", "pieces", "steps", "batch_size", "learning_rate", "seed")}
    size = TextEncoderSize(arguments.width, arguments.layers, arguments.width // 64, 2 * arguments.width)
    trainer = TextEncoderTrainer(captions, read_sentences(arguments.text), TextTraining(size=size, **given), arguments.output)
    trainer.train()
    lengths, accuracy = trainer.lengths(), trainer.accuracy(trainer.held_out)
    fits = float((lengths <= arguments.max_length).float().mean())
    print(f"{len(captions)} captions, {len(trainer.held_out)} held out; {fits:.2%} fit, the longest has {lengths.max()} tokens")
    for name, share in accuracy.items():
        print(f"  {name:32} {share:6.1%}")
    trainer.finish({"captions": len(captions), "held_out": len(trainer.held_out), "fit": fits, "accuracy": accuracy})
    print(f"{arguments.output} is ready")
    return 0


if __name__ == "__main__":
    run(main)
