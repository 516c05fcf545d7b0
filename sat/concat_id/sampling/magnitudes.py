"""How much of a step's change carries over to the next: measured once for some weights and a size, as `--cache mag` needs to know."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from concat_id.config.schema import Config
from concat_id.distributed import from_first, rank
from concat_id.errors import tell
from concat_id.files.json_files import recall_json, write_json
from concat_id.models.backbones import weight_digests
from concat_id.sampling.sharing import Sharing

FILE = ".magnitude_ratios.json"  # of a folder of results


def magnitude_ratios(config: Config, measure: Callable[[], list[float]], folder: Path | None, sharing: Sharing | None) -> list[float]:
    """Return the ratio of every step's magnitude to that of the step before: from `folder`, else `measure` them and keep them there.

    Ma et al. 2025 (MagCache) found that they hardly depend on the prompt.
    """
    args, sampler = config.args, config.model.sampler
    network = weight_digests(config)["transformer"], args.quantize, args.dtype_name
    size = args.sampling_image_size, args.sampling_num_frames, sampler.name, sampler.num_inference_steps, config.model.schedule.shift
    key = hashlib.sha256(repr((network, size)).encode()).hexdigest()
    known = (recall_json(folder / FILE) or {}) if folder and not (sharing and rank()) else {}
    found = from_first(known.get(key)) if sharing else known.get(key)
    if found:
        return found
    if rank() == 0:
        tell("measuring how much steps change, once for these weights and this size: a video without a prompt, about half the time of one")
    ratios = measure()
    if folder and rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, (recall_json(folder / FILE) or {}) | {key: ratios})
    return ratios
