"""ConsisID beside Concat-ID: the results of diffusers' pipeline through the command of this project, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, assert_close
from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler, ConsisIDPipeline, ConsisIDTransformer3DModel
from entry import PROMPT, only_error, results
from in_process import refused
from PIL import Image
from tiny_consisid import HIDDEN, VECTOR, write_tiny_consisid
from transformers import T5EncoderModel, T5Tokenizer

from concat_id.models.consisid import load_scheduler
from concat_id.sampling import consisid
from concat_id.sampling.consisid import FaceFeatures, load_face_reader


@pytest.fixture(scope="module")
def tiny_consisid(tmp_path_factory):
    return write_tiny_consisid(tmp_path_factory.mktemp("tiny consisid"))


def face(photo: Image.Image) -> FaceFeatures | None:
    """What stands for a face, of other numbers for another photograph; a photograph of coffee has none."""
    if photo.size == (600, 400):
        return None
    generator = torch.Generator().manual_seed(int(np.asarray(photo).sum()))
    features = [torch.randn(1, *HIDDEN, generator=generator) for _ in range(5)]
    seen = photo.resize((64, 64))
    return FaceFeatures(seen, seen, torch.randn(1, VECTOR, generator=generator), features, None)


@pytest.fixture
def run(call, tiny_consisid, faces, tmp_path, monkeypatch):
    """Run the command with options; what was denoised is kept as `latents`."""
    monkeypatch.setattr(consisid, "load_face_reader", lambda *_: face)
    decode, latents = consisid.Pipeline.decode, []
    monkeypatch.setattr(consisid.Pipeline, "decode", lambda self, made: latents.append(made) or decode(self, made))

    def start(*options, paths=tiny_consisid):
        files = ROOT / "configs" / "consisid.yaml", paths, faces
        return call("sample_video", "--base", *files, "--prompt", PROMPT, "--output", tmp_path / "out", *options)

    start.latents = latents
    return start


def by_diffusers(paths, photo: Image.Image, **options) -> torch.Tensor:
    """The latents of diffusers' own pipeline, loaded by its own readers."""
    folder = yaml.safe_load(paths.read_text())["model"]["path"]
    parts = [kind.from_pretrained(folder, subfolder=name) for kind, name in (
        (T5Tokenizer, "tokenizer"), (T5EncoderModel, "text_encoder"), (AutoencoderKLCogVideoX, "vae"),
        (ConsisIDTransformer3DModel, "transformer"), (CogVideoXDPMScheduler, "scheduler"))]  # fmt: skip
    known, options = face(photo), {"num_inference_steps": 3, "guidance_scale": 6.0, "prompt": PROMPT} | options
    made = ConsisIDPipeline(*parts)(
        known.seen, height=32, width=48, num_frames=9, id_cond=known.identity, id_vit_hidden=known.features,
        generator=torch.Generator().manual_seed(42), output_type="latent", **options,
    )  # fmt: skip
    return made.frames


def test_results_are_those_of_diffusers(run, tiny_consisid, photo, tmp_path):
    ended = run("--image", photo)
    assert ended.code == 0, ended.err
    assert_close(run.latents[0], by_diffusers(tiny_consisid, Image.open(photo)), 1e-5)
    (folder,) = results(tmp_path)
    info = json.loads((folder / "info.json").read_text())
    placed = {"network": "diffusers", "attention_kernel": "auto", "compiled": False, "memory": "balanced", "tiled_decoding": False}
    assert info["run"] == placed | {"threads": torch.get_num_threads()}
    assert Image.open(folder / "reference_1.png").size == (64, 64) and (folder / "video.mp4").stat().st_size
    assert "finished already" in run("--image", photo).out and len(run.latents) == 1
    assert run("--image", photo, "--overwrite", "--memory", "low").code == 0
    assert_close(run.latents[1], run.latents[0], 1e-5)


def test_dynamic_guidance_and_a_negative_prompt(run, tiny_consisid, photo):
    assert run("--image", photo, "--guidance", "dynamic", "--negative-prompt", "two people").code == 0
    expected = by_diffusers(tiny_consisid, Image.open(photo), use_dynamic_cfg=True, negative_prompt="two people")
    assert_close(run.latents[0], expected, 1e-5)


def test_kernels_and_8_bits(run, photo):
    for options in ([], ["--attention-kernel", "math", "--overwrite"], ["--quantize", "int8"]):
        ended = run("--image", photo, *options)
        assert ended.code == 0, ended.err
    exact, math, quantised = run.latents
    assert_close(math, exact, 1e-5)
    assert 1e-5 < (quantised - exact).norm() / exact.norm() < 0.2


@pytest.mark.parametrize("cache", ["first_block", "dbcache"])
def test_step_caches(run, photo, cache, tmp_path):
    first = run("--image", photo, "--cache", cache, "--cache-threshold", 0)
    assert first.code == 0, first.err
    assert run("--image", photo).code == 0
    assert_close(run.latents[0], run.latents[1], 1e-5)  # where nothing is skipped
    assert run("--image", photo, "--cache", cache, "--cache-threshold", 10, "--num-inference-steps", 12).code == 0
    made = [json.loads((folder / "info.json").read_text())["samples"][0] for folder in results(tmp_path)]
    assert min(len(each.get("computed_steps", range(99))) for each in made) < 12 and run.latents[2].isfinite().all()


def test_options_that_do_not_fit_are_refused(run, photo):
    refused_ones = ("--cache mag", "--parallel video", "--attention-kernel sage", "--quantize gguf:x", "--load x", "--ref-guidance-scale 2",
                    "--sampling-image-size 64 96", "--guidance-scale 0.5")  # fmt: skip
    for options in [[photo, *words.split()] for words in refused_ones] + [[photo, photo]]:
        ended = run("--image", *options)
        assert "expected" in only_error(ended.code, ended.err), options
    assert not run.latents


def test_photo_without_a_face(run, photographs, tmp_path):
    ended = run("--image", photographs["coffee"])
    assert "found no face, expected one person's" in only_error(ended.code, ended.err) and not results(tmp_path)


def test_missing_files_are_listed_at_once(run, tiny_consisid, photo, tmp_path):
    model = tmp_path / "my half"
    shutil.copytree(tiny_consisid.parent / "ConsisID", model)
    paths = tmp_path / "half.yaml"
    paths.write_text(tiny_consisid.read_text().replace(str(tiny_consisid.parent / "ConsisID"), str(model)))
    settings = model / "scheduler" / "scheduler_config.json"
    settings.write_text(settings.read_text().replace("XDPM", "XDDIM"))
    refused("describes CogVideoXDDIMScheduler, expected CogVideoXDPMScheduler; take the file of", load_scheduler, settings.parent)
    next((model / "transformer").glob("*00002-of*")).unlink()
    ended = run("--image", photo, paths=paths)
    assert "of which diffusion_pytorch_model-00002-of" in only_error(ended.code, ended.err)
    shutil.rmtree(model / "vae")
    (model / "face_encoder" / "parsing_bisenet.pth").unlink()
    ended = run("--image", photo, paths=paths)
    line = only_error(ended.code, ended.err)
    assert "vae/config.json, face_encoder/parsing_bisenet.pth, weights in vae;" in line and f"--local-dir '{model}', or modelscope" in line


def test_packages_that_read_faces_are_named(tiny_consisid, monkeypatch):
    monkeypatch.setattr("concat_id.sampling.consisid.find_spec", lambda name: None)  # `bash scripts/setup.sh neighbours` brings them
    refused("found no package .*facexlib", lambda: load_face_reader(tiny_consisid.parent, torch.device("cpu"), torch.float32))
