"""UMT5 as Wan uses it: against transformers' own, from both file formats, with what its cache must know."""

import shutil

import pytest
import torch
from conftest import assert_close
from in_process import refused
from tiny_wan import WIDTH, write_native_wan
from transformers import UMT5Config, UMT5EncoderModel

from concat_id.models.wan.text_encoder import WanTextEncoder, native_names, native_settings

LENGTH = 24
PROMPT = "a man in a red hat"
FILE = "models_t5_umt5-xxl-enc-bf16.pth"


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return write_native_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def library(wan):
    """transformers' network with the same weights."""
    native = torch.load(wan / FILE, weights_only=True)
    network = UMT5EncoderModel(UMT5Config(**native_settings(native))).eval().requires_grad_(False)
    tensors = {new: native[name] for name, new in native_names(2).items()}
    network.load_state_dict(tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"]})
    return network


@pytest.fixture(scope="module")
def folder(wan, library, tmp_path_factory):
    """The same as diffusers saves it."""
    path = tmp_path_factory.mktemp("diffusers")
    library.save_pretrained(path / "text_encoder")
    shutil.copytree(wan / "google" / "umt5-xxl", path / "tokenizer")
    return path


def encoder_of(path, **options) -> WanTextEncoder:
    return WanTextEncoder(path, LENGTH, torch.float32, **options)


def test_layers_are_wans(wan, library):
    """Which cannot be seen from shapes: its MLP is fc2(fc1(h) * gelu(gate(h))), h = norm2(x)."""
    weights = torch.load(wan / FILE, weights_only=True)
    norm, gate, fc1, fc2 = (weights[f"blocks.1.{name}.weight"] for name in ("norm2", "ffn.gate.0", "ffn.fc1", "ffn.fc2"))
    x = torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    h = torch.nn.functional.rms_norm(x, (WIDTH,), norm, 1e-6)
    expected = x + (h @ fc1.T * torch.nn.functional.gelu(h @ gate.T, approximate="tanh")) @ fc2.T
    assert_close(library.encoder.block[1].layer[1](x), expected, 1e-6)


def test_both_formats_give_what_transformers_gives(wan, folder, library, tmp_path):
    encoder = encoder_of(wan / FILE)
    tokens = encoder.tokenize(PROMPT)
    mask = (tokens != 0).long()
    count = int(mask.sum())
    expected = library(tokens, attention_mask=mask).last_hidden_state
    found = encoder.encode([PROMPT])
    assert found.shape == (1, LENGTH, WIDTH) and found.dtype == torch.float32
    assert torch.equal(found[:, :count], expected[:, :count])
    assert 2 < count < LENGTH and not found[:, count:].any() and expected[:, count:].any()
    empty = encoder.encode([""])[0]
    assert empty[0].any() and not empty[1:].any(), "the end of text alone"
    alone = shutil.copytree(folder / "text_encoder", tmp_path / "alone")
    shutil.copytree(folder / "tokenizer", alone, dirs_exist_ok=True)
    for other in (folder, folder / "text_encoder", alone):
        assert torch.equal(encoder_of(other).encode([PROMPT]), found)


def test_names_cover_umt5_xxl_once():
    """5,680,910,336 numbers of bfloat16 fill the published file's 11,361,920,418 bytes but for 100 kB."""
    sizes = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "num_layers": 24}
    with torch.device("meta"):
        tensors = UMT5EncoderModel(UMT5Config(**sizes, feed_forward_proj="gated-gelu")).state_dict()
    names = native_names(24)
    assert len(names) == len(set(names.values())) == 242
    assert set(names.values()) == tensors.keys() - {"encoder.embed_tokens.weight"}
    native = {wan: tensors[theirs] for wan, theirs in names.items()}
    assert sum(tensor.numel() for tensor in native.values()) == 5_680_910_336
    assert native["blocks.23.pos_embedding.embedding.weight"].shape == (32, 64)
    assert native["blocks.0.ffn.gate.0.weight"].shape == (10240, 4096) and native["blocks.0.ffn.fc2.weight"].shape == (4096, 10240)
    assert native_settings(native) == sizes | {"relative_attention_num_buckets": 32, "feed_forward_proj": "gated-gelu"}


CLEANED = {
    "  a man\n\tin  a hat ": "a man in a hat",
    "Tom &amp;amp; Ann &lt;3": "Tom & Ann <3",
    "1 < 2 &amp;amp; 3": "1 < 2 & 3",  # where ftfy leaves escapes alone
    "caf\u00c3\u00a9": "caf\u00e9",  # UTF-8 read as Latin-1
    "\u201cquoted\u201d": '"quoted"',
    "\u8272\u8c03\uff0c\u8fc7\u66dd": "\u8272\u8c03,\u8fc7\u66dd",  # as in Wan's negative prompt
}


def test_text_is_cleaned_as_wan_does(wan):
    encoder = encoder_of(wan / FILE)
    for text, cleaned in CLEANED.items():
        assert encoder.clean(text) == cleaned
        assert torch.equal(encoder.tokenize(text), encoder.tokenize(cleaned))


def test_says_what_is_cut_off(wan):
    encoder = encoder_of(wan / FILE)
    assert encoder.truncated_part(PROMPT) == "" and encoder.unknown_part(f"{PROMPT} &#29483;") == "\u732b"
    words = " ".join(["rain", "snow", "sun"] * 10)
    cut = encoder.truncated_part(words.replace(" ", "  "))
    assert cut and words.endswith(cut) and len(encoder.tokenizer(words.removesuffix(cut).strip())["input_ids"]) == LENGTH
    assert torch.equal(encoder.tokenize(words), encoder.tokenize(words.removesuffix(cut)))


def test_unfit_files_are_refused_in_one_line(wan, folder, tmp_path):
    copy = shutil.copytree(wan, tmp_path / "wan")
    tensors = torch.load(copy / FILE, weights_only=True)

    def embed(path):
        encoder_of(path).encode([PROMPT])

    torch.save(tensors | {1: torch.ones(1)}, copy / FILE)
    refused(r"found 1 names that are no text \(int 1\)", embed, copy / FILE)
    del tensors["blocks.1.ffn.fc2.weight"]
    torch.save(tensors, copy / FILE)
    told = "does not fit UMT5EncoderModel .*missing: encoder.block.1.layer.1.DenseReluDense.wo.weight"
    refused(told, embed, copy / FILE)
    (copy / "google" / "umt5-xxl" / "spiece.model").write_bytes(b"no pieces")
    refused("tokenizer cannot be read", embed, copy / FILE)
    shutil.rmtree(copy / "google")
    refused("found no tokenizer, expected spiece.model or tokenizer.json there, in google/umt5-xxl/ or in tokenizer/", embed, copy / FILE)
    refused("found no config.json", embed, copy)
    identity = encoder_of(shutil.copytree(folder, tmp_path / "hf"))._identity
    (tmp_path / "hf" / "text_encoder" / "config.json").write_text('{"model_type": "mt5"}')
    refused("config.json: model_type: found mt5, expected umt5; name the folder of UMT5's encoder", embed, tmp_path / "hf")
    (tmp_path / "hf" / "text_encoder" / "config.json").write_text("{")
    refused("config.json: line 1, column 2: not valid JSON", embed, tmp_path / "hf")
    assert encoder_of(tmp_path / "hf")._identity != identity, "embeddings depend on it"
