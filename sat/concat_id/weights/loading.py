"""Weights on disk: reading them as data and nothing else, fitting them to a network exactly, naming them by content."""

import contextlib
import errno
import fnmatch
import hashlib
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from concat_id.distributed import rank
from concat_id.errors import UserError, warn
from concat_id.files.json_files import write_json
from concat_id.files.paths import MODEL_STATES, file_digest, require_file
from concat_id.weights.folders import STEMS, find_sat_checkpoint, some, weight_files, what_to_do_with
from concat_id.weights.low_rank import MATRIX, merge_sat_products
from concat_id.weights.pickle_calls import INERT, RecordedCall
from concat_id.weights.pickles import ForeignNamesError, check_pickles

FULL_DIGEST_LIMIT = 200 * 2**20  # bytes; larger files are not read whole only to be named
SAMPLED_BLOCKS, SAMPLED_BLOCK_SIZE = 256, 64 * 2**10
SHARD_SIZE = 2 * 10**9  # bytes of one safetensors file, of which one is held at a time
SAT_PREFIX = "model.diffusion_model."
SCALES = ("scale_weight", "weight_scale", "scaled_fp8")  # ends of names that say that other tensors are not the weights themselves
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)

# What a damaged or foreign file makes the readers below raise.
UNREADABLE = (
    RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, ImportError, OSError, ArithmeticError, AssertionError,
    MemoryError, struct.error, pickle.UnpicklingError, safetensors.SafetensorError, zipfile.BadZipFile,
)  # fmt: skip


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
    with _told(path) as head:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with _stand_ins([] if trust else check_pickles(path)):
            return torch.load(path, map_location="cpu", weights_only=not trust, mmap=mmap and head.startswith(b"PK\x03\x04"))


def check_whole(path: Path) -> None:
    """Raise `UserError` for what `load_files` would refuse, as far as headers, directories and pickles tell; no tensor is read."""
    with _told(path):
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, "pt") as file:
                return check_named(dict.fromkeys(file.keys()), str(path))
        check_pickles(path)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[bytes]:
    """Yield a file's first bytes; turn what readers raise for damaged or foreign files into `UserError`."""
    head = first_bytes(path)
    try:
        yield head
    except ForeignNamesError as error:
        raise UserError(_refusal(path, error.args)) from error
    except UNREADABLE as error:
        raise UserError(_why_unreadable(path, head, error)) from error


def load_sat_checkpoint(folder: str | Path, trust: bool = False, alpha: float = 1.0) -> SatCheckpoint:
    """Read the transformer's tensors, without `SAT_PREFIX`, from a SAT checkpoint; SAT's own low-rank ones are merged by `alpha`.

    `folder` holds `latest` and the tag's folder; the tag's folder or its `mp_rank_00_model_states.pt` will do as well.
    """
    path = find_sat_checkpoint(Path(folder))
    content = load_tensors(path, trust)
    module = content.get("module") if isinstance(content, dict) else None
    if not isinstance(module, dict):
        found = f"entries {some(content)}" if isinstance(content, dict) else f"a {type(content).__name__}"
        instead = what_to_do_with(content, path) or "expected a SAT checkpoint with an entry 'module'; check args.load"
        raise UserError(f"{path}: found {found}, {instead}")
    check_named(module, str(path))
    state_dict = {name.removeprefix(SAT_PREFIX): tensor for name, tensor in module.items() if name.startswith(SAT_PREFIX)}
    if not state_dict:
        raise UserError(f"{path}: found tensors {some(module)}, expected names starting with '{SAT_PREFIX}'; check args.load")
    if any(MATRIX in name for name in state_dict):
        if rank() == 0:
            warn(f"{path}: holds SAT's low-rank matrices, which are merged with lora_alpha {alpha:g}")
        state_dict = merge_sat_products(state_dict, str(path), alpha)
    return SatCheckpoint(state_dict, str(path), weights_digest(path))


def write_sat_checkpoint(folder: Path, tag: str, tensors: Mapping[str, Tensor]) -> None:
    """Write a network's tensors into an empty folder as the SAT checkpoint `tag`, with `latest` pointing at it."""
    (folder / tag).mkdir()
    module = {SAT_PREFIX + name: tensor for name, tensor in tensors.items()}
    with writing():
        torch.save({"module": module}, folder / tag / MODEL_STATES)
    (folder / "latest").write_text(tag)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Raise OSError where libraries tell of a full disk in errors of their own."""
    try:
        yield
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise OSError(errno.ENOSPC, " ".join(str(error).split())[:100]) from error


def average(checkpoints: Sequence[SatCheckpoint], shares: Sequence[float]) -> dict[str, Tensor]:
    """Average the tensors of one network's checkpoints by `shares`, in float32; the result has the types of the first.

    Weights of one model that was trained on in two ways often mean something in between as well: Wortsman et al. 2022, "Model soups" and
    "Robust fine-tuning of zero-shot models". Raises `UserError` if the tensors differ in name or shape.
    """
    first = checkpoints[0].state_dict
    check_floats(first, checkpoints[0].source)
    for other in checkpoints[1:]:
        check_fit(other.state_dict, first, other.source, checkpoints[0].source)
    averages = {}
    for name, tensor in first.items():
        parts = [share * checkpoint.state_dict[name].float() for share, checkpoint in zip(shares, checkpoints, strict=True)]
        averages[name] = sum(parts).to(tensor.dtype)
    return averages


def load_files(paths: Iterable[Path], trust: bool = False) -> dict[str, Tensor]:
    """Read the shards of one state dict."""
    state_dict = {}
    for path in paths:
        content = load_tensors(path, trust)
        check_named(content, str(path), state_dict)
        state_dict.update(content)
    return state_dict


def check_named(content: Any, source: str, before: Container[str] = ()) -> None:
    """Raise `UserError` unless `content` is a dictionary whose keys are text, and no name is of a wrapped layer or of a scale.

    Nor one of the names in the files read `before`.
    """
    if not isinstance(content, dict):
        raise UserError(f"{source}: found a {type(content).__name__}, expected names with tensors; download it again")
    if foreign := [name for name in content if not isinstance(name, str)]:
        found = some([f"{type(foreign[0]).__name__} {foreign[0]!s:.40}"])
        raise UserError(f"{source}: found {len(foreign)} names that are no text ({found}), expected names of tensors; download it again")
    if wrapped := next((name for name in content if ".base_layer." in name), None):
        raise UserError(f"{source}: found {some([wrapped])}, expected weights alone, without an adapter; "
                        "in diffusers call pipe.fuse_lora(); pipe.unload_lora_weights() and save again")  # fmt: skip
    if twice := next((name for name in content if name in before), None):
        raise UserError(f"{source}: found {some([twice])}, which a file before it holds too, expected every tensor once; take one version")
    if scaled := next((name for name in content if name.endswith(SCALES)), None):
        raise UserError(f"{source}: found {some([scaled])}, by which other weights are multiplied, expected none; take the file in 16 bits")


def check_floats(tensors: Mapping[str, Any], source: str) -> None:
    """Raise `UserError` unless all are tensors of floating-point numbers, as weights are."""
    others = [f"{name} ({kind})" for name, tensor in tensors.items() if (kind := _kind(tensor)) != "floating-point"]
    if others:
        raise UserError(f"{source}: found {some(others)}, expected tensors of floating-point numbers; download it again")


def shape_of(tensors: Mapping[str, Any], name: str, dimensions: int, source: str) -> tuple[int, ...]:
    """Return the shape of a tensor; raises `UserError` if it is absent or has other than `dimensions`, none of them empty."""
    shape = getattr(tensors.get(name), "shape", None)
    if shape is None or len(shape) != dimensions or 0 in shape:
        found = f"no {name}" if shape is None else f"{name} of shape {tuple(shape)}"
        raise UserError(f"{source}: found {found}, expected a tensor of {dimensions} dimensions; name another file or download it again")
    return tuple(shape)


def load_strictly(
    module: nn.Module, state_dict: dict[str, Tensor], source: str, ignore: Iterable[str] = (), dtype: torch.dtype | None = None
) -> None:
    """Give `module` exactly the tensors of `state_dict`, or raise `UserError` with what does not fit.

    A module on the meta device takes the tensors themselves, any other copies them. Superfluous names that match a pattern of
    `ignore` are dropped; floating-point tensors become `dtype`, where given.
    """
    expected = module.state_dict()
    given = {name: tensor for name, tensor in state_dict.items() if name in expected or not matches(name, ignore)}
    check_fit(given, expected, source, type(module).__name__)
    if dtype is not None:
        given = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in given.items()}
    module.load_state_dict(given, strict=True, assign=any(tensor.is_meta for tensor in expected.values()))

    left = [name for name, tensor in [*module.named_parameters(), *module.named_buffers()] if tensor.is_meta]
    if left:
        raise RuntimeError(f"{type(module).__name__}: {some(left)} are no part of its state dict and were left without values")


def weights_digest(path: str | Path) -> str:
    """Name a file's content, as "<method>:<hexadecimal>", in well under a second.

    sha256 of everything up to 200 MB. Above that, of the names, sizes and CRC-32s that a zip lists (every byte counts, though
    CRCs do not resist forgery), and for other formats of the size and 256 blocks of 64 KiB spread evenly (a small change
    between them goes unseen).
    """
    path = Path(path)
    with _told(path) as head, path.open("rb") as file:
        size = path.stat().st_size
        if size <= FULL_DIGEST_LIMIT:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        digest = hashlib.sha256(str(size).encode())
        if head.startswith(b"PK"):
            entries = [(entry.filename, entry.file_size, entry.CRC) for entry in zipfile.ZipFile(file).infolist()]
            digest.update(repr(sorted(entries)).encode())
            return f"zip-crc32:{digest.hexdigest()}"
        for block in range(SAMPLED_BLOCKS):
            file.seek(block * (size - SAMPLED_BLOCK_SIZE) // (SAMPLED_BLOCKS - 1))
            digest.update(file.read(SAMPLED_BLOCK_SIZE))
    return f"sampled:{digest.hexdigest()}"


def content_digest(path: str | Path) -> str:
    """Name the weights in a file, or in all weight files of a Hugging Face folder."""
    files = weight_files(path, STEMS) if os.path.isdir(path) else [path]
    return "+".join(map(weights_digest, files))


def folder_digest(folder: Path) -> str:
    """Name the weights of a folder, and what else it says: settings and vocabularies."""
    texts = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".txt") and not file.name.endswith(".index.json"))
    return " ".join([content_digest(folder), *map(file_digest, texts)])


def first_bytes(path: Path) -> bytes:
    """Return the first bytes of a file that may be a checkpoint; raise `UserError` for what is plainly none."""
    require_file(path, "a checkpoint", "name a file, or download it")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if not head:
        raise UserError(f"{path}: found an empty file, expected a checkpoint; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: found a git-lfs pointer, expected the file it stands for; run `git lfs pull`, or download it")
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        raise UserError(f"{path}: found a web page, expected a checkpoint; download it again")
    return head


def _stand_ins(records: Iterable[str]) -> contextlib.AbstractContextManager[None]:
    """Let the unpickler put harmless objects in the place of `INERT` and of libraries' `records`."""
    inert = ((value, name) for name, value in INERT.items())
    return torch.serialization.safe_globals([*inert, *((RecordedCall, name) for name in records)])


def _refusal(path: Path, names: Sequence[str]) -> str:
    found = f"{path}: found {some(names)}, which may run code while loading"
    return f"{found}, expected nothing but data; pass --trust-checkpoint if you trust its author"


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


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Tell whether a name fits any of the shell-style patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def check_fit(given: dict[str, Tensor], expected: dict[str, Tensor], source: str, network: str) -> None:
    """Raise `UserError` unless tensors have the names, shapes and kinds of those of a network."""
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    misshapen = [
        f"{name} {_shape(given[name])} for {_shape(tensor)}"
        for name, tensor in expected.items()
        if name in given and _shape(given[name]) != _shape(tensor)
    ]
    of_another_kind = [
        f"{name} {_kind(given[name])} for {_kind(tensor)}"
        for name, tensor in expected.items()
        if isinstance(given.get(name), Tensor) and _kind(given[name]) != _kind(tensor)
    ]
    kinds = ("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen), ("of another type", of_another_kind)
    found = "; ".join(f"{len(names)} of {len(expected)} {kind}: {some(names)}" for kind, names in kinds if names)
    if found:
        raise UserError(f"{source}: does not fit {network} ({found}); check that the configuration belongs to these weights")


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _kind(value: Any) -> str:
    """Say what numbers a tensor holds."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.is_quantized or value.layout != torch.strided or value.is_nested:
        return "quantised" if value.is_quantized else "sparse"
    return "floating-point" if value.dtype in FLOATS else str(value.dtype).removeprefix("torch.")


def write_shards(folder: Path, stem: str, tensors: Iterable[tuple[str, Tensor]], shard_size: int = SHARD_SIZE) -> None:
    """Write tensors as safetensors files of at most `shard_size` bytes with an index, holding one file's worth in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    total = size = 0

    def flush() -> None:
        contiguous = {name: tensor.contiguous() for name, tensor in pending.items()}
        with writing():
            safetensors.torch.save_file(contiguous, folder / f"{len(shards)}.partial", {"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        if pending and size + tensor.nbytes > shard_size:
            flush()
            size = 0
        pending[name] = tensor
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    index = {}
    for number, contained in enumerate(shards):
        final = f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{number}.partial").rename(folder / final)
        index |= dict.fromkeys(contained, final)
    if len(shards) > 1:
        write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
