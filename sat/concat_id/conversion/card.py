"""The model card of a converted folder: what it is, where each part came from, how to use it."""

from pathlib import Path

from concat_id.config.cogvideox import ModelConfig
from concat_id.config.wan import WanModelConfig, WanTransformerConfig
from concat_id.conversion.low_rank_products import DIFFUSERS_FILE
from concat_id.conversion.weight_sources import WeightSource
from concat_id.files.paths import MODEL_STATES, resolve_path
from concat_id.versions import versions
from concat_id.weights.loading import content_digest

TOOLS = "diffusers", "torch"
APACHE, COGVIDEOX_5B = "license: apache-2.0\n", "https://huggingface.co/THUDM/CogVideoX-5b/blob/main/LICENSE"
BASES = {  # by layers and width
    (42, 3072): f"base_model: THUDM/CogVideoX-5b\nlicense: other\nlicense_name: cogvideox-license\nlicense_link: {COGVIDEOX_5B}\n",
    (30, 1920): f"base_model: THUDM/CogVideoX-2b\n{APACHE}",
    (30, 1536): f"base_model: Wan-AI/Wan2.1-T2V-1.3B\n{APACHE}",
}
CARD = """---
library_name: diffusers
pipeline_tag: text-to-video
{base}---
# {title}, converted for diffusers

[Concat-ID](https://arxiv.org/abs/2503.14151): {layers} layers of width {width}; {about}, for {people}.

```python
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import export_to_video
from PIL import Image

folder = "."
pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True, torch_dtype=torch.bfloat16)
{lora}pipe.enable_model_cpu_offload()
face = Image.open("face.png")
video = pipe("A woman laughs in the rain", reference_images=[face], {options}).frames[0]
export_to_video(video, "video.mp4", fps={fps})
```

References are heads cut out on black, as `{script}` of the project writes them (`reference_1.png`).

## Provenance

| part | converted from | content |
|---|---|---|
{table}
Converted with {tools}. Code (`*.py`): Apache-2.0. The weights keep the licence of what they were converted from{licence}.
"""


def model_card(source: WeightSource, model: ModelConfig, low_rank: str) -> str:
    """Text of README.md for a folder of CogVideoX's kind."""
    about = "up to {} frames of {}x{}".format(model.num_frames, *model.largest_size)
    options = ", use_dynamic_cfg=True" if model.sampler.guidance == "dynamic" else ""
    return _card(source, model, low_rank, title="Concat-ID", about=about, options=options, script="sat/sample_video.py")


def wan_card(source: WeightSource, config: WanTransformerConfig, model: WanModelConfig, low_rank: str) -> str:
    """Text of README.md for a folder of Wan's kind."""
    about = "references have modulations of their own (AdaLN)" if config.ref_modulation else "one modulation for all tokens (first stage)"
    size = ", height={}, width={}, num_frames={}".format(*model.largest_size, model.num_frames)
    return _card(source, model, low_rank, title="Concat-ID on Wan2.1", about=about, options=size, script="inference_wan.py")


def _card(source: WeightSource, model: ModelConfig | WanModelConfig, low_rank: str, options: str, **parts: str) -> str:
    """Fill the card in: where each part came from with the digest of its content, whose licence it has, how it is loaded and sampled."""
    kept = source.products is not None and low_rank == "keep"
    whole = source.base or source
    rows = [("transformer", whole.path, whole.digest)]
    if source.products is not None:
        rows.append((f"low-rank weights, {'kept' if kept else 'merged into the transformer'}", source.path, source.digest))
    others = (("VAE", model.autoencoder.path), ("text encoder", model.text_encoder.path))
    rows += [(part, Path(path), content_digest(resolve_path(path))) for part, path in others]
    own = {path: "/".join(path.parts[-2 if path.name == MODEL_STATES else -1 :]) for _, path, _ in rows}  # not the owner's folders
    table = "".join(f"| {part} | `{own[path]}` | `{digest}` |\n" for part, path, digest in rows)
    lora = f'pipe.load_lora_weights(folder, weight_name="{DIFFUSERS_FILE}")  # pip install peft\n' if kept else ""
    layers, width, sampler, people = model.transformer.num_layers, model.transformer.hidden_size, model.sampler, model.trained_refs
    base = BASES.get((layers, width), "")
    options = f"num_inference_steps={sampler.num_inference_steps}, guidance_scale={sampler.guidance_scale:g}{options}"
    if {*sampler.ref_guidance_scale} != {1}:
        options += f", ref_guidance_scale={[*sampler.ref_guidance_scale]}"
    people = "one reference image" if people == 1 else f"up to {people} reference images"
    tools = ", ".join(f"{name} {number}" for name, number in versions(TOOLS).items())
    return CARD.format(base=base, licence="" if base else ": name it here", layers=layers, width=width, people=people, lora=lora,
                       options=options, fps=model.fps, table=table, tools=tools, **parts)  # fmt: skip
