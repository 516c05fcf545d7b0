"""A whole Wan model with small random weights, every one of which counts, written in the formats of the released one."""

import dataclasses
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from tiny_model import write_text_encoder
from transformers import UMT5Config, UMT5EncoderModel

from concat_id.config.wan import WanTransformerConfig
from concat_id.models.wan.autoencoder import to_native_names as native_autoencoder
from concat_id.models.wan.text_encoder import native_names as native_text_encoder
from concat_id.models.wan.transformer import WanDiffusionTransformer
from concat_id.models.wan.weights import PREFIX, to_native_names

WIDTH = 32  # of the text embeddings
TINY = WanTransformerConfig(
    num_layers=2, hidden_size=48, num_attention_heads=2, ffn_dim=64, time_embed_dim=32, text_hidden_size=WIDTH, text_length=24,
    latent_height=8, latent_width=12, num_frames=9,
)  # fmt: skip
TINY_ADALN = dataclasses.replace(TINY, ref_modulation=True)
TINY_VAE = {"base_dim": 8, "num_res_blocks": 1, "dim_mult": [1, 1, 2, 2]}


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


def write_parts(folder: Path, num_layers: int) -> None:
    """Write Wan2.1_VAE.pth, UMT5 of so many layers and its tokenizer."""
    torch.manual_seed(0)
    autoencoder = AutoencoderKLWan(**TINY_VAE)
    tokenizer = folder / "google" / "umt5-xxl"
    write_text_encoder(tokenizer, WIDTH)
    torch.save(native_autoencoder(autoencoder.state_dict(), 4, TINY_VAE["num_res_blocks"]), folder / "Wan2.1_VAE.pth")
    for file in (tokenizer / "model.safetensors", tokenizer / "config.json"):
        file.unlink()
    sizes = {"vocab_size": 256, "d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": num_layers, "num_heads": 4}
    tensors = UMT5EncoderModel(UMT5Config(feed_forward_proj="gated-gelu", **sizes)).state_dict()
    native = {wan: tensors[theirs] for wan, theirs in native_text_encoder(num_layers).items()}
    torch.save(native, folder / "models_t5_umt5-xxl-enc-bf16.pth")


def write_native_wan(folder: Path) -> Path:
    """Write first_stage.pt, second_stage_adaln.pt, diffusion_pytorch_model.safetensors and the other parts."""
    with torch.random.fork_rng():
        write_parts(folder, num_layers=2)
        torch.save(native_tensors(random_transformer(TINY, 1)), folder / "first_stage.pt")
        torch.save(native_tensors(random_transformer(TINY_ADALN, 2)), folder / "second_stage_adaln.pt")
        save_file(native_tensors(random_transformer(TINY, 3)), folder / "diffusion_pytorch_model.safetensors")
    return folder
