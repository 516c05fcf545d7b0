"""Converted models against the originals: outputs, samples, round trips, and what a converted folder can do by itself."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, assert_close
from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from PIL import Image

from concat_id.config import TransformerConfig, load_config
from concat_id.conversion import names
from concat_id.conversion.check import diffusers_rotary
from concat_id.conversion.folders import detect_model, to_hf, to_sat, write_shards
from concat_id.diffusion.denoiser import Condition, guided_denoiser
from concat_id.diffusion.guidance import guidance_scale
from concat_id.diffusion.samplers import sample_ddim, sample_sde_dpmpp_2m
from concat_id.diffusion.schedule import SamplingSteps
from concat_id.errors import UserError
from concat_id.models.transformer import DiffusionTransformer
from concat_id.pipelines.cogvideox import ConcatIDPipeline as SatPipeline
from concat_id.pipelines.diffusers_pipeline import ConcatIDPipeline
from concat_id.weights import load_sat_checkpoint, load_tensors


def random_pair(kind: str) -> tuple[DiffusionTransformer, CogVideoXTransformer3DModel]:
    """A SAT transformer with random weights and its conversion."""
    scale = 1.875 if kind == "sincos" else 1.0
    config = TransformerConfig(
        num_layers=2, hidden_size=192, num_attention_heads=3, time_embed_dim=64, text_hidden_size=24, text_length=5, latent_height=8,
        latent_width=12, num_frames=9, position_embedding=kind, height_interpolation=scale, width_interpolation=scale,
    )  # fmt: skip
    transformer = DiffusionTransformer(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in transformer.named_parameters():
        parameter.normal_(mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.1, generator=generator)
    settings = names.diffusers_transformer_settings(config)
    converted = CogVideoXTransformer3DModel.from_config(settings)
    tensors = dict(names.made_from(names.diffusers_targets(config.num_layers), transformer.state_dict(), "test"))
    converted.load_state_dict(tensors, strict=True)
    return transformer, converted.requires_grad_(False)


@pytest.mark.parametrize("kind", ["rotary", "sincos"])
@pytest.mark.parametrize("num_refs, num_frames", [(1, 3), (2, 3), (3, 3), (1, 1)])
def test_transformers_compute_the_same(kind, num_refs, num_frames):
    transformer, converted = random_pair(kind)
    generator = torch.Generator().manual_seed(1)
    latents, refs = (torch.randn(2, count, 16, 8, 12, generator=generator) for count in (num_frames, num_refs))
    text, timestep = torch.randn(2, 5, 24, generator=generator), torch.tensor([17, 843])
    frames = torch.cat([latents, refs], dim=1)
    rotary = diffusers_rotary(transformer.config, frames) if kind == "rotary" else None
    found = converted(frames, text, timestep, image_rotary_emb=rotary, return_dict=False)[0][:, :num_frames]
    assert_close(found, transformer(latents, timestep, text, refs), 2e-5)


@pytest.mark.parametrize("kind", ["rotary", "sincos"])
def test_there_and_back_is_bit_equal(kind):
    transformer, converted = random_pair(kind)
    there = converted.state_dict()
    back = dict(names.made_from(names.sat_targets(2), there, "test"))
    original = transformer.state_dict()
    assert back.keys() == original.keys() - {names.POSITIONS}
    assert all(torch.equal(back[name], original[name]) for name in back)


def test_every_tensor_of_5b_has_its_place():
    config = TransformerConfig(num_layers=42, hidden_size=3072, num_attention_heads=48)
    with torch.device("meta"):
        converted = CogVideoXTransformer3DModel.from_config(names.diffusers_transformer_settings(config))
    made = dict(names.made_from(names.diffusers_targets(42), DiffusionTransformer(config, device="meta").state_dict(), "test"))
    expected = converted.state_dict()
    assert {name: tensor.shape for name, tensor in made.items()} == {name: tensor.shape for name, tensor in expected.items()}


@pytest.fixture(scope="module")
def folders(tiny_model, tmp_path_factory):
    """Configuration of the tiny model, its SAT folder, and its conversion."""
    config = load_config([ROOT / "configs" / "debug.yaml", tiny_model])
    target = tmp_path_factory.mktemp("hf") / "model"
    to_hf(tiny_model.parent / "transformer", target, config.model)
    return config, tiny_model.parent / "transformer", target


def picture(shade: int) -> Image.Image:
    return Image.linear_gradient("L").convert("RGB").resize((96, 64)).point(lambda value: (value + shade) % 256)


def load_pipeline(folder) -> ConcatIDPipeline:
    pipe = ConcatIDPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise_like_diffusers(generator: torch.Generator):
    """diffusers' DPM scheduler draws noise once at the first step and twice, for nothing the first time, at every other."""
    drawn = []

    def noise(x: torch.Tensor) -> torch.Tensor:
        for _ in range(1 if not drawn else 2):
            fresh = torch.randn(x.shape, generator=generator)
        drawn.append(True)
        return fresh

    return noise


@pytest.mark.parametrize("kind", ["ddim", "sde_dpmpp_2m"])
@pytest.mark.parametrize("num_refs", [1, 2, 3])
def test_whole_samples_agree(folders, kind, num_refs):
    """Our network, guidance and sampler, on diffusers' signal levels, against the whole diffusers pipeline; same noise."""
    config, _, folder = folders
    pipe, sat = load_pipeline(folder), SatPipeline(config, torch.device("cpu"))
    if kind == "ddim":
        pipe.scheduler = CogVideoXDDIMScheduler.from_config(pipe.scheduler.config)
    pictures = [picture(50 * index) for index in range(num_refs)]
    start = torch.randn(1, 3, 16, 8, 12, generator=torch.Generator().manual_seed(3))
    found = pipe(
        "a man in a red hat", reference_images=pictures, latents=start, num_inference_steps=4, guidance_scale=6.0,
        generator=torch.Generator().manual_seed(9), output_type="latent",
    ).frames  # fmt: skip

    timesteps = pipe.scheduler.timesteps.tolist()
    signal = pipe.scheduler.alphas_cumprod[timesteps].double().sqrt()
    steps = SamplingSteps(timesteps, torch.cat([signal, signal.new_ones(1)]), signal)
    condition = Condition(sat.encode_prompts(["a man in a red hat"])[0], sat.encode_references(pictures))
    denoise = guided_denoiser(sat.transformer, steps, condition, guidance_scale("constant", 6.0, 4))
    sampler = sample_ddim if kind == "ddim" else sample_sde_dpmpp_2m
    expected = sampler(denoise, start, steps, noise_like_diffusers(torch.Generator().manual_seed(9)))
    assert_close(found, expected, 2e-5)


def test_pixels_agree_too(folders):
    config, _, folder = folders
    sat, pipe = SatPipeline(config, torch.device("cpu")), load_pipeline(folder)
    latents = torch.randn(1, 3, 16, 8, 12, generator=torch.Generator().manual_seed(3))
    assert_close(pipe.decode_latents(latents)[0], sat.decode(latents), 2e-5)


def test_a_folder_needs_no_checkout(folders, tmp_path):
    """A fresh process elsewhere, without this package on its path, loads the folder, generates, saves and loads again."""
    _, _, folder = folders
    script = """
import sys, numpy as np, torch
from diffusers import DiffusionPipeline
from PIL import Image
def frames(folder, **options):
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    made = pipe("a man", num_inference_steps=2, generator=torch.Generator().manual_seed(1), output_type="np", **options).frames
    return pipe, made
image = Image.linear_gradient("L").convert("RGB")
pipe, first = frames(sys.argv[1], reference_images=[image])
pipe.save_pretrained(sys.argv[2])
_, again = frames(sys.argv[2], reference_images=[image])
_, without = frames(sys.argv[1])
assert "concat_id" not in sys.modules
assert first.shape == (1, 9, 64, 96, 3), first.shape
assert np.array_equal(first, again)
assert np.abs(first - without).max() > 1e-3
"""
    command = [sys.executable, "-c", script, str(folder), str(tmp_path / "saved")]
    environment = {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def test_batches_callbacks_slicing_and_hooks_left_clean(folders):
    pipe, seen = load_pipeline(folders[2]), []
    pipe.vae.enable_slicing()
    options = {"num_inference_steps": 2, "output_type": "latent"}
    options["callback_on_step_end"] = lambda pipe, step, timestep, values: seen.append(step) or {}
    latents = torch.randn(2, 3, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    rows = [[picture(0)], [picture(99)]]
    pipe.scheduler = CogVideoXDDIMScheduler.from_config(pipe.scheduler.config)
    both = pipe(["a man", "a woman"], reference_images=rows, latents=latents, **options).frames
    second = pipe("a woman", reference_images=rows[1], latents=latents[1:], **options).frames
    assert_close(both[1:], second, 1e-5)
    assert seen == [0, 1, 0, 1]
    assert not pipe.transformer._forward_hooks and not pipe.transformer._forward_pre_hooks
    with pytest.raises(ValueError, match="one list a prompt"):
        pipe(["a man", "a woman"], reference_images=[[picture(0)]], **options)


def test_dtype_shards_and_provenance(folders, tmp_path):
    config, source, folder = folders
    to_hf(source, tmp_path / "half", config.model, dtype=torch.bfloat16)
    half = load_tensors(tmp_path / "half" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in half.values()} == {torch.bfloat16}
    assert load_sat_checkpoint(source).digest in (folder / "README.md").read_text()
    tensors = {f"t{index}": torch.full((100,), float(index)) for index in range(5)}
    write_shards(tmp_path / "shards", "model", tensors.items(), shard_size=900)
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    for name, file in index["weight_map"].items():
        assert np.array_equal(load_tensors(tmp_path / "shards" / file)[name], tensors[name])


def test_back_to_sat(folders, tmp_path):
    _, source, folder = folders
    to_sat(folder, tmp_path / "back")
    original, back = load_sat_checkpoint(source).state_dict, load_sat_checkpoint(tmp_path / "back").state_dict
    assert original.keys() == back.keys()
    assert all(torch.equal(original[name], back[name]) for name in original if name != names.POSITIONS)


def test_what_cannot_be_converted_is_told_and_leaves_nothing(folders, tmp_path):
    config, source, folder = folders
    with pytest.raises(UserError, match="exists already"):
        to_hf(source, folder, config.model)
    with pytest.raises(UserError, match="no known model has 2 layers of width 128"):
        detect_model(load_sat_checkpoint(source).state_dict, [("mini", load_config([ROOT / "configs" / "mini.yaml"]).model)])
    deeper = load_config([ROOT / "configs" / "mini.yaml"]).model
    with pytest.raises(UserError, match="108 tensors are missing"):
        to_hf(source, tmp_path / "x", deeper)
    assert list(tmp_path.iterdir()) == []
