"""A whole ConsisID with random weights, in the layout of the released folder: a small one, or one of the released sizes."""

from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler, ConsisIDTransformer3DModel
from tiny_model import write_text_encoder
from transformers import T5Config, T5EncoderModel

from concat_id.config.neighbours import FACE_FILES

WIDTH, VECTOR, HIDDEN = 48, 24, (5, 16)  # of the network's tokens; of a face's vector; CLIP's tokens and their width
SMALL = {"num_attention_heads": 3, "attention_head_dim": 16, "time_embed_dim": 32, "text_embed_dim": 32, "num_layers": 4,
         "sample_height": 4, "sample_width": 6, "sample_frames": 9, "LFE_id_dim": VECTOR, "LFE_vit_dim": HIDDEN[1], "LFE_depth": 5,
         "LFE_dim_head": 8, "LFE_num_heads": 2, "LFE_num_id_token": 2, "LFE_num_querie": 4, "LFE_output_dim": WIDTH // 3 * 2,
         "cross_attn_dim_head": 8, "cross_attn_num_heads": 2}  # fmt: skip
RELEASED = {"num_attention_heads": 48, "num_layers": 42}  # the rest is as diffusers' defaults have it: 6.16 B
T5_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "snr_shift_scale": 1.0,
            "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}  # fmt: skip


def write_tiny_consisid(folder: Path) -> Path:
    """Write the small model under `folder` and return a YAML file that points at it, for `--base configs/consisid.yaml`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _write_parts(folder / "ConsisID", SMALL, {"block_out_channels": (32,) * 4, "layers_per_block": 1}, max_shard_size="200KB")
    sizes = {"height": 32, "width": 48, "num_frames": 9, "sampler": {"num_inference_steps": 3}}
    return _write_paths(folder, sizes)


def write_released_sizes(folder: Path, device: torch.device) -> Path:
    """Write a model of the released sizes, 22 GB in bfloat16, whose weights are drawn on `device`."""
    torch.set_default_dtype(torch.bfloat16)
    with device:
        _write_parts(folder / "ConsisID", RELEASED, {"block_out_channels": (128, 256, 256, 512), "layers_per_block": 3})
        T5EncoderModel(T5Config(**T5_XXL)).save_pretrained(folder / "ConsisID" / "text_encoder")
    torch.set_default_dtype(torch.float32)
    return _write_paths(folder, {})


def _write_parts(model: Path, network: dict[str, Any], vae: dict[str, Any], **saving: Any) -> None:
    write_text_encoder(model / "text_encoder", 32)
    (model / "tokenizer").mkdir()
    (model / "text_encoder" / "spiece.model").rename(model / "tokenizer" / "spiece.model")
    positions = {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True}
    transformer = ConsisIDTransformer3DModel(in_channels=32, is_train_face=True, **positions, **network)
    for name, parameter in transformer.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=5 / transformer.inner_dim)
    transformer.save_pretrained(model / "transformer", **saving)
    kinds = {f"{way}_block_types": (f"CogVideoX{way.title()}Block3D",) * 4 for way in ("down", "up")}
    AutoencoderKLCogVideoX(scaling_factor=0.7, **vae, **kinds).save_pretrained(model / "vae")
    CogVideoXDPMScheduler(**SCHEDULE).save_pretrained(model / "scheduler")
    for name in FACE_FILES:
        (model / "face_encoder" / name).parent.mkdir(parents=True, exist_ok=True)
        (model / "face_encoder" / name).write_bytes(b"a face model")


def _write_paths(folder: Path, settings: dict[str, Any]) -> Path:
    (folder / "paths.yaml").write_text(yaml.safe_dump({"model": {"path": str(folder / "ConsisID")} | settings}))
    return folder / "paths.yaml"
