"""Low-rank products: nothing at first, equal to the merged weights later, small on disk, and continued exactly."""


import torch
from in_process import refused
from training import alone

from concat_id.config.cogvideox import LoraConfig
from concat_id.config.constraints import validate
from concat_id.models.transformer import DiffusionTransformer
from concat_id.training.lora import add_low_rank, low_rank_scale
from concat_id.weights.loading import load_sat_checkpoint, load_strictly
from concat_id.weights.low_rank import DOWN, UP, load_low_rank, with_product


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


def test_a_run_saves_little_continues_exactly_and_merges(setup, call, tmp_path):
    config = setup.config(tmp_path, train_iters=4, save_interval=2)
    config.model.lora = LoraConfig(rank=4, alpha=4.0)
    whole, parts = alone.train_in_parts(config, tmp_path)
    for tag in ("4", "4-ema"):
        (mine, scale), (theirs, _) = load_low_rank(parts / tag), load_low_rank(whole / tag)
        assert scale == 1.0 and all(torch.equal(mine[name], theirs[name]) for name in theirs) and mine.keys() == theirs.keys()
    assert sum(file.stat().st_size for file in (whole / "4").rglob("*") if file.is_file()) < 500_000
    assert call("convert_weights", "merge-lora", whole / "4", tmp_path / "merged", "--load", config.args.load).code == 0
    before, after = load_sat_checkpoint(config.args.load).state_dict, load_sat_checkpoint(tmp_path / "merged").state_dict
    different = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(different) == 4 and all(name.endswith(("query_key_value.weight", "dense.weight")) for name in different)


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
