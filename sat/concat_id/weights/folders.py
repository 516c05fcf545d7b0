"""Where weights lie on disk: SAT's checkpoints, Hugging Face's files and their shards, and what a user named in place of one."""

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from concat_id.errors import UserError, one_line
from concat_id.files.json_files import read_json
from concat_id.files.paths import MODEL_STATES, kind_of, read_text
from concat_id.weights.low_rank import DIFFUSERS_FILE
from concat_id.weights.low_rank import FILE as LOW_RANK_FILE

OF_ANY_RANK = MODEL_STATES.replace("00", "*")
STEMS = "model", "pytorch_model", "diffusion_pytorch_model"  # of weights, in the layouts of transformers and diffusers
VARIANT = re.compile(r"\.\w+\.safetensors|\.safetensors\.index\.\w+\.json")  # what follows the stem where diffusers saved a variant
DIFFUSERS_FILES = ("model_index.json", "transformer/config.json", "diffusion_pytorch_model*")

# What to do with weights of another kind, told by a part of their names.
MERGE = "expected whole weights: these are low-rank ones; merge them: python sat/convert_weights.py merge-lora {} FOLDER"
OF_OTHERS = "expected whole weights: these are low-rank ones in another program's names; merge them where they were made"
MERGED = "expected whole weights; convert again without --lora keep"
ADD = MERGED + ", or add them: python sat/convert_weights.py to-sat {} NEW.pt"
CONVERT = "expected a SAT checkpoint: this is diffusers' kind; convert it: python sat/convert_weights.py to-sat {} FOLDER"
WAN = "expected CogVideoX's weights: these are Wan's; use them with python inference_wan.py, or a model such as configs/wan_1_3b.yaml"
COGVIDEOX = "expected Wan's weights: these are CogVideoX's; use them with a model such as configs/cogvideox_5b.yaml"
KINDS = (
    (("base_model.model.", ".lora_down.", ".lora_up."), OF_OTHERS),  # the first is peft's, whose scale stands in another file
    ((".lora_A.", ".lora_B.", ".down.weight", ".up.weight"), MERGE),
    (("head.modulation", "condition_embedder.", "time_projection.", "text_embedding."), WAN),
    (("transformer_blocks.", "time_embedding.linear_"), CONVERT),
)
AT_WAN = ((("transformer_blocks.", "transformer.layers.", "mixins."), COGVIDEOX), *KINDS[:2])  # where Wan's weights are expected


def _filled(advice: str, folder: Path) -> str:
    return advice.format(shlex.quote(str(folder)))


def find_sat_checkpoint(path: Path) -> Path:
    """Find the one file of tensors in a SAT checkpoint: in a folder with `latest`, in the tag's folder, or the file itself."""
    if (found := kind_of(path)) == "a file":
        return path
    if found != "a folder":
        found = "no such folder" if found == "no such file" else f"found {found}"
        raise UserError(f"{path}: {found}, expected a SAT checkpoint; download the weights or correct the path")
    if not any(path.glob(OF_ANY_RANK)):
        path = _tag_folder(path)
    ranks = sorted(path.glob(OF_ANY_RANK))
    if len(ranks) > 1:
        raise UserError(f"{path}: found {len(ranks)} model-parallel parts, expected {MODEL_STATES} alone; merge them first")
    if not ranks:
        _require_whole(path)
        kind = "ZeRO-3 parts" if any(path.glob("z3_rank_*")) else f"no {MODEL_STATES}"
        raise UserError(f"{path}: found {kind}, expected {MODEL_STATES}; download or gather the weights again")
    return ranks[0]


def read_tag(folder: Path) -> str | None:
    """Return what `latest` says, None if there is none. Raises `UserError` for what is no name of a folder in `folder`."""
    latest = folder / "latest"
    if kind_of(latest) != "a file":
        return None
    tag = read_text(latest, "the name of a checkpoint", errors="replace").strip()
    if tag in ("", ".", "..") or "/" in tag or kind_of(folder / tag) != "a folder":
        raise UserError(f"{latest}: names the tag {one_line(tag)[:80]!r}, but {folder} has no such folder; correct it or download again")
    return tag


def _tag_folder(folder: Path) -> Path:
    tag = read_tag(folder)
    if tag is None or os.path.isfile(folder / LOW_RANK_FILE):  # which to-sat once kept beside the tag's folder
        _require_whole(folder)
        entries = sorted(folder.iterdir())
        whole = [entry for entry in entries if entry.stem in STEMS and entry.suffix in (".safetensors", ".bin")]
        inner = [str(entry) for entry in entries if entry in whole or os.path.isfile(entry / "latest")]
        remedy = f"name {' or '.join(inner[:3])}" if inner else "download the weights or correct the path"
        raise UserError(f"{folder}: found {some([entry.name for entry in entries])}, expected a file 'latest' with the tag; {remedy}")
    return folder / tag


def _require_whole(folder: Path) -> None:
    """Raise `UserError` with what to type for a folder of low-rank weights, or of diffusers' kind."""
    if os.path.isfile(folder / LOW_RANK_FILE):
        raise UserError(f"{folder}: found {LOW_RANK_FILE}, {_filled(MERGE, folder)}")
    if is_diffusers(folder):
        raise UserError(f"{folder}: found {some(sorted(entry.name for entry in folder.iterdir()))}, {_filled(CONVERT, folder)}")


def is_diffusers(path: Path) -> bool:
    """Whether this is a folder in diffusers' layout, whole or not."""
    return any(any(path.glob(pattern)) for pattern in DIFFUSERS_FILES)


def require_nothing_beside(folder: Path, advice: str = ADD) -> None:
    """Raise `UserError` for a diffusers folder with low-rank weights beside the rest, which would be left out."""
    if os.path.exists(folder / DIFFUSERS_FILE):
        raise UserError(f"{folder}: found {DIFFUSERS_FILE}, {_filled(advice, folder)}")


def what_to_do_with(names: Any, path: Path, kinds: Iterable[tuple[tuple[str, ...], str]] = KINDS) -> str | None:
    """Say which kind of weights has these names, and what to type; None for those that nothing is known of."""
    names = [name for name in names if isinstance(name, str)] if isinstance(names, Iterable) else []
    advice = next((advice for marks, advice in kinds if any(mark in name for name in names for mark in marks)), None)
    return advice and _filled(advice, path if advice == MERGE else path.parent)


def weight_files(folder: str | Path, stems: Iterable[str] = ("model", "pytorch_model"), variants: bool = True) -> list[Path]:
    """List the files of a Hugging Face folder's weights, one or the shards of an index, safetensors before pickles before a variant.

    Libraries that read a folder themselves take no variant unless they are told which.
    """
    folder = Path(folder)
    stems = tuple(stems)
    for suffix in (".safetensors", ".bin"):
        for single in (folder / f"{stem}{suffix}" for stem in stems):
            if kind_of(single) != "no such file":
                return [single]
            index = single.with_name(f"{single.name}.index.json")
            if kind_of(index) != "no such file":
                return _shards(index)
    present = sorted(folder.glob("*")) if variants else []
    found = [path for path in present for stem in stems if path.name.startswith(stem) and VARIANT.fullmatch(path.name[len(stem) :])]
    if len(found) == 1:
        return _shards(found[0]) if found[0].suffix == ".json" else found
    if found:
        raise UserError(f"{folder}: found {some(path.name for path in found)}, expected one variant; keep the one you want")
    if os.path.isfile(folder / LOW_RANK_FILE):
        raise UserError(f"{folder}: found {LOW_RANK_FILE}, {_filled(MERGE, folder)}")
    expected = " or ".join(f"{stem}.safetensors" for stem in stems)
    raise UserError(f"{folder}: found no weights, expected {expected} (or .bin); download it again")


def _shards(index: Path) -> list[Path]:
    content = read_json(index, "an index of shards", "download it again")
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{index}: weight_map: found {type(names).__name__}, expected names of tensors with their files; download it again")
    names = sorted(set(names.values()))
    if outside := [name for name in names if "/" in name or name in ("", ".", "..")]:
        raise UserError(f"{index}: weight_map: found the file {one_line(outside[0])[:80]!r}, expected one beside it; download it again")
    missing = [name for name in names if kind_of(index.parent / name) != "a file"]
    if missing:
        raise UserError(f"{index}: names {len(names)} files, of which {some(missing)} are missing; download them")
    return [index.parent / name for name in names]


def some(names: Iterable[Any], limit: int = 3) -> str:
    """Name the first few."""
    names = [one_line(f"{name!s:.80}") for name in names]
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "") or "nothing"
