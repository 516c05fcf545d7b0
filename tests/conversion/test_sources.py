"""What can be converted: last and averaged weights of runs, and checkpoints that DeepSpeed and SAT wrote in parts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from in_process import refused

from concat_id.config.yaml_files import run_configuration
from concat_id.conversion import zero
from concat_id.conversion.weight_sources import open_source
from concat_id.weights.loading import SAT_PREFIX, load_sat_checkpoint, load_tensors


def test_last_and_averaged_weights_of_a_run(run):
    name = "time_embed.0.weight"
    last = load_sat_checkpoint(run / "5").state_dict[name]
    for path, weights, factor in [
        (run, None, 1), (run, "plain", 1), (run, "ema", 2), (run / "5", "ema", 2), (run / "5-ema", None, 2), (run / "5-ema", "plain", 1),
        (run / "5-ema", "ema", 2), (run / "5-ema" / "mp_rank_00_model_states.pt", None, 2),
    ]:  # fmt: skip
        source = open_source(path, weights)
        assert torch.equal(source.open()[name], last * factor), (path, weights)
        assert run_configuration(path) == run / "training_config.yaml"
    assert open_source(run, "ema").digest != open_source(run).digest


def test_averages_that_are_not_there(rotary, run, tmp_path):
    told = r"release: found no averaged weights \(no folder release-ema\); leave --weights ema out"
    refused(told, open_source, rotary.checkpoint, "ema")
    shutil.copytree(run / "5-ema", tmp_path / "5-ema")
    told = "5: no such folder, expected the last weights beside 5-ema; leave --weights plain out"
    refused(told, open_source, tmp_path / "5-ema", "plain")


@pytest.fixture(scope="module")
def shards(rotary, tmp_path_factory) -> Path:
    """Checkpoints of the tiny model that two processes wrote."""
    pytest.importorskip("deepspeed")
    output, script = tmp_path_factory.mktemp("shards"), Path(__file__).with_name("write_zero_checkpoints.py")
    command = [sys.executable, str(script), str(next(rotary.checkpoint.rglob("*.pt"))), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | {"PYTHONPATH": str(ROOT / "sat")})
    assert done.returncode == 0, done.stderr[-2000:]
    return output


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_masters_and_averages_of_deepspeeds_shards(shards, kind):
    expected = load_tensors(shards / f"{kind}.safetensors")
    for weights, factor in ((None, 1.0), ("ema", 0.5)):
        found = open_source(shards / kind, weights, precise=True).open()
        assert {SAT_PREFIX + name for name in found} == expected.keys()
        for name, tensor in found.items():
            trained = not name.startswith("transformer.position_embeddings")
            assert tensor.dtype == (torch.float32 if trained else torch.bfloat16), name
            assert torch.equal(tensor, expected[SAT_PREFIX + name] * (factor if trained else 1)), name


def test_weights_of_sats_shards_and_of_zero_2(shards):
    expected = load_tensors(shards / "zero3.safetensors")
    found = open_source(shards / "sat3").open()
    assert {SAT_PREFIX + name for name in found} == expected.keys()
    assert all(torch.equal(tensor, expected[SAT_PREFIX + name].bfloat16()) for name, tensor in found.items())
    plain = open_source(shards / "zero2")  # has all weights in one file besides
    assert plain.path.name == "mp_rank_00_model_states.pt" and plain.open()["time_embed.0.weight"].dtype == torch.bfloat16


def test_parts_of_odd_sizes_and_with_padding():
    numbers = torch.arange(1.0, 12.0)
    models = [{"param_shapes": [{"a": torch.Size([5]), "b": torch.Size([2, 3])}]}] * 2
    of_ranks = [[1, 2, 3, 6, 7, 8], [4, 5, 0, 9, 10, 11]]  # of ZeRO-3: half of each parameter
    optimizers = [{"fp32_flat_groups": [torch.tensor(part).float()]} for part in of_ranks]
    padded = torch.cat([numbers[:5], torch.zeros(3), numbers[5:], torch.zeros(2)]).chunk(2)  # of ZeRO-2: one after the other
    flat = [{"single_partition_of_fp32_groups": [part], "param_alignment_paddings": [[3, 2]]} for part in padded]
    for makers in (zero._zero_3_makers(models, optimizers, False, Path()), zero._zero_2_makers(models, flat, False, Path())):
        assert torch.equal(makers["a"](), numbers[:5]) and torch.equal(makers["b"](), numbers[5:].view(2, 3))
    longer = [{"fp32_flat_groups": [torch.zeros(9)]}] * 2
    refused("the shards hold 9 numbers, expected 6", zero._zero_3_makers, models, longer, False, Path("x"))


def test_incomplete_shards(shards, tmp_path):
    for kind, missing in (("zero3", "bf16_zero_pp_rank_1*optim*"), ("zero3", "zero_pp_rank_0*model*"), ("sat3", "z3_rank_00*")):
        folder = tmp_path / kind
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(shards / kind / "5", folder)
        next(folder.glob(missing)).unlink()
        refused(f"the files of processes {'1' if '1' in missing else '0'} are missing; copy", zero.gathered, folder)
    whole = shutil.copytree(shards / "sat3" / "5", tmp_path / "sat3", dirs_exist_ok=True)
    refused("sat3: holds no averaged weights", zero.gathered, whole, averaged=True)
    mixed = shutil.copytree(shards / "zero2" / "5", tmp_path / "mixed")
    path = next(mixed.glob("*rank_1*optim*"))
    content = load_tensors(path, trust=True, mmap=False)
    content["optimizer_state_dict"]["single_partition_of_fp32_groups"] = [torch.zeros(5)]
    torch.save(content, path)
    refused(r"mixed: the shards hold [\d,]+ numbers, expected [\d,]+; copy all files of one checkpoint", zero.gathered, mixed)
