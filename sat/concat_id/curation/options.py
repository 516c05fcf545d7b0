"""The options of sat/make_pairs.py that say how alike pictures have to be."""

import argparse
from pathlib import Path

from concat_id.errors import UserError


def add_threshold_options(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    cosines = parser.add_argument_group("thresholds (default: the paper's, for ArcFace)")
    known = cosines.add_mutually_exclusive_group()
    known.add_argument("--calibrate", action="store_true", help="find them for this recogniser on these clips, write thresholds.json")
    known.add_argument("--thresholds", type=Path, metavar="FILE", help="thresholds.json of an earlier --calibrate")
    cosines.add_argument("--quantiles", type=float, nargs=3, default=(0.1, 0.9, 0.999), metavar="X",
                         help="with --calibrate: shares of a person's pairs below 0.7, 0.9 and 0.99 (default: 0.1 0.9 0.999)")  # fmt: skip
    cosines.add_argument("--by_kind", nargs="*", metavar="WORD",
                         help="with --calibrate: a band of stage 3 each for pictures, "
                         "moving clips, one person, several, and captions with one of these words")  # fmt: skip
    cosines.add_argument("--cross", type=float, nargs=2, metavar=("LOW", "HIGH"), help="stage 2, one person (0.7 0.9; Wan: 0.87 0.97)")
    cosines.add_argument("--cross_two", type=float, nargs=2, metavar=("LOW", "HIGH"), help="stage 2, several people (0.87 0.97)")
    cosines.add_argument("--trade_off", type=float, nargs=2, metavar=("LOW", "HIGH"), help="stage 3 (0.9 0.99)")
    cosines.add_argument("--hygiene", type=float, metavar="X", help="test people closer to training are dropped (0.45)")
    cosines.add_argument("--same_person", type=float, metavar="X", help="from which people without a name are one (SFace: 0.363)")


def check_thresholds(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for bands that do not rise, and for kinds without anything to calibrate."""
    for name in ("cross", "cross_two", "trade_off", "quantiles"):
        values = getattr(arguments, name)
        if values and (list(values) != sorted(set(values)) or not -1 <= values[0] <= values[-1] <= 1):
            raise UserError(f"command line: --{name}: found {' '.join(map(str, values))}, expected rising numbers up to 1")
    if arguments.by_kind is not None and not arguments.calibrate:
        raise UserError("command line: --by_kind: found no --calibrate, expected both; add it")
    if arguments.by_kind is not None and arguments.trade_off:
        raise UserError("command line: --by_kind: found --trade_off as well, a band for all kinds; leave out one of them")
