"""Small random Wan weights in Wan's own formats; `python tests/tiny_wan.py` writes those of models/mini/wan again."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "sat"), str(ROOT / "tests")]

import torch  # noqa: E402
import yaml  # noqa: E402

from concat_id.config.loading import load_config  # noqa: E402

STAGES = {"first_stage.pt": False, "second_stage_adaln.pt": True}


def write_wan_transformers(folder: Path, transformer, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
    """Write both variants of a transformer of these sizes, in Wan's names."""
    import dataclasses

    from concat_id.models.wan.transformer import WanDiffusionTransformer
    from concat_id.models.wan.weights import PREFIX, to_native_names

    folder.mkdir(parents=True, exist_ok=True)
    for name, ref_modulation in STAGES.items():
        network = WanDiffusionTransformer(dataclasses.replace(transformer, ref_modulation=ref_modulation))
        generator = torch.Generator().manual_seed(seed)
        for parameter_name, parameter in network.named_parameters():
            mean = 1.0 if "norm" in parameter_name and parameter_name.endswith("weight") else 0.0
            torch.nn.init.normal_(parameter, mean, 0.05, generator=generator)
        tensors = {key.removeprefix(PREFIX): tensor.to(dtype) for key, tensor in network.state_dict().items()}
        torch.save(to_native_names(tensors, transformer.num_layers), folder / name)


def write_tiny_wan(folder: Path) -> Path:
    """Write a whole Wan in Wan's names, UMT5 and its VAE included; returns a YAML file that goes after configs/wan_mini.yaml."""
    from diffusers import AutoencoderKLWan
    from tiny_model import write_text_encoder
    from transformers import UMT5Config, UMT5EncoderModel

    from concat_id.models.wan import autoencoder as wan_autoencoder
    from concat_id.models.wan import text_encoder as wan_text_encoder

    wan, concat_id = folder / "Wan-AI" / "Wan2.1-T2V-1.3B", folder / "Concat-ID-Wan"
    own = {
        "text_encoder": {"kind": "umt5", "path": str(wan / "models_t5_umt5-xxl-enc-bf16.pth"), "max_length": 16},
        "autoencoder": {"kind": "wan", "path": str(wan / "Wan2.1_VAE.pth"), "block_out_channels": [8, 8, 16, 16], "layers_per_block": 1},
        "transformer": {"text_hidden_size": 32, "text_length": 16, "latent_height": 8, "latent_width": 12, "num_frames": 9},
        "sampler": {"num_inference_steps": 2},
    }
    (folder / "wan.yaml").write_text(yaml.safe_dump({"model": own, "args": {"load": str(concat_id / "first_stage.pt")}}))
    config = load_config([ROOT / "configs" / "wan_mini.yaml", folder / "wan.yaml"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_wan_transformers(concat_id, config.model.transformer)
        write_text_encoder(wan / "google" / "umt5-xxl", 32)  # for its tokenizer
        for file in (wan / "google" / "umt5-xxl").glob("*"):
            if file.name != "spiece.model":
                file.unlink()
        sizes = {"vocab_size": 256, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4}
        encoder = UMT5EncoderModel(UMT5Config(feed_forward_proj="gated-gelu", **sizes))
        theirs = {value: name for name, value in wan_text_encoder.native_names(1).items()}
        torch.save({theirs[name]: tensor for name, tensor in encoder.state_dict().items() if name in theirs}, own["text_encoder"]["path"])
        autoencoder = AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 2, 2], num_res_blocks=1)
        torch.save(wan_autoencoder.to_native_names(autoencoder.state_dict(), 4, 1), own["autoencoder"]["path"])
    return folder / "wan.yaml"


if __name__ == "__main__":
    mini = load_config([ROOT / "configs" / "wan_mini.yaml"]).model.transformer
    write_wan_transformers(ROOT / "models" / "mini" / "wan", mini, torch.bfloat16)
