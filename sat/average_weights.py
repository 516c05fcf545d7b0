"""Average checkpoints of one model: `python sat/average_weights.py --load MODEL exps/RUN/STEP-ema --shares 0.5 0.5 --output FOLDER`.

Weights that were trained on from the same ones can often be averaged, and the average does some of what each of them does well. The result
is a checkpoint like any other, for `--load` of sat/sample_video.py or sat/train_video.py, in the type of the first.
"""

from pathlib import Path

from concat_id.config.parser import Parser
from concat_id.errors import UserError, printable, run
from concat_id.startup import prepare_process


def main() -> int:
    """Load, average, write."""
    prepare_process()
    parser = Parser(description=__doc__)
    parser.add_argument("--load", required=True, nargs="+", metavar="FOLDER", help="checkpoints of the transformer, two or more")
    parser.add_argument("--shares", type=float, nargs="+", metavar="X", help="of each, together 1 (default: equal ones)")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder for the averaged checkpoint, a new one")
    arguments = parser.parse_args()
    count = len(arguments.load)
    shares = arguments.shares or [1 / count] * count
    if count < 2:
        raise UserError(f"command line: --load: found {arguments.load[0]} alone, expected at least two checkpoints")
    if len(shares) != count or not abs(sum(shares) - 1) <= 1e-6:
        raise UserError(f"command line: --shares: found {' '.join(map(str, shares))}, expected {count} numbers that add up to 1")

    from concat_id.files import folder_written_whole, resolve_path
    from concat_id.weights import average, load_sat_checkpoint, write_sat_checkpoint

    weights = average([load_sat_checkpoint(resolve_path(path)) for path in arguments.load], shares)
    with folder_written_whole(arguments.output) as folder:
        write_sat_checkpoint(folder, "average", weights)
    print(f"{printable(arguments.output)}: {len(weights)} tensors averaged")
    return 0


if __name__ == "__main__":
    run(main)
