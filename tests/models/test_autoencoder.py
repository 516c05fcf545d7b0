"""The video autoencoder against the released one's outputs, from both file formats, and what holds for any weights."""

import dataclasses
import json

import pytest
import torch
from conftest import assert_close, golden_arrays, golden_meta, seeded
from in_process import refused

from concat_id.config.cogvideox import AutoencoderConfig
from concat_id.models.autoencoder import VideoAutoencoder, _ramp, to_diffusers_names, to_sat_names

CASE = golden_meta("vae_shared")
SCALE = 0.7


def golden_weight(key: str, shape) -> torch.Tensor:
    """A tensor of the golden autoencoder, by the rule of the golden files' README."""
    weight = seeded(key, shape)
    if len(shape) > 1:
        return weight / torch.tensor(shape[1:]).prod().sqrt()
    return 0.1 * weight + (1.0 if "norm" in key and key.endswith("weight") else 0.0)


def golden_video(frames: int) -> torch.Tensor:
    """The clip that was encoded, (1, 3, frames, 32, 48)."""
    return (0.5 * seeded(f"vid{frames}", (1, 3, frames, 32, 48))).clamp(-1, 1)


@pytest.fixture(scope="module")
def golden():
    return golden_arrays("vae_shared")


@pytest.fixture(scope="module")
def state_dict():
    """The golden autoencoder's tensors under their released names."""
    return {key: golden_weight(key, shape) for key, shape in CASE["keys"].items()}


def config_of(path) -> AutoencoderConfig:
    return AutoencoderConfig(path=str(path), block_out_channels=(32, 64, 64, 128), layers_per_block=CASE["num_res_blocks"])


@pytest.fixture(scope="module")
def released_file(tmp_path_factory, state_dict):
    """A 3d-vae.pt as released, with training's leftovers beside the weights."""
    path = tmp_path_factory.mktemp("vae") / "3d-vae.pt"
    leftovers = {"loss.logvar": torch.zeros(()), "loss.discriminator.weight": torch.zeros(3)}
    torch.save({"state_dict": {**state_dict, **leftovers}, "epoch": 3}, path)
    return path


@pytest.fixture(scope="module")
def autoencoder(released_file):
    return VideoAutoencoder.from_config(config_of(released_file), SCALE)


@pytest.fixture(scope="module")
def diffusers_folder(tmp_path_factory, autoencoder):
    folder = tmp_path_factory.mktemp("diffusers")
    autoencoder.autoencoder.register_to_config(scaling_factor=SCALE)
    autoencoder.autoencoder.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("frames", [1, 9, 17])
@pytest.mark.parametrize("source", ["released_file", "diffusers_folder"])
def test_equals_released(request, golden, source, frames):
    autoencoder = VideoAutoencoder.from_config(config_of(request.getfixturevalue(source)), SCALE)
    mean, std = autoencoder.encode_moments(golden_video(frames))
    assert_close(mean.transpose(1, 2) / SCALE, golden[f"enc{frames}/mean"], 1e-5)
    assert_close(std.transpose(1, 2) / SCALE, golden[f"enc{frames}/std"], 1e-5)

    video = autoencoder.decode(golden[f"enc{frames}/mean"].transpose(1, 2) * SCALE)
    assert_close(video, golden[f"dec{frames}"], 1e-5)


def test_convolutions_on_a_cpu_are_onednn_s(autoencoder, golden):
    latents = golden["enc9/mean"].transpose(1, 2) * SCALE

    def decoded() -> tuple[torch.Tensor, set[str]]:
        with torch.profiler.profile() as profile:
            video = autoencoder.decode(latents)
        return video, {event.key for event in profile.key_averages()}

    ours, kernels = decoded()
    assert "aten::mkldnn_convolution" in kernels and "aten::slow_conv3d_forward" not in kernels
    convolutions = [module for module in autoencoder.modules() if isinstance(module, torch.nn.Conv3d)]
    kept = [module.__dict__.pop("_conv_forward") for module in convolutions]
    theirs, kernels = decoded()
    for module, convolve in zip(convolutions, kept, strict=True):
        module._conv_forward = convolve
    assert_close(ours, theirs, 1e-5)
    assert "aten::slow_conv3d_forward" in kernels, "what would be taken otherwise"
    inputs = torch.randn(1, convolutions[0].in_channels, 3, 4, 4, requires_grad=True)
    assert convolutions[0](inputs).sum().backward() is None and inputs.grad.isfinite().all()


def test_names_go_there_and_back(autoencoder, state_dict):
    renamed = to_diffusers_names(state_dict)
    assert renamed.keys() == autoencoder.autoencoder.state_dict().keys()
    back = to_sat_names(renamed)
    assert back.keys() == state_dict.keys() and all(back[key] is state_dict[key] for key in back)


def test_loading_draws_no_random_numbers_and_keeps_no_meta_tensor(released_file):
    before = torch.get_rng_state()
    autoencoder = VideoAutoencoder.from_config(config_of(released_file), SCALE)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(tensor.is_meta or tensor.requires_grad for tensor in autoencoder.state_dict(keep_vars=True).values())


def test_samples_follow_the_generator_and_the_moments(autoencoder):
    video = golden_video(1).repeat(2, 1, 1, 1, 1)
    mean, std = autoencoder.encode_moments(video)
    first, second = (autoencoder.encode(video, sample=True, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(autoencoder.encode(video), mean)
    noise = (first - mean) / std
    assert 0.9 < noise.std() < 1.1 and abs(noise.mean()) < 0.1
    assert not torch.equal(noise[0], noise[1])


def test_any_number_of_latent_frames_gives_4k_plus_1(autoencoder):
    latents = torch.randn(1, 4, 16, 2, 3, generator=torch.Generator().manual_seed(0))
    for latent_frames, chunks in ((1, 1), (2, 1), (4, 2)):
        calls = []
        video = autoencoder.decode(latents[:, :latent_frames], progress=lambda done, total, calls=calls: calls.append((done, total)))
        assert video.shape == (1, 3, 4 * latent_frames - 3, 16, 24) and video.dtype == torch.float32
        assert calls == [(index + 1, chunks) for index in range(chunks)]
    repeated = autoencoder.decode(torch.cat([latents, latents[:, -1:]], dim=1))
    assert torch.equal(video, repeated[:, :, :13]), "an even number is decoded as if the last were there twice"


def test_latents_of_other_numbers_of_frames(tmp_path, released_file):
    for rate in (1, 2):
        autoencoder = VideoAutoencoder.from_config(config_of(released_file), SCALE, temporal=rate)
        for frames in (1, 3, 5):
            video = golden_video(frames)
            latents = autoencoder.encode(video)
            assert latents.shape[1] == (frames - 1) // rate + 1
            assert autoencoder.decode(latents).shape == video.shape
            same = autoencoder.autoencoder.encode(video).latent_dist.mean * SCALE  # diffusers' own, which sees so few frames at once
            assert torch.allclose(latents, same.transpose(1, 2), atol=1e-5)
    autoencoder.autoencoder.save_pretrained(tmp_path)
    refused("frames a latent: found 2, expected 4 by model.transformer.time_c", VideoAutoencoder.from_config, config_of(tmp_path), SCALE)


def test_a_folder_of_other_sizes_than_the_keys_is_refused(diffusers_folder):
    own = config_of(diffusers_folder)
    for scale, keys, told in (
        (SCALE, {"block_out_channels": (32, 64, 128)}, "pixels a latent: found 8, expected 4 by model.autoencoder.block_out_channels;"),
        (SCALE, {"latent_channels": 8}, "latent channels: found 16, expected 8 by model.autoencoder.latent_channels;"),
        (1.15258426, {}, "scaling_factor: found 0.7, expected 1.15258426 by model.scale_factor;"),
    ):
        refused(f"{diffusers_folder}: {told}", VideoAutoencoder.from_config, dataclasses.replace(own, **keys), scale)
    assert VideoAutoencoder.from_config(own, None).scale_factor == SCALE


def test_one_tile_is_the_untiled_decode(autoencoder, golden):
    latents = golden["enc1/mean"].transpose(1, 2)
    assert torch.equal(autoencoder.decode(latents, tiled=True), autoencoder.decode(latents))


def test_tiles_cover_and_blend_to_the_same_image(autoencoder, monkeypatch):
    """With a decoder that enlarges only, tiles must restore the image, whatever their overlaps."""

    def enlarge(latents, conv_cache=None):
        return torch.nn.functional.interpolate(latents[:, :3, :1], scale_factor=(1, 8, 8)), None

    monkeypatch.setattr(autoencoder.autoencoder.decoder, "forward", enlarge)
    latents = torch.randn(2, 1, 16, 33, 47, generator=torch.Generator().manual_seed(0))
    assert_close(autoencoder.decode(latents, tiled=True, tile_size=(12, 20)), autoencoder.decode(latents), 1e-5)


def test_a_tile_fades_over_the_overlap_towards_its_neighbours_alone():
    inner, first = _ramp(slice(4, 28), 32, 1), _ramp(slice(0, 24), 32, 1)
    assert inner[0] == inner[-1] == 0.5 / 8 and inner[7] == 7.5 / 8 and inner[8] == 1
    assert first[0] == 1 and torch.equal(first[8:], inner[8:])


UNFIT = {
    (1, 3, 8, 32, 48): "found 8 frames, expected 4k+1; use 9",
    (1, 3, 5, 30, 48): "found 30x48 pixels, expected multiples of 8",
    (1, 4, 5, 32, 48): "expected (batch, 3, frames",
}


def test_unfit_shapes_are_refused(autoencoder):
    for shape, message in UNFIT.items():
        refused(message, autoencoder.encode, torch.zeros(shape))
    refused("expected (batch, frames, 16, height, width)", autoencoder.decode, torch.zeros(1, 16, 1, 4, 6))


def test_foreign_weights_are_refused(tmp_path, released_file, diffusers_folder):
    load = VideoAutoencoder.from_config
    other = dataclasses.replace(config_of(released_file), block_out_channels=(64, 64, 64, 128))
    refused("3d-vae.pt: does not fit AutoencoderKLCogVideoX ", load, other, SCALE)
    refused("no config.json", load, config_of(tmp_path), SCALE)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    refused("describes AutoencoderKL, expected AutoencoderKLCogVideoX", load, config_of(tmp_path), SCALE)
    (tmp_path / "config.json").write_bytes((diffusers_folder / "config.json").read_bytes())
    refused("found no weights, expected diffusion_pytorch_model.safetensors", load, config_of(tmp_path), SCALE)
