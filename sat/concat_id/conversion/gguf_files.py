"""A diffusers folder's transformer as one GGUF file of quantised matrices, as `--quantize gguf:FILE` reads it."""

import os
from pathlib import Path

import torch
from tqdm import tqdm

from concat_id.conversion.lazy import lazy_files
from concat_id.errors import UserError
from concat_id.files.paths import written_whole
from concat_id.models.quantization import is_kept
from concat_id.weights.folders import MERGED, require_nothing_beside, weight_files

BLOCK = 32  # neighbouring numbers of a row that share a scale


def to_gguf(source: Path, target: Path, kind: str) -> int:
    """Write the transformer of a diffusers folder; returns how many matrices are of `kind`.

    Those that `quantization.KEPT` names stay in 16 bits, and what is no matrix in 32. Raises `UserError` for what cannot be written.
    """
    try:
        import gguf
    except ImportError as error:
        raise UserError("gguf: not installed; run bash scripts/setup.sh acceleration") from error

    if target.suffix != ".gguf" or os.path.lexists(target):
        raise UserError(f"{target}: {'exists already' if os.path.lexists(target) else 'expected the ending .gguf'}; choose another name")
    require_nothing_beside(source, MERGED)
    folder = source / "transformer" if os.path.isdir(source / "transformer") else source
    tensors, count = lazy_files(weight_files(folder, ("diffusion_pytorch_model",))), 0
    with written_whole(target) as temporary:
        writer = gguf.GGUFWriter(temporary, "concat-id")
        for name in tqdm(tensors, "transformer", unit="tensor"):
            numbers = tensors[name].to(torch.float32).numpy()
            wanted = numbers.ndim == 2 and not is_kept(name) and numbers.shape[1] % BLOCK == 0
            type_ = gguf.GGMLQuantizationType[kind if wanted else "F16" if numbers.ndim > 1 else "F32"]
            writer.add_tensor(name, gguf.quants.quantize(numbers, type_), raw_dtype=type_)
            count += wanted
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return count
