"""Folders of weights with settings and entries that are not what they should be: one line each, at once."""

import json
import shutil
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import refused
from odd_input import result_or_line

from concat_id.errors import UserError
from concat_id.models.text_encoder import TextEncoder
from concat_id.models.wan.autoencoder import WanAutoencoder
from concat_id.weights.model_folders import built_from, check_tokenizer, read_settings

T5 = ROOT / "models" / "mini" / "t5"


def copied(folder: Path, target: Path, **changes) -> Path:
    shutil.copytree(folder, target)
    values = json.loads((target / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(values))
    return target


ODD = [None, "abc", -1, 10**12, 10**400, 0, True, 1.5, float("nan"), float("inf"), [], [1] * 1000, {}, {"a": [1]}, "\x00", [[[[1]]]]]


def test_settings_that_cannot_be_read(tmp_path):
    copy = copied(T5, tmp_path / "t5")
    for content in ("[" * 10_000, "", "[]", '{"a": 1, "a": 2}', '{"n": ' + "9" * 5000 + "}"):
        (copy / "config.json").write_text(content)
        refused(f"^{copy / 'config.json'}: ", lambda: TextEncoder(copy).encode(["a man"]))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(key=st.sampled_from(["num_layers", "d_model", "d_kv", "d_ff", "num_heads", "vocab_size", "feed_forward_proj", "layer_norm_epsilon",
                            "relative_attention_num_buckets", "dropout_rate", "dtype", "quantization_config", "id2label", "model_type",
                            "auto_map"]), value=st.sampled_from(ODD))  # fmt: skip
def test_t5_with_one_odd_setting_works_or_is_refused(tmp_path_factory, key, value):
    folder = tmp_path_factory.mktemp("odd")
    copy = copied(T5, folder / "t5", **{key: value})
    start = time.monotonic()
    result_or_line(f".*{copy}", lambda: TextEncoder(copy).encode(["a man"]))
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("key, value, told", [
    ("num_layers", "abc", "num_layers: found 'abc', expected the like of 2"),
    ("patch_size", [1], "patch_size: found [1]"), ("dim_mult", "x", "dim_mult: found 'x'"),
    ("out_channels", False, "out_channels: found False"), ("norm_eps", "1", "norm_eps: found '1'"),
])  # fmt: skip
def test_settings_have_the_types_of_the_defaults(tmp_path, key, value, told):
    def like(num_layers: int = 2, patch_size: int = 1, dim_mult=(1, 2), block_out_channels=(1,), out_channels=3, norm_eps=1e-6):
        """A network's parameters."""

    (tmp_path / "config.json").write_text(json.dumps({key: value}))
    refused(told, read_settings, tmp_path / "config.json", "settings", like=like)
    fits = {"num_layers": 3, "dim_mult": [4], "norm_eps": 1, "other": "x"}
    (tmp_path / "config.json").write_text(json.dumps(fits))
    assert read_settings(tmp_path / "config.json", "settings", like=like) == fits


def test_a_network_is_no_larger_than_its_weights(tmp_path):
    with built_from(tmp_path, "network", dict.fromkeys("abc")):
        torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(20)))
    endless = (torch.nn.Linear(1, 1) for _ in range(10**9))
    told = "describes no network .*more layers than the weights have, whose 3 tensors"
    with pytest.raises(UserError, match=told), built_from(tmp_path, "network", dict.fromkeys("abc")):
        torch.nn.Sequential(*endless)
    torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(100)))
    with pytest.raises(UserError, match="not read: found too many threads .*; raise ulimit -u$"), built_from(tmp_path, "network", {}):
        raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("changes", [{"num_res_blocks": 10**5}, {"z_dim": -1}, {"base_dim": 0}])
def test_autoencoders_with_odd_settings(tmp_path, changes):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan"} | changes))
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    refused(str(tmp_path), WanAutoencoder.from_path, tmp_path)


@pytest.mark.parametrize("name, content", [("tokenizer_config.json", {"extra_ids": 10**5}), ("tokenizer_config.json", {"extra_ids": "x"}),
                                           ("special_tokens_map.json", {"pad_token": 10**9}), ("added_tokens.json", [])])  # fmt: skip
def test_tokenizers_of_no_reasonable_size(tmp_path, name, content):
    copy = copied(T5, tmp_path / "t5")
    check_tokenizer(copy)
    (copy / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    check_tokenizer(copy)
    (copy / name).write_text(json.dumps(content))
    refused(name, TextEncoder, copy)
