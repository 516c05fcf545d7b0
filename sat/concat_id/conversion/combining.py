"""Whole checkpoints made of others: low-rank weights merged into those they were trained on, and averages."""

from collections.abc import Sequence
from pathlib import Path

from concat_id.conversion.weight_sources import open_source
from concat_id.errors import UserError
from concat_id.files.paths import folder_written_whole, kind_of, resolve_path
from concat_id.models.wan.weights import given_names, is_native, read_tensors, read_wan_state
from concat_id.weights.folders import is_diffusers
from concat_id.weights.loading import SatCheckpoint, average, check_floats, load_sat_checkpoint, write_sat_checkpoint
from concat_id.weights.low_rank import FILE as LOW_RANK_FILE


def merge_low_rank(path: Path, output: Path, weights: str | None, load: str | None, trust: bool) -> int:
    """Add low-rank products to the weights they were trained on and write those as a checkpoint; return how many layers change.

    The options are those of `open_source`. Raises `UserError` for weights without products, and for products that do not fit.
    """
    source = open_source(resolve_path(path), weights, load, trust=trust)
    if source.products is None:
        raise UserError(f"{source.path}: found no {LOW_RANK_FILE}; name a folder such as exps/RUN/100 "
                        "(SAT's own low-rank matrices are merged when a checkpoint is read)")  # fmt: skip
    merged = dict(source.merged())
    check_floats(merged, str(source.path))
    with folder_written_whole(output) as folder:
        write_sat_checkpoint(folder, "merged", merged)
    return len(source.products)


def average_checkpoints(paths: Sequence[Path], shares: Sequence[float] | None, output: Path, trust: bool) -> int:
    """Write the average of checkpoints by `shares` (None: equal ones), in the types of the first; return the number of tensors.

    Weights that were trained on from the same ones can often be averaged, and the average does some of what each of them does well.
    """
    shares = shares or [1 / len(paths)] * len(paths)
    if len(paths) < 2:
        raise UserError(f"command line: --with: found {paths[0]} alone, expected at least two checkpoints")
    if len(shares) != len(paths) or not abs(sum(shares) - 1) <= 1e-6:
        raise UserError(f"command line: --shares: found {' '.join(map(str, shares))}, expected {len(paths)} numbers that add up to 1")
    weights = average([_read(resolve_path(path), trust) for path in paths], shares)
    with folder_written_whole(output) as folder:
        write_sat_checkpoint(folder, "average", weights)
    return len(weights)


def _read(path: Path, trust: bool) -> SatCheckpoint:
    """Read a SAT checkpoint, or Wan's transformer in any of its formats under the names that trainings give it."""
    try:
        is_wan = is_native(given_names(read_tensors(path, trust)))
    except UserError:
        if kind_of(path) == "a file" or is_diffusers(path):
            raise
        is_wan = False
    return SatCheckpoint(read_wan_state(path, trust=trust), str(path), "") if is_wan else load_sat_checkpoint(path, trust=trust)
