"""The model card of a converted folder: what it is, where each part came from, how to use it."""

from collections.abc import Mapping
from pathlib import Path

from concat_id.config import ModelConfig
from concat_id.conversion.lora import DIFFUSERS_FILE
from concat_id.conversion.weight_sources import WeightSource
from concat_id.files import resolve_path
from concat_id.weights import content_digest

HEAD = """---
library_name: diffusers
pipeline_tag: text-to-video
---
# Concat-ID, converted for diffusers

{layers} layers of width {width}; up to {frames} frames of {height}x{columns} with {refs} reference images.

```python
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import export_to_video
from PIL import Image

folder = "."
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True, torch_dtype=torch.bfloat16)
{lora}pipe.enable_model_cpu_offload()
video = pipe("A woman laughs in the rain", reference_images=[Image.open("face.png")], guidance_scale=6).frames[0]
export_to_video(video, "video.mp4", fps=8)
```

References are heads cut out on black, as `sat/sample_video.py` of the project writes them (`reference_1.png`).

## Provenance

| part | converted from | content |
|---|---|---|
"""


def model_card(source: WeightSource, model: ModelConfig, low_rank: str, made_with: Mapping[str, str]) -> str:
    """Text of README.md."""
    t, factor = model.transformer, model.autoencoder.spatial_factor
    kept = source.products is not None and low_rank == "keep"
    head = HEAD.format(
        layers=t.num_layers, width=t.hidden_size, frames=t.num_frames, refs=t.max_refs, height=t.latent_height * factor,
        columns=t.latent_width * factor, lora=f'pipe.load_lora_weights(folder, weight_name="{DIFFUSERS_FILE}")\n' if kept else "",
    )  # fmt: skip
    whole = source.base or source
    rows = [("transformer", whole.path, whole.digest)]
    if source.products is not None:
        rows.append((f"low-rank weights, {'kept' if kept else 'merged into the transformer'}", source.path, source.digest))
    others = (("VAE", model.autoencoder.path), ("text encoder", model.text_encoder.path))
    rows += [(part, path, content_digest(resolve_path(path))) for part, path in others]
    table = "".join(f"| {part} | `{'/'.join(Path(path).parts[-3:])}` | `{digest}` |\n" for part, path, digest in rows)
    tools = ", ".join(f"{name} {number}" for name, number in made_with.items())
    return f"{head}{table}\nConverted with {tools}. The weights keep the licence of what they were converted from.\n"
