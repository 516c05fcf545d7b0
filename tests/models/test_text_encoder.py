"""The text encoder with a tiny random T5 and a tiny sentencepiece model, in every layout that a folder may have."""

import json
import shutil

import pytest
import sentencepiece
import torch
from in_process import refused
from safetensors.torch import save_file
from tiny_model import write_text_encoder
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

from concat_id.models.text_encoder import TextEncoder

PROMPT = "a woman laughs in rain"
LENGTH = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A T5 folder with config.json, spiece.model and model.safetensors."""
    folder = tmp_path_factory.mktemp("folder") / "t5"
    write_text_encoder(folder, 16)
    return folder


def embed(folder, prompts=(PROMPT,), **options) -> torch.Tensor:
    return TextEncoder(folder, LENGTH, **{"dtype": torch.float32, **options}).encode(prompts)


def test_equals_transformers_without_a_mask(folder):
    encoder = TextEncoder(folder, LENGTH, torch.float32)
    embeds = encoder.encode([PROMPT, "", "red hat"])
    assert embeds.shape == (3, LENGTH, 16) and not embeds.requires_grad

    tokens = encoder.tokenize(PROMPT)
    assert tokens.shape == (1, LENGTH) and tokens[0, -1] == 0, "the prompt should need padding here"
    network = T5EncoderModel.from_pretrained(folder).eval()
    with torch.no_grad():
        unmasked = network(input_ids=tokens).last_hidden_state
        masked = network(input_ids=tokens, attention_mask=(tokens != 0).long()).last_hidden_state
    assert torch.allclose(embeds[:1], unmasked, atol=1e-5)
    assert not torch.allclose(embeds[:1], masked, atol=1e-3)


def test_tokens_are_sentencepiece_plus_end(folder):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    encoder = TextEncoder(folder, LENGTH)
    for prompt in [PROMPT, "  two   spaces\nand a newline ", "", "Émigré 你好 🙂"]:
        expected = (pieces.encode(prompt)[: LENGTH - 1] + [1] + [0] * LENGTH)[:LENGTH]
        assert encoder.tokenize(prompt)[0].tolist() == expected


@pytest.mark.parametrize("layout", ["sharded pickles", "whole model", "tokenizer.json", "the table's other name"])
def test_every_layout_gives_the_same(tmp_path, folder, layout):
    copy = shutil.copytree(folder, tmp_path / "t5")
    network = T5EncoderModel.from_pretrained(folder)
    tensors = {name: tensor for name, tensor in network.state_dict().items() if name != "encoder.embed_tokens.weight"}
    if layout == "sharded pickles":
        (copy / "model.safetensors").unlink()
        names = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(tensors)}
        for file in set(names.values()):
            torch.save({name: tensors[name] for name in tensors if names[name] == file}, copy / file)
        (copy / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    elif layout == "whole model":
        whole = T5ForConditionalGeneration(T5Config.from_pretrained(folder))
        whole.load_state_dict(network.state_dict(), strict=False)
        whole.save_pretrained(copy)
    elif layout == "the table's other name":
        tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
        save_file(tensors, copy / "model.safetensors")
    else:
        TextEncoder(folder, LENGTH).tokenizer.save_pretrained(copy)
        (copy / "spiece.model").unlink()
    assert torch.equal(embed(copy), embed(folder))


def test_says_what_is_cut_off(folder):
    encoder = TextEncoder(folder, LENGTH)
    assert encoder.truncated_part(PROMPT) == encoder.truncated_part("") == encoder.unknown_part(PROMPT) == ""
    words = ["rain", "snow", "sun"] * 10
    cut = encoder.truncated_part(" ".join(words))
    assert cut and " ".join(words).endswith(cut)
    kept = " ".join(words).removesuffix(cut).strip()
    assert encoder.truncated_part(kept) == "" and len(encoder.tokenizer(kept)["input_ids"]) == LENGTH
    assert torch.equal(encoder.tokenize(kept), encoder.tokenize(" ".join(words)))


def test_network_is_loaded_late_freed_and_not_needed_for_cached_prompts(folder, tmp_path, monkeypatch):
    encoder = TextEncoder(folder, LENGTH, torch.bfloat16, cache_folder=tmp_path / "cache")
    assert encoder._network is None
    embeds = encoder.encode([PROMPT, "red hat"])
    assert encoder._network is not None
    encoder.unload()
    assert encoder._network is None

    monkeypatch.setattr(TextEncoder, "load", lambda *_: pytest.fail("loaded the network"))
    cached = TextEncoder(folder, LENGTH, torch.bfloat16, cache_folder=tmp_path / "cache").encode(["red hat", PROMPT])
    assert torch.equal(cached.flip(0), embeds) and cached.dtype == torch.bfloat16


def test_float16_keeps_in_float32_what_would_not_fit(folder):
    encoder = TextEncoder(folder, LENGTH, torch.float16)
    found, exact = encoder.encode([PROMPT]), embed(folder)
    feed = encoder._network.encoder.block[0].layer[1].DenseReluDense
    assert (found.dtype, feed.wo.weight.dtype, feed.wi_0.weight.dtype) == (torch.float16, torch.float32, torch.float16)
    assert torch.allclose(found.float(), exact, atol=0.01)


def test_cache_knows_what_embeddings_depend_on(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "t5")
    torch.manual_seed(1)
    T5EncoderModel(T5Config.from_pretrained(folder)).save_pretrained(other)
    cache = tmp_path / "cache"
    for source, options in [(folder, {}), (other, {}), (folder, {"dtype": torch.bfloat16})]:
        assert torch.equal(embed(source, cache_folder=cache, **options), embed(source, **options))
    TextEncoder(folder, LENGTH + 1, torch.float32, cache_folder=cache).encode([PROMPT])
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    embed(other, cache_folder=cache)
    assert len(list(cache.rglob("*.safetensors"))) == 5


MISSING = {
    "model.safetensors": "found no weights, expected model.safetensors",
    "spiece.model": "found no tokenizer, expected spiece.model or tokenizer.json",
    "config.json": "found no config.json",
}


def test_unfit_folders_are_refused(folder, tmp_path):
    refused("no such file or folder", embed, tmp_path / "nowhere")
    copy = shutil.copytree(folder, tmp_path / "t5")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_layers": 2}))
    refused("does not fit T5EncoderModel \\(9 of .* missing", embed, copy)
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "mt5"}))
    refused("config.json: model_type: found mt5, expected t5; name the folder of T5's encoder", embed, copy)
    (copy / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != "model_type"}))
    assert torch.equal(embed(copy), embed(folder))
    (copy / "config.json").write_text("{")
    refused("config.json: line 1, column 2: not valid JSON", embed, copy)
    (copy / "spiece.model").write_bytes(b"no pieces")
    refused("tokenizer cannot be read", embed, copy)
    for name, message in MISSING.items():
        (copy / name).unlink()
        refused(message, embed, copy)
