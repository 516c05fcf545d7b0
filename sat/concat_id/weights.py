"""Weights on disk: reading them as data and nothing else, fitting them to a network exactly, naming them by content."""

import argparse
import codecs
import collections
import contextlib
import fnmatch
import hashlib
import json
import pickle
import re
import struct
import types
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from concat_id.errors import UserError

FULL_DIGEST_LIMIT = 200 * 2**20  # bytes; larger files are not read whole only to be named
SAMPLED_BLOCKS, SAMPLED_BLOCK_SIZE = 256, 64 * 2**10
SAT_PREFIX = "model.diffusion_model."
MODEL_STATES = "mp_rank_*_model_states.pt"

# What a damaged or foreign file makes the readers below raise.
UNREADABLE = (
    RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, ImportError, OSError, struct.error,
    pickle.UnpicklingError, safetensors.SafetensorError, zipfile.BadZipFile,
)  # fmt: skip


class _Record:
    """Stand-in for a library's configuration object: takes its fields and runs none of the library's code."""

    def __init__(self, *values: Any):
        self.values = values


def _without_default(*_: Any) -> dict:
    """Stand in for defaultdict, which PyTorch's careful unpickler can make but not fill."""
    return collections.OrderedDict()


NEW_IN_2_6 = "get_unsafe_globals_in_checkpoint"
RECORD_MODULES = ("omegaconf.", "deepspeed.")  # their objects sit beside the tensors in training checkpoints; nothing reads them
_numpy_array, _numpy_scalar = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
_plain_types = (bool, bytes, dict, float, int, list, str, tuple)
INERT = {
    "argparse.Namespace": argparse.Namespace,
    "types.SimpleNamespace": types.SimpleNamespace,
    "typing.Any": _Record,
    "collections.defaultdict": _without_default,
    "_codecs.encode": codecs.encode,  # how protocol 2 writes bytes
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **{f"numpy.{core}.multiarray._reconstruct": _numpy_array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _numpy_scalar for core in ("core", "_core")},
    **{f"numpy.dtypes.{name}": getattr(np.dtypes, name) for name in np.dtypes.__all__},
    **{f"pathlib.{name}": PurePosixPath for name in ("PosixPath", "PurePosixPath")},
    **{f"pathlib.{name}": PureWindowsPath for name in ("WindowsPath", "PureWindowsPath")},
    **{f"builtins.{kind.__name__}": kind for kind in _plain_types},
    **{f"__builtin__.{kind.__name__}": kind for kind in _plain_types},
}


class SatCheckpoint(NamedTuple):
    """Tensors of one network, where they came from (for messages) and the content's name."""

    state_dict: dict[str, Tensor]
    source: str
    digest: str


def load_tensors(path: str | Path, trust: bool = False, mmap: bool = True) -> Any:
    """Read a checkpoint (PyTorch's zip or older format, or safetensors) onto the CPU and return what it holds.

    Only data is read; `trust` allows pickled code to run. With `mmap` tensors are paged in as they are used.
    Raises `UserError` for a file that is missing, empty, cut short, no checkpoint, or more than data.
    """
    path = Path(path)
    head = _first_bytes(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        is_zip = head.startswith(b"PK\x03\x04")
        with _stand_ins(path) if not trust and is_zip else _stand_ins():
            return torch.load(path, map_location="cpu", weights_only=not trust, mmap=mmap and is_zip)
    except UNREADABLE as error:
        raise UserError(_why_unreadable(path, head, error)) from error


def load_sat_checkpoint(folder: str | Path, prefix: str = SAT_PREFIX, trust: bool = False) -> SatCheckpoint:
    """Read the tensors whose names start with `prefix` (removed) from a SAT checkpoint.

    `folder` holds `latest` and the tag's folder; the tag's folder or its `mp_rank_00_model_states.pt` will do as well.
    """
    path = find_sat_checkpoint(Path(folder))
    content = load_tensors(path, trust)
    module = content.get("module") if isinstance(content, dict) else None
    if not isinstance(module, dict):
        found = f"entries {_some(content)}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise UserError(f"{path}: found {found}, expected a SAT checkpoint with an entry 'module'; check args.load")
    state_dict = {name.removeprefix(prefix): tensor for name, tensor in module.items() if name.startswith(prefix)}
    if not state_dict:
        raise UserError(f"{path}: found tensors {_some(module)}, expected names starting with '{prefix}'; check args.load")
    return SatCheckpoint(state_dict, str(path), weights_digest(path))


def write_sat_checkpoint(folder: Path, tag: str, tensors: Mapping[str, Tensor]) -> None:
    """Write a network's tensors into an empty folder as the SAT checkpoint `tag`, with `latest` pointing at it."""
    (folder / tag).mkdir()
    module = {SAT_PREFIX + name: tensor for name, tensor in tensors.items()}
    torch.save({"module": module}, folder / tag / "mp_rank_00_model_states.pt")
    (folder / "latest").write_text(tag)


def average(checkpoints: Sequence[SatCheckpoint], shares: Sequence[float]) -> dict[str, Tensor]:
    """Average the tensors of one network's checkpoints by `shares`, in float32; the result has the types of the first.

    Weights of one model that was trained on in two ways often mean something in between as well: Wortsman et al. 2022, "Model soups" and
    "Robust fine-tuning of zero-shot models". Raises `UserError` if the tensors differ in name or shape.
    """
    first = checkpoints[0].state_dict
    for other in checkpoints[1:]:
        _check_fit(other.state_dict, first, other.source, checkpoints[0].source)
    averages = {}
    for name, tensor in first.items():
        parts = [share * checkpoint.state_dict[name].float() for share, checkpoint in zip(shares, checkpoints, strict=True)]
        averages[name] = sum(parts).to(tensor.dtype)
    return averages


def weight_files(folder: str | Path, stems: Iterable[str] = ("model", "pytorch_model")) -> list[Path]:
    """List the files of a Hugging Face folder's weights, one or the shards of an index, safetensors before pickles."""
    folder = Path(folder)
    stems = tuple(stems)
    for suffix in (".safetensors", ".bin"):
        for single in (folder / f"{stem}{suffix}" for stem in stems):
            if single.exists():
                return [single]
            index = single.with_name(f"{single.name}.index.json")
            if index.exists():
                return _shards(index)
    expected = " or ".join(f"{stem}.safetensors" for stem in stems)
    raise UserError(f"{folder}: found no weights, expected {expected} (or .bin); download it again")


def load_files(paths: Iterable[Path], trust: bool = False) -> dict[str, Tensor]:
    """Read the shards of one state dict."""
    state_dict = {}
    for path in paths:
        content = load_tensors(path, trust)
        if not isinstance(content, dict):
            raise UserError(f"{path}: found a {type(content).__name__}, expected names with tensors; download it again")
        state_dict.update(content)
    return state_dict


def load_strictly(
    module: nn.Module, state_dict: dict[str, Tensor], source: str, ignore: Iterable[str] = (), dtype: torch.dtype | None = None
) -> None:
    """Give `module` exactly the tensors of `state_dict`, or raise `UserError` with what does not fit.

    A module on the meta device takes the tensors themselves, any other copies them. Superfluous names that match a pattern of
    `ignore` are dropped; floating-point tensors become `dtype`, where given.
    """
    expected = module.state_dict()
    given = {name: tensor for name, tensor in state_dict.items() if name in expected or not matches(name, ignore)}
    _check_fit(given, expected, source, type(module).__name__)
    if dtype is not None:
        given = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in given.items()}
    module.load_state_dict(given, strict=True, assign=any(tensor.is_meta for tensor in expected.values()))

    left = [name for name, tensor in [*module.named_parameters(), *module.named_buffers()] if tensor.is_meta]
    if left:
        raise RuntimeError(f"{type(module).__name__}: {_some(left)} are no part of its state dict and were left without values")


def weights_digest(path: str | Path) -> str:
    """Name a file's content, as "<method>:<hexadecimal>", in well under a second.

    sha256 of everything up to 200 MB. Above that, of the names, sizes and CRC-32s that a zip lists (every byte counts, though
    CRCs do not resist forgery), and for other formats of the size and 256 blocks of 64 KiB spread evenly (a small change
    between them goes unseen).
    """
    path = Path(path)
    head = _first_bytes(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= FULL_DIGEST_LIMIT:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        digest = hashlib.sha256(str(size).encode())
        try:
            if head.startswith(b"PK"):
                entries = [(entry.filename, entry.file_size, entry.CRC) for entry in zipfile.ZipFile(file).infolist()]
                digest.update(repr(sorted(entries)).encode())
                return f"zip-crc32:{digest.hexdigest()}"
        except zipfile.BadZipFile as error:
            raise UserError(_why_unreadable(path, head, error)) from error
        for block in range(SAMPLED_BLOCKS):
            file.seek(block * (size - SAMPLED_BLOCK_SIZE) // (SAMPLED_BLOCKS - 1))
            digest.update(file.read(SAMPLED_BLOCK_SIZE))
    return f"sampled:{digest.hexdigest()}"


def content_digest(path: str | Path) -> str:
    """Name the weights in a file, or in all weight files of a Hugging Face folder."""
    path = Path(path)
    if not path.is_dir():
        return weights_digest(path)
    files = weight_files(path, ("model", "pytorch_model", "diffusion_pytorch_model"))
    return "+".join(weights_digest(file) for file in files)


def _first_bytes(path: Path) -> bytes:
    """Return the first bytes of a file that may be a checkpoint; raise `UserError` for what is plainly none."""
    if path.is_dir():
        raise UserError(f"{path}: found a folder, expected a checkpoint file; name the file in it")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file, expected a checkpoint; download it or correct the path") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if not head:
        raise UserError(f"{path}: found an empty file, expected a checkpoint; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: found a git-lfs pointer, expected the file it stands for; run `git lfs pull`, or download it")
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        raise UserError(f"{path}: found a web page, expected a checkpoint; download it again")
    return head


@contextlib.contextmanager
def _stand_ins(path: Path | None = None) -> Iterator[None]:
    """Let the unpickler put harmless objects in the place of `INERT` and, for a zip checkpoint, of its library objects.

    Raises `UserError` if the checkpoint at `path` names anything unknown. PyTorch before 2.6 has no stand-ins under another name, so
    that it reads tensors and plain containers alone.
    """
    serialization = torch.serialization
    if not hasattr(serialization, NEW_IN_2_6):
        yield
        return
    inert, records = [(value, name) for name, value in INERT.items()], []
    if path is not None:
        with serialization.safe_globals(inert):
            foreign = serialization.get_unsafe_globals_in_checkpoint(path)
        refused = [name for name in foreign if name not in INERT and not name.startswith(RECORD_MODULES)]
        if refused:
            raise UserError(_refusal(path, refused))
        records = [(_Record, name) for name in foreign if name.startswith(RECORD_MODULES)]
    with serialization.safe_globals([*inert, *records]):
        yield


def _refusal(path: Path, names: list[str]) -> str:
    newer = "" if hasattr(torch.serialization, NEW_IN_2_6) else "install torch 2.6 or newer, which reads more kinds of data, or "
    return (
        f"{path}: found {_some(names)}, which may run code while loading, expected nothing but data; "
        f"{newer}pass --trust-checkpoint if you trust its author"
    )


def _why_unreadable(path: Path, head: bytes, error: BaseException) -> str:
    """Tell in one line whether a file is cut short, unsafe or something else."""
    foreign = re.search(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)", str(error))
    if foreign:
        return _refusal(path, [foreign[1]])
    if isinstance(error, ImportError | AttributeError):
        return f"{path}: its pickled code needs what is not installed ({_line(error)}); load it where it was written"
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        return f"{path}: found a zip archive that is no checkpoint ({_line(error)}), expected one written by torch.save; correct the path"
    if isinstance(error, pickle.UnpicklingError) and "truncated" not in str(error):
        return f"{path}: found a pickle that is no checkpoint ({_line(error)}), expected one written by torch.save; correct the path"
    if head.startswith((b"PK", b"\x80")) or head[8:9] == b"{":
        return f"{path}: found a truncated or damaged file of {path.stat().st_size:,} bytes ({_line(error)}); download it again"
    return f"{path}: found no checkpoint (it starts with {head[:8]!r}), expected a PyTorch or safetensors file; correct the path"


def _line(error: BaseException) -> str:
    """Shorten an error to one line, without PyTorch's advice to load unsafely."""
    reason = str(error).partition("WeightsUnpickler error:")[2] or str(error)
    return " ".join(reason.split())[:100] or type(error).__name__


def _some(names: Iterable[Any], limit: int = 3) -> str:
    """Name the first few."""
    names = [str(name) for name in names]
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "") or "nothing"


def find_sat_checkpoint(path: Path) -> Path:
    """Find the one file of tensors in a SAT checkpoint."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such folder, expected a SAT checkpoint; download the weights or correct args.load")
    if not any(path.glob(MODEL_STATES)):
        path = _tag_folder(path)
    ranks = sorted(path.glob(MODEL_STATES))
    if len(ranks) > 1:
        raise UserError(f"{path}: found {len(ranks)} model-parallel parts, expected mp_rank_00_model_states.pt alone; merge them first")
    if not ranks:
        kind = "ZeRO-3 parts" if any(path.glob("z3_rank_*")) else "no mp_rank_00_model_states.pt"
        raise UserError(f"{path}: found {kind}, expected mp_rank_00_model_states.pt; download or gather the weights again")
    return ranks[0]


def _tag_folder(folder: Path) -> Path:
    latest = folder / "latest"
    if not latest.is_file():
        found = _some(sorted(entry.name for entry in folder.iterdir()))
        raise UserError(f"{folder}: found {found}, expected a file 'latest' with the tag; download the weights or correct args.load")
    tag = latest.read_text(encoding="utf-8", errors="replace").strip()
    if not tag or not (folder / tag).is_dir():
        raise UserError(f"{latest}: names the tag {tag[:80]!r}, but {folder} has no such folder; correct it or download the weights again")
    return folder / tag


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except UNREADABLE as error:
        raise UserError(f"{index}: found no index of shards ({_line(error)}); download it again") from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index}: names {len(names)} files, of which {_some(missing)} are missing; download them")
    return [index.parent / name for name in names]


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Tell whether a name fits any of the shell-style patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _check_fit(given: dict[str, Tensor], expected: dict[str, Tensor], source: str, network: str) -> None:
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    misshapen = [
        f"{name} {_shape(given[name])} for {_shape(tensor)}"
        for name, tensor in expected.items()
        if name in given and _shape(given[name]) != _shape(tensor)
    ]
    faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)]
    found = "; ".join(f"{len(names)} of {len(expected)} {kind}: {_some(names)}" for kind, names in faults if names)
    if found:
        raise UserError(f"{source}: does not fit {network} ({found}); check that the configuration belongs to these weights")


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
