"""A whole model with small random weights, written in the formats of the released one."""

from pathlib import Path

import sentencepiece
import torch
import yaml
from diffusers import AutoencoderKLCogVideoX
from transformers import T5Config, T5EncoderModel

from concat_id.config.loading import load_config
from concat_id.models.autoencoder import to_sat_names
from concat_id.models.transformer import DiffusionTransformer
from concat_id.weights.loading import write_sat_checkpoint

SENTENCE = "a man and the woman in red blue green jackets laugh in front of two people with hats who turn left right smiles rain wall"
WORDS = SENTENCE.split()


def write_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Write configs/debug.yaml's model under `folder` and return a YAML file that points at it, for `--base configs/debug.yaml`."""
    config = load_config(["configs/debug.yaml"])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        write_text_encoder(folder / "t5", config.model.transformer.text_hidden_size)
        write_autoencoder(folder / "vae" / "3d-vae.pt", config.model.autoencoder)
        write_transformer(folder / "transformer", config.model.transformer)
    paths = {
        "args": {"load": str(folder / "transformer")},
        "model": {"text_encoder": {"path": str(folder / "t5")}, "autoencoder": {"path": str(folder / "vae" / "3d-vae.pt")}},
    }
    (folder / "paths.yaml").write_text(yaml.safe_dump(paths))
    return folder / "paths.yaml"


def write_text_encoder(folder: Path, width: int) -> None:
    folder.mkdir(parents=True)
    sentences = [" ".join(WORDS[start::step]) for start in range(8) for step in (1, 2, 3, 5)] * 10
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_prefix=str(folder / "spiece"), vocab_size=90, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.vocab").unlink()
    config = T5Config(vocab_size=256, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu")
    T5EncoderModel(config).save_pretrained(folder)


def write_autoencoder(path: Path, config) -> None:
    path.parent.mkdir(parents=True)
    kinds = {f"{way}_block_types": (f"CogVideoX{way.title()}Block3D",) * len(config.block_out_channels) for way in ("down", "up")}
    autoencoder = AutoencoderKLCogVideoX(block_out_channels=config.block_out_channels, layers_per_block=config.layers_per_block, **kinds)
    torch.save({"state_dict": {**to_sat_names(autoencoder.state_dict()), "loss.weight": torch.ones(1)}}, path)


def write_transformer(folder: Path, config) -> None:
    transformer = DiffusionTransformer(config)
    for name, parameter in transformer.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.05)
    folder.mkdir(parents=True)
    write_sat_checkpoint(folder, "release", transformer.state_dict())
