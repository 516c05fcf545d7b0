"""Small random Wan weights in Wan's own formats; `python tests/tiny_wan.py` writes those of models/mini/wan again."""

import dataclasses
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "sat"), str(ROOT / "tests")]

import torch  # noqa: E402
import yaml  # noqa: E402
from diffusers import AutoencoderKLWan  # noqa: E402
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tiny_model import write_text_encoder  # noqa: E402
from transformers import UMT5Config, UMT5EncoderModel  # noqa: E402

from concat_id.config.loading import load_config  # noqa: E402
from concat_id.config.wan import WanTransformerConfig  # noqa: E402
from concat_id.models.wan.text_encoder import native_names as native_text_encoder  # noqa: E402
from concat_id.models.wan.transformer import WanDiffusionTransformer  # noqa: E402
from concat_id.models.wan.weights import PREFIX, to_native_names  # noqa: E402

WIDTH = 32  # of the text embeddings
TINY = WanTransformerConfig(
    num_layers=2, hidden_size=48, num_attention_heads=2, ffn_dim=64, time_embed_dim=32, text_hidden_size=WIDTH, text_length=24,
    latent_height=8, latent_width=12, num_frames=9,
)  # fmt: skip
TINY_ADALN = dataclasses.replace(TINY, ref_modulation=True)
TINY_VAE = {"base_dim": 8, "num_res_blocks": 2, "dim_mult": [1, 2, 4, 4]}


def random_transformer(config: WanTransformerConfig, seed: int = 0, std: float = 0.1, modulation: float = 0.3) -> WanDiffusionTransformer:
    """A transformer whose modulations and output are large enough to show."""
    network = WanDiffusionTransformer(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, mean, modulation if "scale_shift" in name else std, generator)
    return network.requires_grad_(False)


def native_tensors(network: WanDiffusionTransformer) -> dict[str, torch.Tensor]:
    """Its tensors under Wan's own names."""
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in network.state_dict().items()}
    return to_native_names(tensors, network.config.num_layers)


def native_autoencoder(tensors: dict) -> dict:
    """Rename diffusers' tensors to the names of Wan2.1_VAE.pth."""
    places = [f"{side}.middle.{index}" for side in ("encoder", "decoder") for index in range(3)]
    places += [f"encoder.downsamples.{index}" for index in range(11)] + [f"decoder.upsamples.{index}" for index in range(15)]
    parts = ("residual.0", "residual.2", "residual.3", "residual.6", "shortcut", "resample.1", "time_conv", "norm", "to_qkv", "proj")
    modules = [f"{place}.{part}" for place in places for part in parts] + ["conv1", "conv2"]
    modules += [f"{side}.{part}" for side in ("encoder", "decoder") for part in ("conv1", "head.0", "head.2")]
    names = [f"{module}.{kind}" for module in modules for kind in ("weight", "bias", "gamma")]
    native = convert_wan_vae_to_diffusers(dict(zip(names, names, strict=True)))
    return {native[name]: tensor for name, tensor in tensors.items()}


def write_transformers(folder: Path, config: WanTransformerConfig, dtype: torch.dtype = torch.float32, seed: int = 0, **spread) -> None:
    """Write both variants of a transformer of these sizes, in Wan's names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, ref_modulation in {"first_stage.pt": False, "second_stage_adaln.pt": True}.items():
        network = random_transformer(dataclasses.replace(config, ref_modulation=ref_modulation), seed, **spread)
        torch.save(native_tensors(network.to(dtype)), folder / name)


def write_parts(folder: Path) -> None:
    """Write Wan2.1_VAE.pth, UMT5 of two layers and its tokenizer."""
    torch.manual_seed(0)
    autoencoder = AutoencoderKLWan(**TINY_VAE)
    tokenizer = folder / "google" / "umt5-xxl"
    write_text_encoder(tokenizer, WIDTH)
    torch.save(native_autoencoder(autoencoder.state_dict()), folder / "Wan2.1_VAE.pth")
    for file in (tokenizer / "model.safetensors", tokenizer / "config.json"):
        file.unlink()
    sizes = {"vocab_size": 256, "d_model": WIDTH, "d_kv": 16, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    config = UMT5Config(feed_forward_proj="gated-gelu", relative_attention_num_buckets=16, **sizes)
    tensors = UMT5EncoderModel(config).state_dict()
    native = {wan: tensors[theirs] for wan, theirs in native_text_encoder(2).items()}
    native |= {name: torch.rand(WIDTH) + 0.5 for name in native if "norm" in name}
    torch.save(native, folder / "models_t5_umt5-xxl-enc-bf16.pth")


def write_native_wan(folder: Path) -> Path:
    """Write first_stage.pt, second_stage_adaln.pt, diffusion_pytorch_model.safetensors and the other parts in one folder."""
    with torch.random.fork_rng():
        write_parts(folder)
        write_transformers(folder, TINY, seed=1)
        save_file(native_tensors(random_transformer(TINY, 3)), folder / "diffusion_pytorch_model.safetensors")
    return folder


def write_tiny_wan(folder: Path) -> Path:
    """Write a whole Wan in the folders of the released one; returns a YAML file that goes after configs/wan_mini.yaml."""
    wan, concat_id = folder / "Wan-AI" / "Wan2.1-T2V-1.3B", folder / "Concat-ID-Wan"
    channels = [TINY_VAE["base_dim"] * factor for factor in TINY_VAE["dim_mult"]]
    own = {
        "text_encoder": {"kind": "umt5", "path": str(wan / "models_t5_umt5-xxl-enc-bf16.pth"), "max_length": 16},
        "autoencoder": {"kind": "wan", "path": str(wan / "Wan2.1_VAE.pth"), "block_out_channels": channels, "layers_per_block": 2},
        "transformer": {"text_hidden_size": WIDTH, "text_length": 16, "latent_height": 8, "latent_width": 12, "num_frames": 9},
        "sampler": {"num_inference_steps": 2},
    }
    (folder / "wan.yaml").write_text(yaml.safe_dump({"model": own, "args": {"load": str(concat_id / "first_stage.pt")}}))
    with torch.random.fork_rng():
        write_parts(wan)
        config = load_config([ROOT / "configs" / "wan_mini.yaml", folder / "wan.yaml"]).model.transformer
        write_transformers(concat_id, config, std=0.05, modulation=0.05)
    return folder / "wan.yaml"


if __name__ == "__main__":
    mini = load_config([ROOT / "configs" / "wan_mini.yaml"]).model.transformer
    write_transformers(ROOT / "models" / "mini" / "wan", mini, torch.bfloat16, std=0.05, modulation=0.05)
