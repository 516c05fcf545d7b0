"""How much of a step's change carries over to the next: measured once for some weights and a size, as `--cache mag` needs to know."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from concat_id.diffusion.denoiser import Condition
from concat_id.distributed import rank
from concat_id.errors import tell
from concat_id.files.json_files import recall_json, write_json
from concat_id.models.acceleration import StepCache
from concat_id.models.backbones import weight_digests

if TYPE_CHECKING:
    from concat_id.sampling.pipeline import VideoPipeline

FILE = ".magnitude_ratios.json"  # of a folder of results


def magnitude_ratios(pipeline: "VideoPipeline", folder: Path | None) -> list[float]:
    """Return the ratio of every step's magnitude to that of the step before, from `folder` or a video without prompt and references.

    Ma et al. 2025 (MagCache) found that they hardly depend on the prompt.
    """
    config, sharing = pipeline.config, pipeline.sharing
    args, sampler = config.args, config.model.sampler
    network = weight_digests(config)["transformer"], args.quantize, args.dtype_name
    size = args.sampling_image_size, args.sampling_num_frames, sampler.name, sampler.num_inference_steps, config.model.schedule.shift
    key = hashlib.sha256(repr((network, size)).encode()).hexdigest()
    known = (recall_json(folder / FILE) or {}) if folder and rank() == 0 else {}
    found = sharing.agreed(known.get(key)) if sharing else known.get(key)
    if found:
        return found
    if rank() == 0:
        tell("measuring how much steps change, once for these weights and this size: a video without a prompt, about half the time of one")
    model = config.model.transformer
    text = torch.zeros(1, model.text_length, model.text_hidden_size, dtype=pipeline.dtype, device=pipeline.placement.device)
    cache = StepCache(pipeline.transformer.network, "mag", None, sampler.num_inference_steps)
    try:
        pipeline.denoise(Condition(text, None), None, lambda step, timestep: 1.0, seed=0, cache=cache)
        ratios = cache.ratios()
    finally:
        cache.remove()
    if folder and rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, (recall_json(folder / FILE) or {}) | {key: ratios})
    return ratios
