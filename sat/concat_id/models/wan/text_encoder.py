"""UMT5's encoder over prompts, as Wan2.1 uses it: cleaned text, an attention mask, zeros behind the text's end."""

import html
import re
from collections.abc import Mapping

from torch import Tensor, nn
from transformers.models.umt5.configuration_umt5 import UMT5Config

from concat_id.models.text_encoder import PromptEncoder
from concat_id.weights.loading import shape_of

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
    """UMT5's encoder over prompts (B, L, D); positions behind the end-of-text token are zero.

    Reads Wan's models_t5_umt5-xxl-enc-bf16.pth with its tokenizer's folder beside it, or a diffusers folder.
    """

    name, length, treatment, has_own_names = "UMT5", 512, ("umt5, cleaned, masked, zeroed",), True

    def classes(self) -> tuple[type[nn.Module], type]:
        """Import UMT5's encoder."""
        from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

        return UMT5EncoderModel, UMT5Config

    def read_own(self, tensors: Mapping[str, Tensor]) -> tuple[dict, Mapping[str, Tensor]]:
        """Return the settings of tensors in Wan's names, and those under transformers' names."""
        settings = native_settings(tensors, str(self.path))
        names = native_names(settings["num_layers"])
        return settings, {names.get(name, name): tensor for name, tensor in tensors.items()}

    def run(self, network: nn.Module, prompt: str) -> Tensor:
        """Compute the embedding (L, D) of a prompt."""
        tokens = self.tokenize(prompt).to(self.device)
        mask = (tokens != self.tokenizer.pad_token_id).long()
        output = network(input_ids=tokens, attention_mask=mask).last_hidden_state[0]
        return (output * mask[0, :, None].to(output)).to(self.dtype)

    @staticmethod
    def clean(prompt: str) -> str:
        """Mend text as Wan does: broken encodings and fullwidth letters (ftfy), HTML's escapes twice, one space between words."""
        import ftfy  # a library of tables, slow to read

        return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


def native_names(num_layers: int) -> dict[str, str]:
    """Every tensor of the encoder: Wan's name -> transformers'."""
    names = dict(RENAMED)
    for index in range(num_layers):
        names |= {f"blocks.{index}.{wan}.weight": f"encoder.block.{index}.{theirs}.weight" for wan, theirs in RENAMED_IN_BLOCK.items()}
    return names


def native_settings(tensors: Mapping[str, Tensor], source: str = "text encoder") -> dict:
    """Read an encoder's sizes off its tensors (Wan's names); UMT5-XXL's are 24 layers, 4096 wide, 64 heads of 64, MLP 10240."""
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
