"""Wan's transformer from every format it comes in, and what is said about files that do not fit."""

import dataclasses
import json

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from in_process import refused
from safetensors.torch import save_file
from tiny_wan import TINY, TINY_ADALN, native_tensors, random_transformer

from concat_id.models.wan.weights import PREFIX, load_wan_transformer, native_names, to_native_names
from concat_id.weights.loading import write_sat_checkpoint


@pytest.fixture(scope="module")
def first_stage():
    return random_transformer(TINY)


@pytest.fixture(scope="module")
def adaln():
    return random_transformer(TINY_ADALN)


def load(path, config=TINY, **options):
    return load_wan_transformer(path, config, torch.float32, **options)


def write(folder, network, layout):
    """Write a transformer in one of the layouts; returns what a user would name."""
    native, inside = native_tensors(network), {name.removeprefix(PREFIX): tensor for name, tensor in network.state_dict().items()}
    file = folder / "diffusion_pytorch_model.safetensors"
    if layout == "native pickle":
        torch.save(native, folder / "first_stage.pt")
        return folder / "first_stage.pt"
    if layout in ("native folder", "diffusers file"):
        save_file(inside if layout == "diffusers file" else native, file)
        return folder if layout == "native folder" else file
    if layout == "shards":
        files = {name: f"weights-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(native)}
        for shard in set(files.values()):
            save_file({name: native[name] for name in native if files[name] == shard}, folder / shard)
        (folder / "weights.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
        return folder / "weights.safetensors.index.json"
    if layout == "diffusers folder":
        network.network.save_pretrained(folder / "transformer", max_shard_size="100KB")
        return folder
    if layout.endswith("."):
        save_file({layout + name: tensor for name, tensor in (inside if layout == "transformer." else native).items()}, file)
        return file
    if layout == "module":
        torch.save({"module": native}, folder / "w.pt")
        return folder / "w.pt"
    if layout == "DeepSpeed's of the original":
        module = {f"pipe.dit.{name}": tensor for name, tensor in native.items()}
        torch.save({"module": module, "dp_world_size": 8, **native}, folder / "mp_rank_00_model_states.pt")
        return folder / "mp_rank_00_model_states.pt"
    write_sat_checkpoint(folder, "7", network.state_dict())
    checkpoint = folder / "7"
    return {"training folder": folder, "checkpoint": checkpoint}.get(layout, checkpoint / "mp_rank_00_model_states.pt")


LAYOUTS = ["native pickle", "native folder", "shards", "diffusers folder", "diffusers file", "training folder", "checkpoint",
           "training file", "DeepSpeed's of the original", "model.diffusion_model.", "transformer.", "_orig_mod.", "module"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same(tmp_path, first_stage, adaln, layout):
    (tmp_path / "ref").mkdir()
    for folder, expected in ((tmp_path, first_stage), (tmp_path / "ref", adaln)):
        found, wanted = load(write(folder, expected, layout), expected.config, start=False).state_dict(), expected.state_dict()
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_names_are_those_of_diffusers_converter(first_stage):
    """diffusers has a converter of its own, which knows no references."""
    native = native_tensors(first_stage)
    theirs = convert_wan_transformer_to_diffusers(dict(native))
    assert theirs.keys() == first_stage.network.state_dict().keys()
    ours = native_names(TINY.num_layers, ref_modulation=False)
    assert all(theirs[ours[name]] is tensor for name, tensor in native.items())


def test_names_cover_the_real_sizes_once_there_and_back():
    for num_layers, ref_modulation, count in ((30, False, 825), (30, True, 857)):
        names = native_names(num_layers, ref_modulation)
        assert len(names) == len(set(names.values())) == count
        assert to_native_names({new: old for old, new in names.items()}, num_layers) == dict(zip(names, names, strict=True))


def test_loading_maps_the_file_draws_nothing_and_keeps_no_meta_tensor(tmp_path, first_stage):
    path = write(tmp_path, first_stage, "native pickle")
    before = torch.get_rng_state()
    network = load(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(tensor.is_meta for tensor in [*network.parameters(), *network.buffers()])
    half = load_wan_transformer(path, TINY, torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def test_a_base_file_starts_references_as_copies_and_says_so(tmp_path, first_stage, capsys):
    path = write(tmp_path, first_stage, "native pickle")
    network = load(path, TINY_ADALN).network
    assert capsys.readouterr().err == f"warning: {path}: has no modulations for references; they start as copies of the video's\n"
    embedder = network.condition_embedder
    assert torch.equal(embedder.time_proj_ref.weight, embedder.time_proj.weight)
    assert torch.equal(embedder.time_proj_ref.bias, embedder.time_proj.bias)
    assert all(torch.equal(block.scale_shift_table_ref, block.scale_shift_table) for block in network.blocks)
    with torch.no_grad():  # copies, not the same tensor under two names
        network.blocks[0].scale_shift_table_ref += 1
    assert not torch.equal(network.blocks[0].scale_shift_table_ref, network.blocks[0].scale_shift_table)
    refused("found no weights of the AdaLN variant, expected .*second_stage_adaln.pt", load, path, TINY_ADALN, start=False)


ODD = {  # name: what stands there, and what is said
    "stray": (torch.ones(1), "1 of 69 unexpected: stray"),
    "head.head.bias": (torch.ones(3), "network.proj_out.bias \\(3,\\) for \\(64,\\)"),
    "blocks.1.norm3.bias": (None, "1 of 69 missing: blocks.1.norm3.bias"),
    "blocks.0.norm3.bias": (torch.ones(64, dtype=torch.int32), "found blocks.0.norm3.bias \\(int32\\)"),
    "module": ({1: torch.ones(1)}, "found 1 names that are no text \\(int 1\\)"),
    "iteration": (3, "found iteration \\(int\\), expected tensors of floating-point numbers"),
}
FOREIGN = {
    "transformer_blocks.0.x": "these are CogVideoX's",
    "blocks.0.attn1.to_q.lora_A.weight": "merge-lora",
    "text_embedding.0.weight": "found text_embedding.0.weight, expected the weights of Wan's transformer; name another file",
    "": "found nothing, expected the weights of Wan's transformer",
}


def test_unfit_files_are_refused_in_one_line(tmp_path, first_stage):
    path, tensors = tmp_path / "unfit.pt", native_tensors(first_stage)
    files = [({**tensors, name: value}, message) for name, (value, message) in ODD.items()]
    files += [({name: torch.ones(1)} if name else {}, message) for name, message in FOREIGN.items()]
    for content, message in files:
        torch.save({name: value for name, value in content.items() if value is not None}, path)
        refused(f"unfit.pt.*{message}", load, path)


def test_other_sizes_and_absent_files_are_refused(tmp_path, first_stage):
    path = write(tmp_path, first_stage, "native pickle")
    (tmp_path / "empty").mkdir()
    for other, config, message in (
        (path, dataclasses.replace(TINY, num_layers=3), "does not fit Wan's transformer .*missing: blocks.2"),
        (path, dataclasses.replace(TINY, ffn_dim=96), "does not fit WanDiffusionTransformer .*of another shape"),
        (tmp_path / "nowhere.pt", TINY, "no such file"),
        (tmp_path / "empty", TINY, "found no weights, expected diffusion_pytorch_model.safetensors"),
    ):
        refused(message, load, other, config)
