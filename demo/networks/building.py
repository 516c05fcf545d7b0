"""Networks of the released classes with small sizes and fresh weights, for demo/train_text_encoder.py and demo/gpu_run.py."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from concat_id.config.cogvideox import AutoencoderConfig
from concat_id.files.paths import written_whole
from concat_id.models.autoencoder import AutoencoderKLCogVideoX, VideoAutoencoder, released_settings, to_sat_names

TOKENIZER = "spiece.model"
TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}  # numbers 0, 1, 2
NEIGHBOURS = (1, 17, 2, 18)  # T5's buckets of the distances -1, 1, -2, 2
NEIGHBOUR_BIAS = 6.0
FIRST_LOG_VARIANCE = -6.0  # of latents: from as much noise as signal little can be learned at first
MODULATION = 0.3  # of the usual size, for the kernels by which latents scale and shift the decoder's features


def build_text_encoder(width: int, layers: int, heads: int, hidden: int, num_pieces: int) -> T5EncoderModel:
    """Make a T5 encoder with fresh weights, some of whose heads begin by looking at a neighbour, which teaches it the order early."""
    config = T5Config(
        vocab_size=num_pieces, d_model=width, d_kv=width // heads, d_ff=hidden, num_layers=layers,
        num_decoder_layers=0, num_heads=heads, feed_forward_proj="gated-gelu", dropout_rate=0.0, is_encoder_decoder=False,
        use_cache=False, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = T5EncoderModel(config)
    bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    with torch.no_grad():
        bias.zero_()
        for head, bucket in zip(range(heads - 1), NEIGHBOURS, strict=False):
            bias[bucket, head] = NEIGHBOUR_BIAS
    return model


def write_tokenizer(folder: Path, pieces: bytes, max_length: int) -> T5Tokenizer:
    """Write a sentencepiece model as T5's tokenizer files and return the tokenizer that they make."""
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": max_length, **TOKENS}
    (folder / TOKENIZER).write_bytes(pieces)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return T5Tokenizer.from_pretrained(folder, local_files_only=True)


def matrices(module: nn.Module) -> list[nn.Parameter]:
    """List the weights between hidden layers, which are neither tables nor single rows."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    return [weight for weight in module.parameters() if weight.dim() >= 2 and min(weight.shape[:2]) > 1 and id(weight) not in tables]


@torch.no_grad()
def build_autoencoder(config: AutoencoderConfig, temporal: int) -> VideoAutoencoder:
    """Make an autoencoder with fresh weights that looks at one frame at a time, and whose latents, of `temporal` frames, have little noise.

    Kernels begin with their last moment alone.
    """
    autoencoder = AutoencoderKLCogVideoX.from_config(released_settings(config, temporal))
    for name, weight in autoencoder.named_parameters():
        if weight.dim() == 5 and weight.shape[2] > 1:
            weight[:, :, -1] *= weight.shape[2] ** 0.5  # as much as all moments together had
            weight[:, :, :-1] = 0
        if ".conv_y." in name or ".conv_b." in name:  # the decoder's norms begin as plain ones
            weight.mul_(MODULATION) if weight.dim() > 1 else weight.fill_(float(".conv_y." in name))
    last = autoencoder.encoder.conv_out.conv  # gives means and log variances
    last.weight[config.latent_channels :] *= 0.1
    last.bias[config.latent_channels :] = FIRST_LOG_VARIANCE
    return VideoAutoencoder(autoencoder, scale_factor=1.0)


def write_autoencoder(path: Path, autoencoder: VideoAutoencoder, dtype: torch.dtype) -> None:
    """Write the weights in the released file's format."""
    weights = {name: tensor.to(dtype) for name, tensor in autoencoder.autoencoder.state_dict().items()}
    with written_whole(path) as temporary:
        torch.save({"state_dict": to_sat_names(weights)}, temporary)


@torch.no_grad()
def fold_statistics(autoencoder: VideoAutoencoder, mean: Tensor, std: Tensor) -> None:
    """Change the weights so that latents whose channels had `mean` and `std` (C,) have 0 and 1, and decode to the same pixels."""
    network, channels = autoencoder.autoencoder, len(mean)
    last = network.encoder.conv_out.conv  # gives means and log variances
    last.weight[:channels] /= std.view(-1, 1, 1, 1, 1)
    last.bias[:channels] = (last.bias[:channels] - mean) / std
    last.bias[channels:] -= 2 * std.log()
    for name, module in network.decoder.named_modules():
        if name == "conv_in" or name.endswith((".conv_y", ".conv_b")):  # what sees latents
            module.conv.bias += (module.conv.weight * mean.view(1, -1, 1, 1, 1)).sum((1, 2, 3, 4))
            module.conv.weight *= std.view(1, -1, 1, 1, 1)
