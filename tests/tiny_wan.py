"""Small random Wan weights in Wan's own formats; `python tests/tiny_wan.py` writes those of models/mini/wan again."""

import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "sat"), str(ROOT / "tests")]

import torch  # noqa: E402
import yaml  # noqa: E402
from wan_native import TINY_VAE, WIDTH, native_tensors, random_transformer, write_parts  # noqa: E402

from concat_id.config.loading import load_config  # noqa: E402

STAGES = {"first_stage.pt": False, "second_stage_adaln.pt": True}


def write_wan_transformers(folder: Path, transformer, dtype: torch.dtype = torch.float32) -> None:
    """Write both variants of a transformer of these sizes, in Wan's names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, ref_modulation in STAGES.items():
        network = random_transformer(dataclasses.replace(transformer, ref_modulation=ref_modulation), std=0.05, modulation=0.05)
        torch.save(native_tensors(network.to(dtype)), folder / name)


def write_tiny_wan(folder: Path) -> Path:
    """Write a whole Wan in Wan's names, UMT5 and its VAE included; returns a YAML file that goes after configs/wan_mini.yaml."""
    wan, concat_id = folder / "Wan-AI" / "Wan2.1-T2V-1.3B", folder / "Concat-ID-Wan"
    channels = [TINY_VAE["base_dim"] * factor for factor in TINY_VAE["dim_mult"]]
    own = {
        "text_encoder": {"kind": "umt5", "path": str(wan / "models_t5_umt5-xxl-enc-bf16.pth"), "max_length": 16},
        "autoencoder": {"kind": "wan", "path": str(wan / "Wan2.1_VAE.pth"), "block_out_channels": channels, "layers_per_block": 1},
        "transformer": {"text_hidden_size": WIDTH, "text_length": 16, "latent_height": 8, "latent_width": 12, "num_frames": 9},
        "sampler": {"num_inference_steps": 2},
    }
    (folder / "wan.yaml").write_text(yaml.safe_dump({"model": own, "args": {"load": str(concat_id / "first_stage.pt")}}))
    with torch.random.fork_rng():
        write_parts(wan, num_layers=1)
        write_wan_transformers(concat_id, load_config([ROOT / "configs" / "wan_mini.yaml", folder / "wan.yaml"]).model.transformer)
    return folder / "wan.yaml"


if __name__ == "__main__":
    mini = load_config([ROOT / "configs" / "wan_mini.yaml"]).model.transformer
    write_wan_transformers(ROOT / "models" / "mini" / "wan", mini, torch.bfloat16)
