"""What training draws and corrupts, and that it depends on (seed, step, part) alone."""

import dataclasses

import pytest
import torch
from conftest import ROOT
from training.alone import batch_of

from concat_id.config.loading import load_config
from concat_id.diffusion.denoiser import Condition
from concat_id.diffusion.flow import FlowSchedule
from concat_id.diffusion.loss import add_pixel_noise, draw_timesteps, drop_conditions
from concat_id.diffusion.schedule import zero_snr_schedule
from concat_id.models.autoencoder import VideoAutoencoder
from concat_id.training.objective import Objective, generator_of, recipe_of
from concat_id.training.preparation import open_latent_cache
from concat_id.weights.tensor_cache import TensorCache

CPU = torch.device("cpu")


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_parts_share_the_timesteps(parts):
    drawn = [draw_timesteps(20_000, generator_of(parts, part), part, parts) for part in range(parts)]
    joined = torch.cat(drawn)
    assert (int(joined.min()), int(joined.max())) == (0, 999)
    assert all(int(low.max()) < int(high.min()) for low, high in zip(drawn, drawn[1:], strict=False))
    counts = torch.bincount(drawn[0], minlength=1000)[: 1000 // parts].float()
    assert counts.min() > 0 and abs(float(drawn[0].float().mean()) - 500 / parts) < 10


def test_more_parts_than_timesteps():
    assert [draw_timesteps(1, generator_of(0), part, 12, 5).item() for part in range(12)] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


@pytest.mark.parametrize("name, made, levels", [("debug", zero_snr_schedule, "signal"), ("wan_mini", FlowSchedule, "sigmas")])
def test_the_schedule_is_the_configuration_s(name, made, levels):
    model = load_config([ROOT / "configs" / f"{name}.yaml"]).model
    model.schedule = dataclasses.replace(model.schedule, num_timesteps=500, shift=2.0)
    assert torch.equal(getattr(recipe_of(model).schedule, levels), getattr(made(500, 2.0), levels))


def test_noise_of_references_has_the_released_strength():
    noise = add_pixel_noise(torch.zeros(200, 2, 3, 16, 16), generator_of(1))
    log_sigma = noise.flatten(2).std(dim=2).log()
    assert abs(log_sigma.mean() + 3) < 0.1 and abs(log_sigma.std() - 0.5) < 0.06
    assert (log_sigma[:, 0] - log_sigma[:, 1]).abs().mean() > 0.3  # each image its own


def test_dropping():
    condition = Condition(torch.ones(4, 2, 3), torch.ones(4, 1, 2, 2, 2))
    texts, refs = [], []
    for number in range(2000):
        dropped = drop_conditions(condition, 0.1, 0.2, generator_of(number))
        texts.append(dropped.prompt_embeds.mean(dim=(1, 2)))
        refs.append(dropped.ref_latents.flatten(1).mean(dim=1))
    texts, refs = torch.stack(texts), torch.stack(refs)
    assert set(texts.unique().tolist()) == set(refs.unique().tolist()) == {0.0, 1.0}
    assert abs(texts.mean() - 0.8) < 0.02 and abs(refs.mean() - 0.9) < 0.02
    assert (refs.min(dim=1).values == refs.max(dim=1).values).all()  # all of a batch or none
    assert (texts.min(dim=1).values != texts.max(dim=1).values).any()  # sample by sample
    assert torch.equal(drop_conditions(condition, 0, 0, generator_of(0)).prompt_embeds, condition.prompt_embeds)


@pytest.fixture(scope="module")
def objective(setup, tmp_path_factory):
    """The objective of the small random model, with a text encoder's stand-in."""
    config = setup.config(tmp_path_factory.mktemp("objective"))
    autoencoder = VideoAutoencoder.from_config(config.model.autoencoder, config.model.scale_factor)
    return Objective(config, autoencoder, lambda prompts: torch.ones(len(prompts), 16, 32), CPU)


def test_kept_latents_belong_to_one_vae_and_rate(setup, tmp_path):
    config = setup.config(tmp_path, latent_cache=str(tmp_path / "c"))

    def identity(rate=4, path=config.model.autoencoder.path):
        config.model.transformer.time_compressed_rate, config.model.autoencoder.path = rate, str(path)
        return str(open_latent_cache(config).identity)

    assert identity() != identity(rate=2) != identity(rate=1)
    for name in ("diffusion_pytorch_model.safetensors", "config.json"):
        (tmp_path / name).write_text(name)
    before = identity(path=tmp_path)
    (tmp_path / "config.json").write_text('{"latents_mean": [0.5]}')
    assert identity(path=tmp_path) != before


def record(objective, calls, step, part, parts=2):
    batch = batch_of(torch.randn(1, 3, 5, 32, 32, generator=generator_of("video")).tanh(), torch.zeros(1, 2, 3, 32, 32))

    def network(latents, timestep, text, refs):
        calls.append((latents, timestep, text, refs))
        return torch.zeros_like(latents)

    return objective.training_loss(network, batch, step, part, parts)


def test_everything_follows_from_seed_step_and_part(objective):
    first, again, other_step, other_part = [], [], [], []
    asked = (first, 3, 0), (again, 3, 0), (other_step, 4, 0), (other_part, 3, 1)
    losses = [record(objective, calls, step, part) for calls, step, part in asked]
    assert losses[0] == losses[1] and all(torch.equal(one, two) for one, two in zip(first[0], again[0], strict=True))
    for other in (other_step, other_part):
        assert not torch.equal(first[0][0], other[0][0]) and not torch.equal(first[0][3], other[0][3])
    assert first[0][1] < 500 <= other_part[0][1]
    assert first[0][0].shape == (1, 2, 16, 4, 4) and first[0][3].shape == (1, 2, 16, 4, 4)


def test_timesteps_are_the_schedule_s(objective, monkeypatch):
    monkeypatch.setattr(objective, "num_timesteps", 10)
    assert set(objective.draw_timesteps(100, generator_of(0), 1, 2).tolist()) == {5, 6, 7, 8, 9}


def test_clips_are_posterior_samples_in_training_and_means_in_validation(objective):
    batch = batch_of(torch.randn(1, 3, 5, 32, 32).tanh(), torch.zeros(1, 1, 3, 32, 32))
    mean, std = objective.autoencoder.encode_moments(batch.video)
    assert torch.equal(objective.encode_video(batch), mean)
    noise = torch.randn(mean.shape, generator=generator_of(5))
    torch.testing.assert_close(objective.encode_video(batch, generator_of(5)), mean + std * noise)


def test_clips_are_encoded_once_with_a_cache(objective, tmp_path, monkeypatch):
    monkeypatch.setattr(objective, "latents", TensorCache(tmp_path, "weights"))
    batch = batch_of(torch.randn(2, 3, 5, 32, 32).tanh(), torch.zeros(2, 1, 3, 32, 32))
    batch.windows = ["one", None]
    found = objective.encode_video(batch, generator_of(5))
    batch.moments, batch.video = [objective.latents.read("one"), None], batch.video[1:]
    assert torch.equal(objective.encode_video(batch, generator_of(5)), found) and objective.latents.read(None) is None


def test_references_are_encoded_alone(objective):
    refs = torch.randn(2, 2, 3, 32, 32).tanh()
    both = objective.encode_refs(refs)
    assert both.shape == (2, 2, 16, 4, 4)
    torch.testing.assert_close(both[1, 0], objective.autoencoder.encode(refs[1:, 0, :, None])[0, 0], atol=1e-5, rtol=1e-4)


def test_validation_is_the_same_every_time_with_noise_of_its_own_at_each_timestep(objective):
    batch, seen = batch_of(torch.zeros(2, 3, 5, 32, 32), torch.randn(2, 2, 3, 32, 32).tanh()), []

    def network(latents, timestep, text, refs):
        seen.append((latents, refs))
        return latents * 0.5

    losses = objective.validation_losses(network, batch, [990, 991], 0)
    (first, refs), (second, _) = seen
    assert (first - second).abs().mean() > 0.5 and torch.equal(refs, objective.encode_refs(batch.refs))
    assert losses == objective.validation_losses(network, batch, [990, 991], 0) and losses[0] != losses[1]
    assert losses != objective.validation_losses(network, batch, [990, 991], 1)
    assert torch.equal(objective.shown(batch), batch.refs[0])
