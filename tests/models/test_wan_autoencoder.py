"""Wan's autoencoder against diffusers' own, from both file formats, and what holds for any weights."""


import pytest
import torch
from conftest import assert_close
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from in_process import refused
from tiny_wan import TINY_VAE, native_autoencoder

from concat_id.models.wan.autoencoder import WanAutoencoder


@pytest.fixture(scope="module")
def library():
    """diffusers' autoencoder with weights that leave some contrast."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = AutoencoderKLWan(**TINY_VAE)
    for parameter in autoencoder.parameters():
        parameter.data.mul_(1.5 if parameter.dim() > 4 else 1)
    return autoencoder.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def native_file(tmp_path_factory, library):
    path = tmp_path_factory.mktemp("vae") / "Wan2.1_VAE.pth"
    torch.save(native_autoencoder(library.state_dict()), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, library):
    path = tmp_path_factory.mktemp("diffusers")
    library.save_pretrained(path / "vae")
    return path


@pytest.fixture(scope="module")
def autoencoder(native_file):
    return WanAutoencoder.from_path(native_file, **TINY_VAE)


def clip(frames: int, batch: int = 1, size: tuple[int, int] = (32, 48)) -> torch.Tensor:
    return torch.rand(batch, 3, frames, *size, generator=torch.Generator().manual_seed(frames)) * 2 - 1


@pytest.mark.parametrize("source", ["native file", "folder", "folder's vae"])
def test_every_format_gives_the_same(source, native_file, folder, library):
    path = {"native file": native_file, "folder": folder, "folder's vae": folder / "vae"}[source]
    found, expected = WanAutoencoder.from_path(path, **TINY_VAE).autoencoder, library.state_dict()
    told = "does not fit AutoencoderKLWan" if source == "native file" else r"channels: found \[8, .*block_out_channels"
    refused(told, WanAutoencoder.from_path, path, **TINY_VAE | {"base_dim": 16})
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())
    assert not any(tensor.is_meta or tensor.requires_grad for tensor in found.state_dict(keep_vars=True).values())


def test_names_cover_wan_once_there_and_back_as_diffusers_converter_has_them():
    """Names of the published file by its structure (wan/modules/vae.py); 126,892,531 numbers fill its 507,609,880 bytes but for 40 kB."""
    with torch.device("meta"):
        real = AutoencoderKLWan().state_dict()
    native = native_autoencoder(real)
    assert len(native) == len(real) == 194
    theirs = convert_wan_vae_to_diffusers(dict(native))
    assert all(theirs[name] is tensor for name, tensor in real.items()) and theirs.keys() == real.keys()
    assert sum(tensor.numel() for tensor in native.values()) == 126_892_531


def test_latents_are_normalised_by_channel(autoencoder, library):
    video = clip(9, size=(16, 24))
    posterior = library.encode(video).latent_dist
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (library.config.latents_mean, library.config.latents_std))
    found, deviation = autoencoder.encode_moments(video)
    assert found.shape == (1, 3, 16, 2, 3) and found.dtype == torch.float32
    assert_close(found.transpose(1, 2), (posterior.mean - mean) / std, 1e-6)
    assert_close(deviation.transpose(1, 2), posterior.std / std, 1e-6)


@pytest.mark.parametrize("latent_frames", [1, 3])
def test_decode_is_the_librarys(autoencoder, library, latent_frames):
    latents = torch.randn(2, latent_frames, 16, 2, 3, generator=torch.Generator().manual_seed(0))
    calls = []
    video = autoencoder.decode(latents, progress=lambda done, total: calls.append((done, total)))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (library.config.latents_mean, library.config.latents_std))
    clips = (latents.transpose(1, 2) * std + mean).split(1)
    assert_close(video, torch.cat([library.decode(clip).sample for clip in clips]), 1e-5)
    assert video.shape == (2, 3, 4 * latent_frames - 3, 16, 24) and video.std() > 0.01
    assert calls == [(index + 1, 2 * latent_frames) for index in range(2 * latent_frames)]
    assert not autoencoder.autoencoder.decoder._forward_hooks
    refused("expected (batch, frames, 16, height, width)", autoencoder.decode, latents.transpose(1, 2))


def test_tiles_are_the_librarys_and_small_images_need_none(autoencoder, library):
    small, large = (torch.randn(1, 1, 16, 4, width, generator=torch.Generator().manual_seed(0)) for width in (52, 60))
    assert torch.equal(autoencoder.decode(small, tiled=True), autoencoder.decode(small))
    calls = []
    tiled = autoencoder.decode(large, tiled=True, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    whole = autoencoder.decode(large)
    assert tiled.shape == whole.shape and not torch.equal(tiled, whole)
    assert (tiled - whole).abs().mean() < 0.2 * whole.std()
    assert not autoencoder.autoencoder.use_tiling


def test_casts_do_not_round_the_normalisation(native_file):
    half = WanAutoencoder.from_path(native_file, torch.bfloat16, **TINY_VAE)
    assert half.dtype == torch.bfloat16
    assert half._by_channel(half.mean).dtype == torch.float32
    exact = WanAutoencoder.from_path(native_file, **TINY_VAE).encode(clip(5))
    assert (half.encode(clip(5)) - exact).abs().mean() < 0.05 and half.encode(clip(5)).dtype == torch.float32
    assert half.decode(exact).dtype == torch.float32


def test_a_folder_of_other_sizes_than_the_keys_is_refused(tmp_path, folder):
    refused(f"{folder / 'vae'}: latent channels: found 16, expected 8", WanAutoencoder.from_path, folder, **TINY_VAE | {"z_dim": 8})
    AutoencoderKLWan(**TINY_VAE, temperal_downsample=[False, False, True]).save_pretrained(tmp_path)
    refused("frames a latent: found 2, expected 4 by model.transformer.time_c", WanAutoencoder.from_path, tmp_path)


def test_unfit_files_are_refused_in_one_line(tmp_path, native_file):
    tensors = torch.load(native_file, weights_only=True)
    for removed, message in (
        ("decoder.head.2.bias", "does not fit AutoencoderKLWan .*missing: decoder.conv_out.bias"),
        ("encoder.conv1.weight", "missing: encoder.conv_in.weight"),
    ):
        torch.save({name: tensor for name, tensor in tensors.items() if name != removed}, tmp_path / "vae.pth")
        refused(message, WanAutoencoder.from_path, tmp_path / "vae.pth", **TINY_VAE)
    refused("no such file", WanAutoencoder.from_path, tmp_path / "nowhere.pth")
