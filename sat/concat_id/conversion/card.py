"""The model card of a converted folder: what it is, where each part came from, how to use it."""

from pathlib import Path

from concat_id.config.cogvideox import ModelConfig
from concat_id.config.wan import WanModelConfig, WanTransformerConfig
from concat_id.conversion.low_rank_products import DIFFUSERS_FILE
from concat_id.conversion.weight_sources import WeightSource
from concat_id.files.paths import resolve_path
from concat_id.versions import versions
from concat_id.weights.loading import content_digest

TOOLS = "diffusers", "torch"
CARD = """---
library_name: diffusers
pipeline_tag: text-to-video
---
# {title}, converted for diffusers

{about}

```python
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import export_to_video
from PIL import Image

folder = "."
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True, torch_dtype=torch.bfloat16)
{lora}pipe.enable_model_cpu_offload()
video = pipe("A woman laughs in the rain", reference_images=[Image.open("face.png")]{options}).frames[0]
export_to_video(video, "video.mp4", fps={fps})
```

References are heads cut out on black, as `{script}` of the project writes them (`reference_1.png`).

## Provenance

| part | converted from | content |
|---|---|---|
{table}
Converted with {tools}. The weights keep the licence of what they were converted from.
"""


def model_card(source: WeightSource, model: ModelConfig, low_rank: str) -> str:
    """Text of README.md for a folder of CogVideoX's kind."""
    t, factor = model.transformer, model.autoencoder.spatial_factor
    about = (
        f"{t.num_layers} layers of width {t.hidden_size}; up to {t.num_frames} frames of {t.latent_height * factor}x"
        f"{t.latent_width * factor} with {t.max_refs} reference images."
    )
    return CARD.format(title="Concat-ID", about=about, options=", guidance_scale=6", fps=model.fps, script="sat/sample_video.py",
                       **_provenance(source, model, low_rank))  # fmt: skip


def wan_card(source: WeightSource, config: WanTransformerConfig, model: WanModelConfig, low_rank: str) -> str:
    """Text of README.md for a folder of Wan's kind."""
    variant = "references have modulations of their own (AdaLN)" if config.ref_modulation else "one modulation for all tokens (first stage)"
    about = f"{config.num_layers} layers of width {config.hidden_size}; {variant}. Trained with one reference image."
    size = ", height={}, width={}, num_frames={}".format(*model.largest_size, model.num_frames)
    return CARD.format(title="Concat-ID on Wan2.1", about=about, options=size, fps=model.fps, script="inference_wan.py",
                       **_provenance(source, model, low_rank))  # fmt: skip


def _provenance(source: WeightSource, model: ModelConfig | WanModelConfig, low_rank: str) -> dict[str, str]:
    """Where each part came from with the digest of its content, and how low-rank weights are loaded."""
    kept = source.products is not None and low_rank == "keep"
    whole = source.base or source
    rows = [("transformer", whole.path, whole.digest)]
    if source.products is not None:
        rows.append((f"low-rank weights, {'kept' if kept else 'merged into the transformer'}", source.path, source.digest))
    others = (("VAE", model.autoencoder.path), ("text encoder", model.text_encoder.path))
    rows += [(part, Path(Path(path).name), content_digest(resolve_path(path))) for part, path in others]
    table = "".join(f"| {part} | `{'/'.join(path.parts[-2:])}` | `{digest}` |\n" for part, path, digest in rows)
    lora = f'pipe.load_lora_weights(folder, weight_name="{DIFFUSERS_FILE}")\n' if kept else ""
    return {"table": table, "lora": lora, "tools": ", ".join(f"{name} {number}" for name, number in versions(TOOLS).items())}
