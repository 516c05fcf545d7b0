"""What training draws and spoils, and that it depends on (seed, step, part) alone."""

import copy
import dataclasses

import pytest
import torch

from concat_id.data.cache import CachedLatents
from concat_id.diffusion.denoiser import Condition
from concat_id.diffusion.loss import add_pixel_noise, draw_logit_normal_timesteps, draw_timesteps, drop_conditions, face_weights
from concat_id.models.autoencoder import VideoAutoencoder
from concat_id.training.objective import Objective, generator_of

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


@pytest.mark.parametrize("parts", [1, 3])
def test_logit_normal_timesteps(parts):
    drawn = [draw_logit_normal_timesteps(40_000 // parts, generator_of(parts, part), part, parts, 1000, -0.8, 1.1) for part in range(parts)]
    assert all(int(low.max()) <= int(high.min()) for low, high in zip(drawn, drawn[1:], strict=False))
    logit = torch.special.logit((torch.cat(drawn) + 0.5) / 1000)
    assert abs(logit.mean() + 0.8) < 0.03 and abs(logit.std() - 1.1) < 0.03


def test_the_configuration_chooses_how_timesteps_are_drawn(objective):
    def mean(**args) -> float:
        chosen = copy.copy(objective)
        chosen.args = dataclasses.replace(objective.args, **args)
        return chosen.draw_timesteps(5000, generator_of(7), 0, 1).double().mean().item()

    assert mean() == draw_timesteps(5000, generator_of(7)).double().mean().item()  # as released
    assert mean(timestep_sampling="logit_normal", logit_mean=-3.0) < 100 < 900 < mean(timestep_sampling="logit_normal", logit_mean=3.0)


def test_noise_of_references_has_the_released_strength():
    noise = add_pixel_noise(torch.zeros(200, 2, 3, 16, 16), generator_of(1))
    log_sigma = noise.flatten(2).std(dim=2).log()
    assert abs(log_sigma.mean() + 3) < 0.1 and abs(log_sigma.std() - 0.5) < 0.06
    assert (log_sigma[:, 0] - log_sigma[:, 1]).abs().mean() > 0.3  # each picture its own


def test_face_weights_count_the_covered_part_of_a_cell():
    half, none, two = face_weights([((0.0, 0.0, 0.125, 1.0),), (), ((-0.5, 0.0, 0.25, 2.0), (0.2, 0.5, 0.5, 1.0))], (2, 4), 3.0)[:, 0, 0]
    torch.testing.assert_close(half / half[0, -1], torch.tensor([[2.0, 1.0, 1.0, 1.0]] * 2))  # half of a cell inside
    assert torch.equal(none, torch.ones(2, 4))
    torch.testing.assert_close(two / two[0, -1], torch.tensor([[3.0, 1.0, 1.0, 1.0], [3.0, 3.0, 1.0, 1.0]]))
    assert all(abs(weights.mean() - 1) < 1e-6 for weights in (half, none, two))


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


def record(objective, calls, step, part, parts=2):
    batch = {
        "video": torch.randn(1, 3, 5, 32, 32, generator=generator_of("video")).tanh(),
        "refs": torch.zeros(1, 2, 3, 32, 32), "captions": ["a"],
    }  # fmt: skip

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


def test_errors_of_faces_weigh_as_asked(objective):
    """A network that is wrong in the face alone: its loss grows by the weight, over the mean weight of the frame."""
    batch = {"video": torch.zeros(1, 3, 1, 32, 32), "refs": torch.zeros(1, 1, 3, 32, 32), "captions": ["a"],
             "boxes": [((0.25, 0.0, 0.75, 0.5),)]}  # fmt: skip
    inside = torch.zeros(4, 4)
    inside[:2, 1:3] = 1
    inside.requires_grad_()

    def felt(weight: float, boxes) -> torch.Tensor:
        chosen = copy.copy(objective)
        chosen.args = dataclasses.replace(objective.args, face_weight=weight)
        loss = chosen.training_loss(lambda latents, *_: torch.zeros_like(latents) + inside, batch | {"boxes": boxes}, 0, 0, 1)
        return torch.autograd.grad(loss, inside)[0]

    plain = felt(1.0, batch["boxes"])
    assert torch.equal(plain, felt(5.0, [()])), "no boxes, no weights"
    weights = felt(5.0, batch["boxes"]) / plain
    torch.testing.assert_close(weights, (1 + 4 * inside.detach()) / 2)  # four of sixteen cells weigh 5, the mean is 2


def test_clips_are_posterior_samples_in_training_and_means_in_validation(objective):
    batch = {"video": torch.randn(1, 3, 5, 32, 32).tanh()}
    mean, std = objective.autoencoder.encode_moments(batch["video"])
    assert torch.equal(objective.encode_video(batch), mean)
    noise = torch.randn(mean.shape, generator=generator_of(5))
    torch.testing.assert_close(objective.encode_video(batch, generator_of(5)), mean + std * noise)


def test_references_are_encoded_alone(objective):
    refs = torch.randn(2, 2, 3, 32, 32).tanh()
    both = objective.encode_refs(refs)
    assert both.shape == (2, 2, 16, 4, 4)
    torch.testing.assert_close(both[1, 0], objective.autoencoder.encode(refs[1:, 0, :, None])[0, 0], atol=1e-5, rtol=1e-4)


def test_cached_references_have_the_noise_of_their_key(objective, tmp_path):
    """Samples of the posterior of one noise, whenever it is encoded; keys have noises of their own."""
    objective = copy.copy(objective)
    objective.latents = CachedLatents(tmp_path, "weights")
    refs = torch.rand(2, 2, 3, 32, 32)
    batch = {"refs": refs, "ref_keys": ["one", "two"], "ref_moments": [None, None]}
    first = objective.encode_noisy_refs(batch, generator_of(1), generator_of(2))
    assert first.shape == (2, 2, 16, 4, 4)
    cached = {"ref_keys": ["one", "two"], "ref_moments": [objective.latents.read(key) for key in ("one", "two")]}
    assert torch.equal(objective.encode_noisy_refs(cached, generator_of(3), generator_of(2)), first)
    mean, std = cached["ref_moments"][0]
    noisy = add_pixel_noise(refs[:1], generator_of("reference", '"one"'))
    torch.testing.assert_close(mean, objective.encode_refs(noisy)[0], atol=1e-5, rtol=1e-4)
    assert (std > 0).all() and not torch.allclose(mean, objective.encode_refs(refs[:1])[0], atol=1e-3)


def test_validation_is_the_same_every_time(objective):
    batch = {"video": torch.zeros(1, 3, 5, 32, 32), "refs": torch.zeros(1, 1, 3, 32, 32), "captions": ["a"]}

    def network(latents, timestep, text, refs):
        return latents * 0.5

    losses = objective.validation_losses(network, batch, [10, 900], 0)
    assert losses == objective.validation_losses(network, batch, [10, 900], 0) and losses[0] != losses[1]
    assert losses != objective.validation_losses(network, batch, [10, 900], 1)
