"""Reading checkpoints as data, refusing what is more or less than that, and fitting tensors to networks."""

import argparse
import collections
import json
import os
import pathlib
import pickle
import random
import re
import shlex
import zipfile
from functools import partial

import numpy as np
import omegaconf
import pytest
import safetensors.torch
import torch
from in_process import Call, refused
from torch import nn

from concat_id.conversion.lazy import lazy_files
from concat_id.weights import loading as weights
from concat_id.weights.folders import weight_files
from concat_id.weights.loading import (
    check_whole,
    load_files,
    load_sat_checkpoint,
    load_strictly,
    load_tensors,
    weights_digest,
    write_sat_checkpoint,
)
from concat_id.weights.pickle_calls import RecordedCall

PREFIX = "model.diffusion_model."
FORMATS = {"zip": {}, "old": {"_use_new_zipfile_serialization": False}}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def training_state() -> dict:
    """What DeepSpeed and SAT save beside the tensors."""
    return {
        "module": {f"{PREFIX}{name}": tensor for name, tensor in network().state_dict().items()} | {"other.weight": torch.ones(2)},
        "args": argparse.Namespace(lr=1e-5, save=pathlib.Path("ckpts"), dtype=torch.bfloat16, sizes=[1, 2], bf16=True),
        "random_rng_state": random.getstate(),
        "np_rng_state": np.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "param_shapes": [collections.OrderedDict(weight=torch.Size([3]))],
        "loss": np.float64(0.25), "step": np.int64(7), "array": np.arange(3, dtype=np.float32), "names": np.array(["a", "b"]),
        "counts": collections.defaultdict(int, {"a": 1}), "buffer_names": {"b"}, "ds_version": "0.19", "blob": b"xyz", "empty": b"",
    }  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    """A SAT checkpoint folder with its tag."""
    write_sat_checkpoint(tmp_path, "1000", network().state_dict())
    return tmp_path


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_reads_inert_training_state(tmp_path, options):
    torch.save(training_state(), tmp_path / "state.pt", **options)
    state = load_tensors(tmp_path / "state.pt")
    assert state["args"].lr == 1e-5 and str(state["args"].save) == "ckpts" and state["args"].dtype == torch.bfloat16
    assert state["loss"] == 0.25 and state["step"] == 7 and state["array"].tolist() == [0, 1, 2] and state["names"].tolist() == ["a", "b"]
    assert dict(state["counts"]) == {"a": 1} and state["blob"] == b"xyz" and state["empty"] == b""
    assert state["random_rng_state"] == random.getstate()


def test_paths_that_python_3_13_wrote_are_read(tmp_path):
    torch.save({"save": pathlib.PosixPath("ckpts")}, tmp_path / "state.pt", **FORMATS["old"])
    written = (tmp_path / "state.pt").read_bytes().replace(b"cpathlib._local\n", b"cpathlib\n")
    for module in (b"pathlib", b"pathlib._local"):
        (tmp_path / "state.pt").write_bytes(written.replace(b"cpathlib\n", b"c" + module + b"\n"))
        assert str(load_tensors(tmp_path / "state.pt")["save"]) == "ckpts"


def test_configuration_objects_are_read_without_their_library(tmp_path):
    config = omegaconf.OmegaConf.create({"model": {"sizes": [1, 2]}})
    torch.save({"weight": torch.ones(2), "args": argparse.Namespace(config=config)}, tmp_path / "state.pt")
    state = load_tensors(tmp_path / "state.pt")
    assert state["weight"].sum() == 2
    assert isinstance(state["args"].config, RecordedCall)


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_code_is_named_refused_and_runs_only_if_trusted(tmp_path, options):
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    torch.save({"module": {}, "extra": Call(os.mkdir, str(trace))}, path, **options)
    message = refused("evil.pt: found posix.mkdir, which may run code", load_tensors, path)
    assert "--trust-checkpoint" in message and not trace.exists()
    load_tensors(path, trust=True)
    assert trace.exists()


def test_loading_leaves_no_permission_behind(tmp_path):
    torch.save(training_state(), tmp_path / "state.pt")
    before = set(torch.serialization.get_safe_globals())
    load_tensors(tmp_path / "state.pt")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "state.pt", weights_only=True)


def test_tensors_stay_on_disk_until_used(tmp_path):
    path = tmp_path / "w.pt"
    before, after = torch.full((64,), 1.25), torch.full((64,), 2.5)
    torch.save({"w": before}, path)
    mapped, copied = load_tensors(path)["w"], load_tensors(path, mmap=False)["w"]
    start = path.read_bytes().index(before.numpy().tobytes())
    with path.open("r+b") as file:
        file.seek(start)
        file.write(after.numpy().tobytes())
    assert torch.equal(mapped, after) and torch.equal(copied, before)


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.98])
def test_truncated_file(tmp_path, kind, part):
    path = tmp_path / ("cut.safetensors" if kind == "safetensors" else "cut.pt")
    tensors = {"w": torch.randn(1000)}
    if kind == "safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path, **FORMATS[kind])
    os.truncate(path, int(path.stat().st_size * part))
    refused(r"cut\.\w+: found a truncated or damaged file of [\d,]+ bytes .*download it again", load_tensors, path)


NO_CHECKPOINTS = {
    b"": "found an empty file",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n": "found a git-lfs pointer",
    b"<!DOCTYPE html><html>": "found a web page",
    b"just some text, nothing else": "found no checkpoint \\(it starts with b'just som'\\)",
    pickle.dumps({"a": 1}): "found a pickle that is no checkpoint",
    b"\x80\x02garbage": "found a (pickle that is no checkpoint|truncated or damaged file)",
}


def test_no_checkpoint_at_all(tmp_path):
    path = tmp_path / "w.pt"
    refused("w.pt: found no such file", load_tensors, path)
    for content, message in NO_CHECKPOINTS.items():
        path.write_bytes(content)
        refused(f"w.pt: {message}", load_tensors, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/a.txt", "a")
    refused("found a zip archive that is no checkpoint", load_tensors, path)


def test_sat_checkpoint_by_folder_tag_or_file(checkpoint):
    names = network().state_dict().keys()
    for path in [checkpoint, checkpoint / "1000", checkpoint / "1000" / "mp_rank_00_model_states.pt"]:
        state_dict, source, digest = load_sat_checkpoint(path)
        assert state_dict.keys() == names
        assert source.endswith("mp_rank_00_model_states.pt") and digest.startswith("sha256:")


def test_sat_checkpoint_says_what_is_wrong(checkpoint):
    refused("nowhere: no such folder", load_sat_checkpoint, checkpoint / "nowhere")
    states = checkpoint / "1000" / "mp_rank_00_model_states.pt"
    (checkpoint / "1000" / "mp_rank_01_model_states.pt").write_bytes(states.read_bytes())
    refused("found 2 model-parallel parts", load_sat_checkpoint, checkpoint)
    (checkpoint / "1000" / "mp_rank_01_model_states.pt").unlink()

    torch.save({"module": {f"diffusion.{number}": torch.ones(1) for number in range(7)}}, states)
    refused(r"tensors diffusion.0, .* \(7 in all\), expected names starting with 'model.diffusion_model.'", load_sat_checkpoint, checkpoint)
    torch.save({"state_dict": {}}, states)
    refused("found entries state_dict, expected a SAT checkpoint with an entry 'module'", load_sat_checkpoint, checkpoint)
    states.unlink()
    refused("found no mp_rank_00_model_states.pt", load_sat_checkpoint, checkpoint)
    (checkpoint / "latest").write_text("2000")
    refused("names the tag '2000'", load_sat_checkpoint, checkpoint)
    (checkpoint / "latest").unlink()
    refused("expected a file 'latest'", load_sat_checkpoint, checkpoint)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_load_strictly(device, dtype):
    state_dict = network().state_dict()
    with torch.device(device):
        module = network()
    module[0].weight.requires_grad_(False)
    load_strictly(module, {**state_dict, "unused.table": torch.ones(1)}, "w.pt", ignore=["unused.*"], dtype=dtype)
    loaded = module.state_dict()
    assert all(torch.equal(loaded[name], tensor.to(loaded[name].dtype)) for name, tensor in state_dict.items())
    assert loaded["0.weight"].dtype == (torch.float64 if (device, dtype) == ("meta", torch.float64) else torch.float32)
    assert loaded["1.num_batches_tracked"].dtype == torch.int64
    assert not module[0].weight.requires_grad and module[0].bias.requires_grad


def test_load_strictly_lists_all_that_does_not_fit():
    state_dict = network().state_dict()
    del state_dict["0.bias"]
    state_dict |= {"0.weight": torch.ones(4, 5), "1.bias": "text", **{f"new{index}": torch.ones(1) for index in range(5)}}
    told = "w.pt: does not fit Sequential (1 of 7 missing: 0.bias; 5 of 7 unexpected: new0, new1, new2, ... (5 in all)"
    message = refused(told, load_strictly, network(), state_dict, "w.pt", ignore=["0.*"])
    assert "2 of 7 of another shape: 0.weight (4, 5) for (4, 3), 1.bias str for (4,)" in message


ODD = {
    "int64": torch.ones(4, 3, dtype=torch.int64),
    "quantised": torch.quantize_per_tensor(torch.ones(4, 3), 0.1, 0, torch.qint8),
    "str": "text",
    "meta": torch.ones(4, 3, device="meta"),
}


@pytest.mark.parametrize("name", ODD)
def test_entries_that_are_no_weights_are_named(tmp_path, name):
    """By a network that takes them, and by scripts that take any."""
    write_sat_checkpoint(tmp_path, "1", network().state_dict() | {"0.weight": ODD[name]})

    def load():
        checkpoint = load_sat_checkpoint(tmp_path)
        load_strictly(network(), checkpoint.state_dict, checkpoint.source)

    def averaged():
        checkpoint = load_sat_checkpoint(tmp_path)
        del checkpoint.state_dict["1.num_batches_tracked"]
        weights.average([checkpoint, checkpoint], [0.5, 0.5])

    for call in (load, averaged):
        message = refused(name, call)
        assert ("0.weight" in message or name == "meta") and "states.pt: " in message


@pytest.mark.parametrize("key", [1, ("w",)])
def test_names_that_are_no_text(tmp_path, key):
    torch.save({"module": {key: torch.ones(1), f"{PREFIX}w": torch.ones(1)}}, tmp_path / "w.pt")
    refused("w.pt: found 1 names that are no text", load_sat_checkpoint, tmp_path / "w.pt")
    torch.save({key: torch.ones(1)}, tmp_path / "w.pt")
    refused("w.pt: found 1 names that are no text", load_files, [tmp_path / "w.pt"])


@pytest.mark.parametrize("name", ["a.scale_weight", "a.weight_scale", "scaled_fp8"])
def test_weights_with_scales_beside_them(tmp_path, name):
    safetensors.torch.save_file({"a.weight": torch.ones(1), name: torch.ones(1)}, tmp_path / "w.safetensors")
    for read in (check_whole, lambda path: load_files([path])):
        refused(f"w.safetensors: found {name}, by which other weights are multiplied", read, tmp_path / "w.safetensors")


@pytest.mark.parametrize("header, told", [
    (b"\xff" * 8 + b"{}", "damaged"), (b"\x02" + bytes(7) + b"{", "damaged"), (b"\x04" + bytes(7) + b'{"a"', "damaged"),
    (b"\x00\x20" + bytes(6) + b"[" * 8192, "no checkpoint"), (b"\x02" + bytes(7) + b"[]", "no checkpoint"),
    ((88).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,9000000000000000]}}', "damaged"),
])  # fmt: skip
def test_safetensors_with_broken_headers(tmp_path, header, told):
    (tmp_path / "w.safetensors").write_bytes(header)
    refused(told, load_tensors, tmp_path / "w.safetensors")


def test_weight_files_and_shards(tmp_path):
    refused("found no weights, expected model.safetensors or pytorch_model.safetensors (or .bin)", weight_files, tmp_path)
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "1.safetensors")
    refused("names 2 files, of which 2.safetensors are missing", weight_files, tmp_path)
    safetensors.torch.save_file({"b": torch.ones(1), "c": torch.ones(2)}, tmp_path / "2.safetensors")
    assert load_files(weight_files(tmp_path)).keys() == {"a", "b", "c"}
    safetensors.torch.save_file({"b": torch.ones(1), "a": torch.ones(2)}, tmp_path / "2.safetensors")
    for read in (load_files, lazy_files):
        refused("2.safetensors: found a, which a file before it holds too, expected every tensor once", read, weight_files(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text("{")
    refused("index.json: line 1, column 2: not valid JSON", weight_files, tmp_path)


def test_one_variant_is_read(tmp_path):
    """As save_pretrained(folder, variant="fp16") names it, whole or in shards."""
    shard = "model.fp16-00001-of-00001.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / shard)
    refused("found no weights, expected model.safetensors", weight_files, tmp_path)
    (tmp_path / "model.safetensors.index.fp16.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    assert weight_files(tmp_path) == [tmp_path / shard]
    (tmp_path / "model.bf16.safetensors").write_text("")
    refused("found model.bf16.safetensors, model.safetensors.index.fp16.json, expected one variant", weight_files, tmp_path)
    (tmp_path / "model.safetensors.index.fp16.json").unlink()
    assert weight_files(tmp_path) == [tmp_path / "model.bf16.safetensors"]
    refused("found no weights, expected model.safetensors", weight_files, tmp_path, variants=False)  # libraries find none
    (tmp_path / "model.safetensors").write_text("")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


NAMES_OF = {
    "low-rank": ("transformer.layers.0.attention.dense.down.weight", "merge them: python sat/convert_weights.py merge-lora {file}"),
    "kohya": ("lora_unet_blocks_0_ffn_0.lora_down.weight", "in another program's names; merge them where they were made"),
    "diffusers": ("transformer_blocks.0.norm1.linear.weight", "convert it: python sat/convert_weights.py to-sat {folder} FOLDER"),
    "Wan": ("blocks.0.self_attn.q.weight", "these are Wan's; use them with python inference_wan.py"),
    "anything": ("weight", "expected a SAT checkpoint with an entry 'module'; check args.load"),
}


@pytest.mark.parametrize("kind", NAMES_OF)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_bare_file_of_another_kind_is_told_with_what_to_type(tmp_path, kind, suffix):
    name, told = NAMES_OF[kind]
    tensors = {name: torch.ones(2), "head.modulation" if kind in ("Wan", "kohya") else "other": torch.ones(2)}
    (folder := tmp_path / "my own").mkdir()
    (torch.save if suffix == "pt" else safetensors.torch.save_file)(tensors, folder / f"w.{suffix}")
    file = folder / f"w.{suffix}"
    refused(told.format(folder=f"'{folder}'", file=f"'{file}'"), load_sat_checkpoint, file)


@pytest.mark.parametrize("files, told", [
    (["lora.safetensors"], "merge them: python sat/convert_weights.py merge-lora {quoted} FOLDER"),
    (["model_index.json", "transformer/config.json"], "convert it: python sat/convert_weights.py to-sat {quoted} FOLDER"),
    (["config.json", "diffusion_pytorch_model-00001-of-00002.safetensors"], "to-sat {quoted} FOLDER"),
    (["latest", "5/z3_rank_0_model_states.pt"], "found ZeRO-3 parts"),
    (["photo.png"], "expected a file 'latest' with the tag; download"),
    (["single-identity/latest", "README.md"], "expected a file 'latest' with the tag; name {folder}/single-identity"),
])  # fmt: skip
def test_a_folder_of_another_kind_is_told_with_what_to_type(tmp_path, files, told):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("5")
    refused(told.format(folder=tmp_path, quoted=shlex.quote(str(tmp_path))), load_sat_checkpoint, tmp_path)


def test_what_is_no_file_is_told(tmp_path):
    for name in ("w.pt", "w.safetensors", "latest"):
        os.mkfifo(tmp_path / name)
        refused("expected a ", load_sat_checkpoint, tmp_path if name == "latest" else tmp_path / name)


def test_tags_and_shards_stay_in_their_folder(tmp_path):
    for folder in ("run", "x"):
        (tmp_path / folder).mkdir()
    index = tmp_path / "run" / "model.safetensors.index.json"
    for name in ("../x", "/etc", ".", "..", "a\0b", "a" * 300, "x/y", "", "\u202ename", "~nobody"):
        (tmp_path / "run" / "latest").write_text(name)
        refused("latest: names the tag", load_sat_checkpoint, tmp_path / "run")
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        refused("index.json: ", weight_files, tmp_path / "run")
    for broken in ({"weight_map": ["a"]}, {"weight_map": {"a": 1}}, {"weight_map": None}, ["a"], "x"):
        index.write_text(json.dumps(broken))
        refused("weight_map: found", weight_files, tmp_path / "run")


@pytest.mark.parametrize(("limit", "kinds"), [(2**30, ("sha256", "sha256")), (100, ("zip-crc32", "sampled"))])
def test_digest_names_the_content(tmp_path, monkeypatch, limit, kinds):
    monkeypatch.setattr(weights, "FULL_DIGEST_LIMIT", limit)
    monkeypatch.setattr(weights, "SAMPLED_BLOCK_SIZE", 64)
    tensor = torch.zeros(2000)
    for save, suffix, kind in [(torch.save, "pt", kinds[0]), (safetensors.torch.save_file, "safetensors", kinds[1])]:
        first, again, other = (tmp_path / f"{name}.{suffix}" for name in ("first", "again", "other"))
        save({"w": tensor}, first)
        again.write_bytes(first.read_bytes())
        save({"w": tensor + (torch.arange(2000) == 1999)}, other)
        assert weights_digest(first) == weights_digest(again) != weights_digest(other)
        assert re.fullmatch(kind + ":[0-9a-f]{64}", weights_digest(first))


def test_checkpoints_are_averaged_by_a_script(call, tmp_path):
    tensors = {"a.weight": torch.randn(3, 4), "b": torch.randn(5)}
    other = {name: torch.randn_like(tensor) for name, tensor in tensors.items()}
    coarse = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    for name, content in (("first", coarse), ("second", other), ("less", {"b": other["b"]})):
        (tmp_path / name).mkdir()
        write_sat_checkpoint(tmp_path / name, "4", content)

    average = partial(call, "convert_weights", "average", tmp_path / "first", tmp_path / "out")
    code, _, errors = average("--with", tmp_path / "second", "--shares", 0.25, 0.75)
    made = load_sat_checkpoint(tmp_path / "out").state_dict
    assert code == 0 and errors == "" and made.keys() == tensors.keys()
    for name in tensors:
        assert torch.equal(made[name], (0.25 * coarse[name].float() + 0.75 * other[name]).bfloat16())
    for options, text in (
        ([], "expected at least two"),
        (["--with", tmp_path / "second", "--shares", 0.5, 0.6], "expected 2 numbers that add up to 1"),
        (["--with", tmp_path / "less"], "1 of 2 missing: a.weight"),
        (["--with", tmp_path / "second"], f"{tmp_path / 'out'}"),
    ):
        code, _, errors = average(*options)
        assert code == 2 and text in errors and len(errors.splitlines()) == 1
