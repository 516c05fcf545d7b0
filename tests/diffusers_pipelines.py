"""What holds for the converted pipelines of both models."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from conftest import assert_close
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import hub_utils
from in_process import load_script
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image

from concat_id.video.transforms import fit_and_pad, load_image, to_tensor

SCRIPT = """
import json, sys, torch
from diffusers import DiffusionPipeline
from PIL import Image
image, found = Image.linear_gradient("L").convert("RGB"), []
for folder in sys.argv[1:3]:
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    for references in ([image], []):
        options = {"generator": torch.Generator().manual_seed(1), "output_type": "latent"} | json.loads(sys.argv[3])
        found.append(pipe("a man", reference_images=references, **options).frames)
    if folder == sys.argv[1]:
        pipe.save_pretrained(sys.argv[2])
assert "concat_id" not in sys.modules
first, without, again, _ = found
assert torch.equal(first, again)
assert (first - without).abs().max() > 1e-3
"""


def check_needs_no_checkout(folder: Path, tmp_path: Path, **options) -> None:
    """Let a fresh process elsewhere, without this package on its path, load the folder, generate, save and load again."""
    command = [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path / "saved"), json.dumps(options)]
    environment = {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


def check_pixels(pipeline: type, tmp_path: Path) -> None:
    """References are what this project reads from the same file: upright, transparent parts black, 16 bits scaled."""
    colours, turned = np.random.default_rng(0).integers(0, 256, (24, 16, 4), dtype=np.uint8), Image.Exif()
    turned[0x0112] = 6
    image = Image.fromarray(colours)
    palette = image.convert("RGB").quantize(8)
    files = {
        "opaque": (image.convert("RGB"), {}), "turned": (image.convert("RGB"), {"exif": turned}), "cut_out": (image, {"exif": turned}),
        "grey_cut_out": (image.convert("LA"), {}), "palette": (palette, {}), "palette_cut_out": (palette, {"transparency": 3}),
        "colour_key": (image.convert("RGB"), {"transparency": tuple(colours[0, 0, :3].tolist())}),
        "grey16": (Image.fromarray(colours.view(np.uint16)[..., 0]), {}),
    }  # fmt: skip
    for name, (image, options) in files.items():
        image.save(tmp_path / f"{name}.png", **options)
        expected = to_tensor(fit_and_pad(load_image(tmp_path / f"{name}.png"), (64, 96)))
        assert torch.equal(pipeline._pixels(Image.open(tmp_path / f"{name}.png"), (64, 96))[0, :, 0], expected), name


def check_wrong_calls(pipe, image, **options) -> None:
    """No references are none, and what cannot be used is told in one line before anything is computed."""
    options = {"output_type": "latent", "num_inference_steps": 1, "generator": torch.Generator()} | options
    plain, none = (pipe("a man", reference_images=found, **options | {"generator": torch.Generator()}).frames for found in ([], None))
    assert torch.equal(plain, none)
    wrong = {
        "str": "face.png", "a list of str": ["face.png"], "ndarray": np.zeros((64, 96, 3)), "Tensor": torch.zeros(1, 3, 64, 96),
        "a list of nothing": [[]], "a list of Image, list": [image(), [image()]],
    }  # fmt: skip
    for found, references in wrong.items():
        with pytest.raises(ValueError, match=f"^reference_images: found {found}, expected PIL images"):
            pipe("a man", reference_images=references, **options)
    with pytest.raises(ValueError, match="^give prompt or prompt_embeds"):
        pipe(reference_images=[image()], **options)
    with pytest.raises(ValueError, match="divisible by 16"):
        pipe("a man", reference_images=[image()], **options | {"height": 72})


def check_upload(pipe, monkeypatch, *files: str) -> None:
    """What is uploaded holds the code; the option that would upload before the code is there is refused."""
    uploaded = []
    monkeypatch.setattr(hub_utils, "create_repo", lambda repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(hub_utils, "upload_folder", lambda folder_path, **_: uploaded.extend(Path(folder_path).rglob("*.py")))
    monkeypatch.setattr(hub_utils, "load_or_create_model_card", lambda *_, **__: SimpleNamespace(save=lambda _: None))
    monkeypatch.setattr(hub_utils, "populate_model_card", lambda card: card)
    pipe.push_to_hub("me/mine")
    assert sorted(file.name for file in uploaded) == sorted(files)
    with pytest.raises(ValueError, match=r"call pipe.push_to_hub\(repo_id\)$"):
        pipe.save_pretrained("never", push_to_hub=True)
    assert not Path("never").exists()


def check_oldest(pipeline: type, found: str, oldest: str, monkeypatch) -> None:
    """A diffusers that is too old is refused in one line when the file is read, a later one is not."""
    file = Path(inspect.getfile(pipeline))
    monkeypatch.setattr(diffusers, "__version__", found)
    with pytest.raises(ImportError, match=f"^diffusers: found {found}, expected {oldest} or newer; run pip install --upgrade diffusers$"):
        load_script(file)
    monkeypatch.setattr(diffusers, "__version__", "0.100.0.dev0")
    load_script(file)


def check_batches(pipe, image, latents: torch.Tensor, **options) -> None:
    """A batch is its prompts one by one, with one list of references each, and an error leaves no hook behind."""
    rows, options = [[image(0)], [image(99)]], {"output_type": "latent", "num_inference_steps": 2} | options
    both = pipe(["a man", "a woman"], reference_images=rows, latents=latents, **options).frames
    assert_close(both[1:], pipe("a woman", reference_images=rows[1], latents=latents[1:], **options).frames, 1e-4)
    strong = {"ref_guidance_scale": np.float32(2)} | options
    guided = pipe(["a man", "a woman"], reference_images=rows, latents=latents, **strong).frames
    assert_close(guided[1:], pipe("a woman", reference_images=rows[1], latents=latents[1:], **strong).frames, 1e-4)
    assert not torch.allclose(guided, both, atol=1e-3)
    assert torch.equal(pipe(["a man", "a woman"], reference_images=rows, latents=latents, ref_guidance_scale=[1], **options).frames, both)
    with pytest.raises(ValueError, match="found 2 values for 1 reference images"):
        pipe("a man", reference_images=rows[0], ref_guidance_scale=[2, 2], **options)
    with pytest.raises(ValueError, match="one list a prompt"):
        pipe(["a man", "a woman"], reference_images=rows[:1], **options)
    with pytest.raises(ZeroDivisionError):
        pipe("a man", reference_images=rows[0], callback_on_step_end=lambda *_: 1 / 0, **options)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipe.transformer.modules())


def save_adapter(pipe, folder: Path, **settings) -> None:
    """Give the transformer random low-rank products and save them beside the rest, as diffusers' training scripts do."""
    pipe.transformer.add_adapter(LoraConfig(**settings, init_lora_weights=False))
    layers = get_peft_model_state_dict(pipe.transformer)
    pipe.save_lora_weights(folder, transformer_lora_layers=layers, **_collate_lora_metadata({"transformer": pipe.transformer}))
