"""Options of the curation scripts that several have or that are many, and what their numbers may be."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from concat_id.curation.engines import CurationStage, Result, local_engine, ray_engine
from concat_id.errors import UserError
from concat_id.files.paths import SEPARATOR

LIMITS = {
    "frames": (1, 10_000), "fps": (1e-3, 1000), "skip": (0, 10_000), "max_clips": (1, 10_000_000), "rate": (1e-3, 1000),
    "min_face": (1, 10_000), "max_people": (1, 100), "references": (1, 1000), "timeout": (1e-3, 1e6), "crop": (64, 4096),
    "workers": (1, 1024), "max_refs": (1, 64), "actors": (1, 100_000), "gpus_per_actor": (0, 64), "shard_mb": (1e-3, 4096),
    "trade_off_clips": (1, 10_000_000), "test_captions": (1, 10_000_000), "test_people": (1, 10_000_000),
}  # fmt: skip
LONGEST = 200  # letters of what a detector is asked for
RAY = ("ray_address", "actors", "gpus_per_actor")


def add_threshold_options(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    cosines = parser.add_argument_group("thresholds (default: the paper's, for ArcFace)")
    known = cosines.add_mutually_exclusive_group()
    known.add_argument("--calibrate", action="store_true", help="find them for this recogniser on these clips, write thresholds.json")
    known.add_argument("--thresholds", type=Path, metavar="FILE", help="thresholds.json of an earlier --calibrate")
    cosines.add_argument("--quantiles", type=float, nargs=3, default=(0.1, 0.9, 0.999), metavar="X",
                         help="with --calibrate: shares of a person's pairs below 0.7, 0.9 and 0.99 (default: 0.1 0.9 0.999)")  # fmt: skip
    cosines.add_argument("--cross", type=float, nargs=2, metavar=("LOW", "HIGH"), help="stage 2, one person (0.7 0.9; Wan: 0.87 0.97)")
    cosines.add_argument("--cross_two", type=float, nargs=2, metavar=("LOW", "HIGH"), help="stage 2, several people (0.87 0.97)")
    cosines.add_argument("--trade_off", type=float, nargs=2, metavar=("LOW", "HIGH"), help="stage 3 (0.9 0.99)")
    cosines.add_argument("--hygiene", type=float, metavar="X", help="test people closer to training are dropped (0.45)")
    cosines.add_argument("--same_person", type=float, metavar="X",
                         help="from which people without a name are one (default: the recogniser's own, else 0.3)")  # fmt: skip


def add_caption_options(parser: argparse.ArgumentParser) -> None:
    """Add those of sat/prepare_clips.py that say where captions come from."""
    captions = parser.add_argument_group("captions")
    captions.add_argument("--captions", type=Path, metavar="FILE", help='JSON object {"a.mp4": "caption"}; else a.txt beside a.mp4')
    captions.add_argument("--caption", metavar="TEXT", help="for videos without another caption")
    captions.add_argument("--captioner", type=Path, metavar="FOLDER", help="image-text model that describes clips without a caption, in "
                          "this process, on --device, after all clips are made (such as models/Qwen2.5-VL-7B)")  # fmt: skip
    captions.add_argument("--caption_prompt", type=Path, metavar="FILE", help="what to ask it (default: for action, clothes and place)")


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add those that say where a script computes."""
    engines = parser.add_argument_group("where it computes")
    engines.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="limit for reading a video (default: %(default)s)")
    engines.add_argument("--device", default="auto", help="auto, cpu or an accelerator (default: %(default)s)")
    engines.add_argument("--engine", choices=("local", "ray"), default="local", help="this machine, or Ray (default: %(default)s)")
    engines.add_argument("--workers", type=int, default=1, metavar="N", help="local: processes (default: %(default)s)")
    engines.add_argument("--ray_address", metavar="HOST:PORT", help="ray: a cluster's, or auto (default: one of this machine's own)")
    engines.add_argument("--actors", type=int, metavar="N", help="ray: processes (default: as many as there is room for)")
    engines.add_argument("--gpus_per_actor", type=float, metavar="X", help="ray: GPUs, or a share of one, for each (default: 0)")


def check_limits(arguments: argparse.Namespace) -> argparse.Namespace:
    """Return what was parsed. Raises `UserError` for what sat/prepare_clips.py cannot do."""
    check_engine(arguments)
    if arguments.caption_prompt is not None and arguments.captioner is None:
        raise UserError("command line: --caption_prompt: needs --captioner FOLDER; give that too, or leave it out")
    if not 0 < arguments.presence <= 1:
        raise UserError(f"command line: --presence: found {arguments.presence:g}, expected above 0, up to 1")
    return arguments


def check_engine(arguments: argparse.Namespace) -> argparse.Namespace:
    """Return what was parsed. Raises `UserError` for numbers of any script out of bounds, and for what does not fit its engine."""
    check_numbers(arguments)
    if arguments.engine == "local" and (given := [name for name in RAY if getattr(arguments, name) is not None]):
        raise UserError(f"command line: --{given[0]}: needs --engine ray; give that too, or leave it out (processes: --workers)")
    if (gpus := arguments.gpus_per_actor or 0) > 1 and gpus % 1:
        raise UserError(f"command line: --gpus_per_actor: found {gpus:g}, expected a share up to 1 or a whole number")
    if not 16 <= min(arguments.size) <= max(arguments.size) <= 16_384:
        raise UserError(f"command line: --size: found {' '.join(map(str, arguments.size))}, expected numbers from 16 to 16384")
    return arguments


def check_numbers(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for numbers of any script out of bounds."""
    for name, (low, high) in LIMITS.items():
        value = getattr(arguments, name, None)
        if value is not None and not low <= value <= high:
            raise UserError(f"command line: --{name}: found {value}, expected {low:g} to {high:.10g}")


def check_pairing(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for shares and counts that cannot be, and for bands that do not rise."""
    check_numbers(arguments)
    if min(arguments.valid, arguments.test) < 0 or arguments.valid + arguments.test >= 1:
        shares = f"found {arguments.valid:g} and {arguments.test:g}, expected shares from 0, together below 1"
        raise UserError(f"command line: --valid and --test: {shares}")
    for name in ("cross", "cross_two", "trade_off", "quantiles"):
        values = getattr(arguments, name)
        minimum = 0 if name == "quantiles" else -1
        if values and (list(values) != sorted(set(values)) or not minimum <= values[0] <= values[-1] <= 1):
            raise UserError(f"command line: --{name}: found {' '.join(map(str, values))}, expected rising numbers from {minimum} to 1")


def check_subjects(arguments: argparse.Namespace) -> argparse.Namespace:
    """Return what was parsed. Raises `UserError` for what sat/add_subjects.py cannot do."""
    check_engine(arguments)
    if "background" in arguments.kinds and arguments.inpainter is None:
        raise UserError("command line: --inpainter: missing, expected the folder of an inpainting pipeline; give it, or --kinds clothes")
    output, taken = arguments.output, [path.resolve() for path in arguments.lists]
    if output.suffix != ".json" or SEPARATOR in output.name or output.is_dir() or output.resolve() in taken:
        raise UserError(f"command line: --output: found {output}, expected a .json file that is no list to read, without {SEPARATOR}")
    if not 0 < len(arguments.words.strip()) <= LONGEST:
        raise UserError(f"command line: --words: found {len(arguments.words.strip())} letters, expected 1 to {LONGEST}")
    return arguments


def run_stage(options: argparse.Namespace, stage: CurationStage, sources: Sequence[Any]) -> Iterator[Result]:
    """Yield the results of the engine that the options of the command line name."""
    if options.engine == "ray":
        return ray_engine(stage, sources, options.ray_address, options.actors)
    return local_engine(stage, sources, options.workers)
