"""UMT5's encoder over prompts, as Wan2.1 uses it: cleaned text, an attention mask, zeros behind the text's end."""

import html
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers.models.umt5.configuration_umt5 import UMT5Config

from concat_id.errors import UserError
from concat_id.models.text_encoder import TOKENIZER_FILES, PromptEncoder, encoder_settings, filled, identity_of, load_tokenizer
from concat_id.weights.folders import weight_files
from concat_id.weights.loading import check_named, load_files, shape_of
from concat_id.weights.model_folders import built_from, made_on

TOKENIZER_FOLDERS = ("google/umt5-xxl", "tokenizer", "umt5-xxl", ".")  # beside a file of Wan's
KIND = "umt5, cleaned, masked, zeroed"  # of embeddings, in their identity
Value = TypeVar("Value")

# Wan's names and transformers'.
EMBEDDING = "token_embedding.weight"
RENAMED = {EMBEDDING: "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
RENAMED_IN_BLOCK = {
    **{f"attn.{x}": f"layer.0.SelfAttention.{x}" for x in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",  # UMT5 has one in every block
    "norm1": "layer.0.layer_norm",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


class WanTextEncoder(PromptEncoder):
    """UMT5's encoder over prompts (B, L, D); positions behind the end-of-text token are zero."""

    def __init__(
        self,
        path: str | Path,
        max_length: int = 512,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        cache_folder: str | Path | None = None,
        trust: bool = False,
    ):
        """Name Wan's models_t5_umt5-xxl-enc-bf16.pth with its tokenizer's folder beside it, or a diffusers folder."""
        self.path, self.trust = Path(path), trust
        self.folder, self.files, self.tokenizer_folder = find_parts(self.path)
        settings = [self.tokenizer_folder / name for name in TOKENIZER_FILES] + ([self.folder / "config.json"] if self.folder else [])
        identity = identity_of([*self.files, *settings], max_length, dtype, KIND)
        super().__init__(load_tokenizer(self.tokenizer_folder), identity, max_length, dtype, device, cache_folder)

    def load(self) -> nn.Module:
        """Read UMT5's encoder."""
        network, state_dict = self.build(load_files(self.files, self.trust))
        return filled(network, state_dict, str(self.path), self.dtype, self.device)

    def build(self, tensors: Mapping[str, Tensor]) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """Make the network on the meta device for the files' `tensors`; returns it and those under transformers' names."""
        from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel  # takes seconds

        if self.folder is None:
            if EMBEDDING not in tensors:
                raise UserError(f"{self.path}: found no {EMBEDDING}, expected UMT5's encoder in Wan's names; name another file")
            settings = native_settings(tensors, str(self.path))
            tensors = to_transformers_names(tensors, settings["num_layers"])
        else:
            settings = encoder_settings(self.folder / "config.json", "umt5")
        with built_from(self.folder / "config.json" if self.folder else self.path, "UMT5 encoder", tensors), made_on("meta"):
            return UMT5EncoderModel(UMT5Config.from_dict(settings)), tensors

    def run(self, network: nn.Module, prompt: str) -> Tensor:
        """Compute the embedding (L, D) of a prompt."""
        tokens, mask = self._tokens(prompt)
        output = network(input_ids=tokens.to(self.device), attention_mask=mask.to(self.device)).last_hidden_state[0]
        return (output * mask[0, :, None].to(output)).to(self.dtype)

    def tokenize(self, prompt: str) -> Tensor:
        """Return token numbers (1, L), end-of-text included."""
        return self._tokens(prompt)[0]

    def truncated_part(self, prompt: str) -> str:
        """Return the end of a prompt, cleaned, that `encode` cuts off, '' if none."""
        return super().truncated_part(clean(prompt))

    def unknown_part(self, prompt: str) -> str:
        """Return what of a prompt, cleaned, has no token, '' if everything has one."""
        return super().unknown_part(clean(prompt))

    def _tokens(self, prompt: str) -> tuple[Tensor, Tensor]:
        made = self.tokenizer(clean(prompt), max_length=self.max_length, padding="max_length", truncation=True, return_tensors="pt")
        return made["input_ids"], made["attention_mask"]


def clean(prompt: str) -> str:
    """Mend a prompt's text as Wan does: broken encodings and fullwidth letters (ftfy), HTML's escapes twice, one space between words."""
    import ftfy  # a library of tables, slow to read

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


def native_names(num_layers: int) -> dict[str, str]:
    """Every tensor of the encoder: Wan's name -> transformers'."""
    names = dict(RENAMED)
    for index in range(num_layers):
        names |= {f"blocks.{index}.{wan}.weight": f"encoder.block.{index}.{theirs}.weight" for wan, theirs in RENAMED_IN_BLOCK.items()}
    return names


def to_transformers_names(tensors: Mapping[str, Value], num_layers: int) -> dict[str, Value]:
    """Rename tensors from Wan's names; unknown ones stay as they are."""
    names = native_names(num_layers)
    return {names.get(name, name): tensor for name, tensor in tensors.items()}


def native_settings(tensors: Mapping[str, Tensor], source: str = "text encoder") -> dict:
    """Read an encoder's sizes off its tensors (Wan's names); UMT5-XXL's are 24 layers, 4096 wide, 64 heads of 64, MLP 10240."""
    check_named(tensors, source)
    vocabulary, width = shape_of(tensors, EMBEDDING, 2, source)
    buckets, heads = shape_of(tensors, "blocks.0.pos_embedding.embedding.weight", 2, source)
    (hidden, _), (inner, _) = (shape_of(tensors, f"blocks.0.{name}.weight", 2, source) for name in ("ffn.fc1", "attn.q"))
    sizes = {"d_ff": hidden, "d_kv": inner // heads}
    num_layers = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    return sizes | {
        "vocab_size": vocabulary,
        "d_model": width,
        "num_heads": heads,
        "num_layers": num_layers,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
    }


def transformers_config(tensors: Mapping[str, Tensor]) -> dict:
    """What transformers' config.json says of an encoder with these tensors (Wan's names)."""
    return UMT5Config(**native_settings(tensors), architectures=["UMT5EncoderModel"]).to_dict()


def find_parts(path: Path) -> tuple[Path | None, list[Path], Path]:
    """Return the folder with a configuration, if there is one, the files of the weights, and the folder of the tokenizer."""
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file or folder, expected UMT5's encoder; download it or correct the text encoder's path")
    folder = files = None
    if os.path.isdir(path):
        folder = path / "text_encoder" if os.path.isdir(path / "text_encoder") else path
        if not os.path.isfile(folder / "config.json"):
            raise UserError(f"{folder}: found no config.json, expected UMT5's encoder; name the .pth file or a diffusers folder")
        files = weight_files(folder)
    around = path if os.path.isdir(path) else path.parent
    candidates = [around / name for name in TOKENIZER_FOLDERS] + [around.parent / "tokenizer"]
    for tokenizer in candidates:
        if any(os.path.isfile(tokenizer / name) for name in TOKENIZER_FILES):
            return folder, files or [path], tokenizer
    raise UserError(f"{around}: found no tokenizer, expected {TOKENIZER_FOLDERS[0]}/ or tokenizer/ with {TOKENIZER_FILES[0]}; download it")
