"""Train the demonstration model in minutes of one GPU: `python demo/gpu_run.py --output data/near --minutes 12`.

Autoencoder and stages I to III share the minutes by a clock, while all other cores draw people; the same command goes on with a run
that was stopped, and does nothing when the minutes are spent. Needs numpy, scipy, numba, torch, transformers and the wheels that
demo/make.sh names; neither anny nor face models nor a network. With --scale 1/200 it is a rehearsal for a CPU.
"""

import sys
from fractions import Fraction
from pathlib import Path

sys.path.extend([str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "sat")])

from concat_id.config.parser import Namespace, Parser
from concat_id.startup import prepare_process, run
from minimum import check_minimum

SAVE_EVERY = 120  # seconds


def read_arguments() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to write, or to go on with")
    parser.add_argument("--minutes", type=float, default=12, metavar="N", help="of all parts together (default: %(default)s)")
    parser.add_argument("--scale", type=Fraction, default=Fraction(1), metavar="X", help="of batches, such as 1/200 (default: 1)")
    arguments = parser.parse_args()
    check_minimum(arguments, minutes=0, scale=0)
    return arguments


def main() -> int:
    """Train, and say how long everything took."""
    prepare_process()
    arguments = read_arguments()

    import os

    from concat_id.config.loading import load_config
    from concat_id.distributed import choose_device
    from concat_id.files.paths import check_writable
    from networks.clock import table
    from networks.minutes import Minutes

    check_writable(arguments.output)
    config, workers = load_config(["demo/configs/near.yaml"]), max(1, (os.cpu_count() or 2) - 1)
    minutes = Minutes(config, arguments.output, arguments.minutes, choose_device("auto"), float(arguments.scale), workers, SAVE_EVERY)
    minutes.run()
    print(table(minutes.tallies, arguments.minutes))
    return 0


if __name__ == "__main__":
    run(main)
