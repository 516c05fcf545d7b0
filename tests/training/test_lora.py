"""Low-rank products: nothing at first, equal to the merged weights later, small on disk, and continued exactly."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import assert_close
from in_process import no_file_larger_than, refused
from sat.model.finetune import lora2
from training import alone

from concat_id.config.cogvideox import LoraConfig
from concat_id.config.constraints import validate
from concat_id.config.loading import COMMAND_LINE
from concat_id.conversion.weight_sources import open_source
from concat_id.models.backbones import load_transformer
from concat_id.models.transformer import DiffusionTransformer
from concat_id.training import checkpoint
from concat_id.training.checkpoint import open_checkpoint
from concat_id.training.lora import FUSED, add_low_rank, low_rank_scale
from concat_id.training.preparation import record_configuration
from concat_id.weights.folders import find_sat_checkpoint
from concat_id.weights.loading import load_files, load_sat_checkpoint, load_strictly, write_sat_checkpoint
from concat_id.weights.low_rank import DOWN, FILE, UP, load_low_rank, with_product


def network_of(config) -> DiffusionTransformer:
    network = DiffusionTransformer(config.model.transformer)
    load_strictly(network, load_sat_checkpoint(config.args.load).state_dict, "tiny")
    return network


@torch.no_grad()
def velocity(network) -> torch.Tensor:
    inputs = alone.noise("latents", shape=(1, 2, 16, 8, 12)), torch.tensor([500]), alone.embed(["a man"])
    return network(*inputs, alone.noise("ref", shape=(1, 1, 16, 8, 12)))


def test_products_change_nothing_before_training_and_equal_merged_weights_after(setup, tmp_path):
    config = setup.config(tmp_path)
    plain, network = network_of(config), network_of(config)
    names = add_low_rank(network, LoraConfig(rank=4, alpha=8.0), torch.Generator().manual_seed(0))
    assert len(names) == 4 and low_rank_scale(network) == 2.0 and low_rank_scale(plain) is None
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert len(trained) == 8 and all(name.endswith((".down.weight", ".up.weight")) for name in trained)
    assert torch.equal(velocity(network), velocity(plain))
    for name, parameter in network.named_parameters():
        if name in trained:
            parameter.data.normal_(generator=torch.Generator().manual_seed(len(name)), std=0.1)
    low_rank = {name: parameter.data for name, parameter in network.named_parameters() if name in trained}
    state, layers = plain.state_dict(), [name.removesuffix(DOWN) for name in low_rank if name.endswith(DOWN)]
    changed = {f"{name}.weight": with_product(state[f"{name}.weight"], low_rank[name + DOWN], low_rank[name + UP], 2.0) for name in layers}
    load_strictly(plain, state | changed, "merged")
    assert (velocity(network) - velocity(plain)).abs().max() < 1e-4
    assert (velocity(network_of(config)) - velocity(plain)).abs().max() > 1e-2


def sat_layer(linear: torch.nn.Linear, parts: int, rank: int, alpha: float) -> torch.nn.Module:
    """SAT's own low-rank form of a layer, as `lora2.LoraMixin` puts it in place, with products that are not zero."""
    layer = lora2.LoraLinear(torch.nn.Linear, parts, linear.in_features, linear.out_features, rank, alpha, original_obj=linear)
    for matrix in layer.matrix_B:
        torch.nn.init.normal_(matrix, std=0.1)
    return layer


def test_products_are_those_of_sat(monkeypatch):
    """The released configurations name `lora2.LoraMixin`, which gives query, key and value a product each."""
    monkeypatch.setattr(lora2, "copy_to_model_parallel_region", lambda x: x)
    network = torch.nn.ModuleDict({"query_key_value": torch.nn.Linear(64, 192), "dense": torch.nn.Linear(64, 64)})
    x, sat = torch.randn(2, 5, 64), {name: sat_layer(network[name], parts, 4, 2.0) for name, parts in FUSED.items() | {("dense", 1)}}
    add_low_rank(network, LoraConfig(rank=4, alpha=2.0, targets=("*",)), torch.Generator().manual_seed(0))
    for name, layer in sat.items():
        assert network[name].down.weight.std().item() == pytest.approx(torch.cat(list(layer.matrix_A)).std().item(), rel=0.1)
        network[name].down.weight.data = torch.cat(list(layer.matrix_A)).detach()
        network[name].up.weight.data = torch.cat(list(layer.matrix_B)).detach()
        assert_close(network[name](x), layer(x), 1e-6)


def test_checkpoints_with_products_of_sat_are_whole_weights(setup, call, tmp_path, capfd):
    config, own = setup.config(tmp_path), tmp_path / "own.yaml"
    own.write_text("model: {lora: {rank: 4, alpha: 2.0}}")
    layer, checkpoint = "transformer.layers.1.attention.query_key_value", load_sat_checkpoint(config.args.load).state_dict
    linear = torch.nn.Linear(128, 384)
    linear.load_state_dict({name: checkpoint.pop(f"{layer}.{name}") for name in ("weight", "bias")})
    sat = sat_layer(linear, 3, 4, 2.0)
    (tmp_path / "sat").mkdir()
    tensors = {f"{layer}.{name}": tensor.detach() for name, tensor in sat.state_dict().items()}
    write_sat_checkpoint(tmp_path / "sat", "1", checkpoint | tensors)
    config.args.load, config.model.lora = str(tmp_path / "sat"), LoraConfig(rank=4, alpha=2.0)
    merged = load_transformer(config, config.args.load).state_dict()
    assert "merged with lora_alpha 2" in capfd.readouterr().err
    assert_close(merged[f"{layer}.weight"], lora2.merge_linear_lora(sat).weight, 1e-6)
    assert call("convert_weights", "to-hf", tmp_path / "sat", tmp_path / "hf", "--base", *setup.bases, own).done
    query = load_files([tmp_path / "hf" / "transformer" / "diffusion_pytorch_model.safetensors"])["transformer_blocks.1.attn1.to_q.weight"]
    assert_close(query, merged[f"{layer}.weight"].chunk(3)[0], 1e-6)
    (tmp_path / "odd").mkdir()
    tensors.pop(f"{layer}.matrix_B.2")
    write_sat_checkpoint(tmp_path / "odd", "1", tensors)
    refused(f"the low-rank matrices of {layer} do not fit", load_sat_checkpoint, tmp_path / "odd")


def test_a_run_saves_little_continues_exactly_and_merges(setup, call, tmp_path):
    config = setup.config(tmp_path, train_iters=4, save_interval=2)
    config.model.lora = LoraConfig(rank=4, alpha=4.0)
    whole, parts = alone.train_in_parts(config, tmp_path)
    for tag in ("4", "4-ema"):
        assert (parts / tag / FILE).read_bytes() == (whole / tag / FILE).read_bytes() and load_low_rank(whole / tag)[1] == 1.0
    assert sum(file.stat().st_size for file in (whole / "4").rglob("*") if file.is_file()) < 500_000
    assert call("convert_weights", "merge-lora", whole / "4", tmp_path / "merged", "--load", config.args.load).code == 0
    before, after = load_sat_checkpoint(config.args.load).state_dict, load_sat_checkpoint(tmp_path / "merged").state_dict
    for changes, told in (
        ({"rank": 5}, r"found .*down.weight of \(12, 128\), model.lora gives \(15, 128\); go on with the rank"),
        ({"alpha": 8.0}, "found scale of 1.0, model.lora gives 2.0; go on with the rank, alpha and targets"),
        ({"targets": ("*.dense",)}, r"found .*query_key_value.down.weight of \(12, 128\), model.lora gives none"),
        ({"targets": ("*.attention.*", "*.mlp.*")}, r"found .*mlp.*.down.weight of nothing, model.lora gives \("),
    ):
        config.model.lora = LoraConfig(**{"rank": 4, "alpha": 4.0} | changes)
        refused(told, alone.make_trainer, config, parts, open_checkpoint(parts))
    different = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(different) == 4 and all(name.endswith(("query_key_value.weight", "dense.weight")) for name in different)


def test_products_stay_with_the_checkpoint_that_they_were_begun_on(setup, tmp_path):
    config, base = setup.config(tmp_path, train_iters=1), tmp_path / "base"
    for tag in ("2", "1"):  # of a run that goes on to 2
        (base / tag).mkdir(parents=True)
        shutil.copy(find_sat_checkpoint(Path(config.args.load)), base / tag)
        (base / "latest").write_text(tag)
    other, config.args.load, config.model.lora = config.args.load, str(base), LoraConfig(rank=2)
    alone.make_trainer(config, tmp_path / "run").train(alone.batches(**alone.SMALL))
    record_configuration(tmp_path / "run", config)
    (base / "latest").write_text("2")
    assert open_source(tmp_path / "run").base.path.parent == base / "1"
    config.args.load = other
    alone.make_trainer(config, tmp_path / "run", open_checkpoint(tmp_path / "run"))
    assert config.args.load == str(base / "1")
    shutil.rmtree(base / "1")
    told = f"args.load: {base / '1'} is gone, expected what its products belong to"
    refused(told, alone.make_trainer, config, tmp_path / "run", open_checkpoint(tmp_path / "run"))
    config.origins.record("args.load", COMMAND_LINE)
    config.args.load = str(shutil.copytree(base / "2", tmp_path / "moved"))
    alone.make_trainer(config, tmp_path / "run", open_checkpoint(tmp_path / "run"))

    config.args.load = str(base)
    (base / "lora.safetensors").touch()  # as to-sat once kept it
    refused("expected whole weights.*merge-lora", alone.make_trainer, config, tmp_path / "new")


def test_a_full_disk_is_told_of_low_rank_weights_too(setup, tmp_path, monkeypatch):
    config = setup.config(tmp_path, train_iters=1)
    config.model.lora = LoraConfig(rank=4)
    trainer = alone.make_trainer(config, tmp_path / "run")
    # a file for each tensor's states, smaller than that of all weights
    monkeypatch.setattr(checkpoint, "write_shards", partial(checkpoint.write_shards, shard_size=1))
    with no_file_larger_than(28 * 1024):
        refused("checkpoint 0: .*; free some space", trainer._save, last=True)
    assert not (tmp_path / "run" / "0").exists()
    trainer._save(last=True)
    written = {file.name: file.stat().st_size for file in (tmp_path / "run" / "0").rglob("*") if file.is_file()}
    assert max(written, key=written.get) == "lora.safetensors"


def test_prefixes_name_what_stays(setup, tmp_path):
    config = setup.config(tmp_path, train_iters=1, lr=1e-2)
    config.model.not_trainable_prefixes = "model.diffusion_model.transformer.layers.0", "conditioner"
    alone.make_trainer(config, tmp_path / "run").train(alone.batches(**alone.SMALL))
    before, after = (load_sat_checkpoint(folder).state_dict for folder in (config.args.load, tmp_path / "run"))
    different = {name for name in after if not torch.equal(before[name], after[name])}
    assert after.keys() == before.keys() and "time_embed.0.weight" in different
    assert not any(name.startswith("transformer.layers.0.") for name in different)
    config.model.not_trainable_prefixes = ("allayers",)
    refused("found allayers, expected all, or the beginning", alone.make_trainer, config, tmp_path / "run")
    config.model.not_trainable_prefixes = ("transformer.layers",)
    told = "found transformer.layers, expected all, or the beginning of a parameter's name; the nearest is model.diffusion_model"
    refused(told, alone.make_trainer, config, tmp_path / "run")
    config.model.not_trainable_prefixes = ("all",)
    refused("model.not_trainable_prefixes: found all, which leaves nothing to train", alone.make_trainer, config, tmp_path / "run")


def test_dropout_is_drawn_by_the_seed_and_not_compiled(setup, tmp_path):
    losses = []
    for number in range(2):
        config = setup.config(tmp_path / str(number), train_iters=4, save_interval=2)
        config.model.lora = LoraConfig(rank=4, alpha=4.0, dropout=0.5)
        losses.append(alone.losses(alone.train_in_parts(config, tmp_path / str(number))[0]))
    assert losses[0] == losses[1]
    config.args.compile = True
    refused("args.compile: found True, expected false or auto with model.lora.dropout", validate, config)


def test_mistakes(setup, tmp_path):
    network, nothing = network_of(setup.config(tmp_path)), LoraConfig(rank=2, targets=("nothing.here",))
    refused("model.lora.targets: found nothing.here, which match no linear layer", add_low_rank, network, nothing, torch.Generator())
    refused("lora.safetensors: found no such file", load_low_rank, tmp_path)
