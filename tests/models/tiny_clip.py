"""A CLIP with small random weights, and its tokenizer's files."""

import json
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_tokenizer(folder: Path) -> int:
    """Letters for pieces, so that a word of six letters has six tokens; returns how many there are."""
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return len(pieces)


def tiny_clip(vocabulary: int, positions: int) -> CLIPModel:
    torch.manual_seed(1)
    small = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    text = small | tokens | {"vocab_size": vocabulary, "max_position_embeddings": positions}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 8}, projection_dim=24)).eval()
