"""ConsistentID from files on disk: whole samplings of the released code, and a portrait through the script."""

import json
import pickle
import shutil

import pytest
import torch
import yaml
from conftest import ROOT, assert_close, golden_arrays, seeded
from golden_consistentid import META, SIZES, released_folder, tokenizer  # noqa: F401
from golden_portraits import ellipses, image_of
from in_process import refused
from PIL import Image
from safetensors.torch import load_file, save_file
from single_file import single_file
from tiny_faces import write_arcface, write_segformer

from concat_id.config.loading import load_config
from concat_id.models.consistentid.base_model import load_base
from concat_id.sampling import consistentid
from concat_id.sampling.consistentid import Pipeline, PortraitReference
from concat_id.video.face_parts import from_released, part_images, part_masks
from concat_id.video.transforms import clip_pixels

GOLDEN, P, PIPE = golden_arrays("consistentid_shared"), "consistentid/", META["pipe"]


@pytest.fixture(scope="module")
def folder(released_folder):  # noqa: F811
    """The golden files' models, and the file that names them."""
    sampler = {"num_inference_steps": PIPE["steps"], "start_merge_step": 2}
    model = {"base": "base", "image_encoder": "clip", "negative_prompt": PIPE["negative"], "sampler": sampler}
    args = {"load": "adapter.bin", "fp16": False, "sampling_image_size": [PIPE["height"], PIPE["width"]]}
    (released_folder / "own.yaml").write_text(yaml.safe_dump({"model": model, "args": args}))
    return released_folder


@pytest.fixture(autouse=True)
def small_heads(monkeypatch):
    """The golden part projection has heads of 16 numbers, of which a file tells nothing."""
    load = consistentid.load_adapter
    monkeypatch.setattr(consistentid, "load_adapter", lambda *arguments: load(*arguments, head_size=SIZES.head_size))


def pipeline(folder, **sampler) -> Pipeline:
    config = load_config([*FILES, folder / "own.yaml"])
    vars(config.model.sampler).update(sampler)
    return Pipeline(config, torch.device("cpu"))


FILES = [ROOT / "configs" / "consistentid.yaml", ROOT / "configs" / "inference" / "consistentid.yaml"]


@pytest.fixture(scope="module")
def reference() -> PortraitReference:
    photo = image_of("pipe/picture", PIPE["picture"])
    masks = part_masks(from_released(ellipses(512, PIPE["labels"])))
    vector = seeded(f"{P}pipe/id", (1, 512))
    pixels = torch.stack(list(map(clip_pixels, [photo, *part_images(photo, masks)])))
    return PortraitReference(photo, photo, "", "", None, pixels=pixels, parts=tuple(masks), vector=vector / vector.norm())


@torch.inference_mode()
def test_conditions_are_those_of_the_released_code(folder, reference):
    made = pipeline(folder)
    person = made.encode_people([reference])
    assert_close(person.part_features[:, :3], GOLDEN["pipe/parts_hidden"], 1e-5)
    for name, found in zip(("text", "fused", "fused_uncond"), made._texts(PIPE["prompt"], person), strict=True):
        assert_close(found[0], GOLDEN[f"pipe/{name}"], 1e-5, name)
    for name, found in zip(("tokens_uncond", "tokens"), made._identity(person), strict=True):
        assert_close(found, GOLDEN[f"pipe/{name}"], 1e-5, name)


@pytest.mark.parametrize(("name", "merge"), [("euler", 2), ("euler", 0), ("euler", 5), ("ddim", 2)])
def test_samplings_are_those_of_the_released_code(folder, reference, name, merge):
    made = pipeline(folder, name=name, start_merge_step=merge)
    noise = seeded(f"{P}pipe/noise", (1, 4, PIPE["height"] // 8, PIPE["width"] // 8))
    steps = []
    latents = made.denoise(PIPE["prompt"], made.encode_people([reference]), noise, steps.append)
    assert_close(latents, GOLDEN[f"pipe/{name}/m{merge}/latents"], 1e-4)
    assert steps == list(range(PIPE["steps"]))


@pytest.fixture
def portray(folder, face_folder, call, tmp_path):
    """Call the script with everything from files; returns how it ended."""
    if not (folder / "parser").exists():
        write_arcface(folder / "arcface")
        write_segformer(folder / "parser")
    faces = {"detector": str(face_folder), "recognizer": str(folder / "arcface"), "parser": str(folder / "parser")}

    def start(*options, own=(), **model):
        (tmp_path / "more.yaml").write_text(yaml.safe_dump({"model": {"faces": faces | dict(own), **model}}))
        files = "--base", *FILES, folder / "own.yaml", tmp_path / "more.yaml"
        return call("sample_video", *files, "--output", tmp_path / "out", "--sampling_image_size", 128, 96, *options)

    return start


def test_a_portrait_through_the_script(portray, folder, tmp_path, photo):
    options = "--prompt", "a woman laughs", "--image", photo, "--batch_size", 2
    assert portray(*options).done
    (result,) = (tmp_path / "out").glob("0*")
    names = {"portrait.png", "portrait_2.png", "sheet.png", "sheet_2.png", "reference_1.png", "reference_1_crop.png", "info.json"}
    assert {path.name for path in result.iterdir()} == names
    info = json.loads((result / "info.json").read_text())
    assert info["settings"]["seed"] == 2024 and set(info["settings"]["weights"]) == {
        "adapter", "unet", "text_encoder", "autoencoder", "image_encoder"
    }
    assert info["run"]["tiled_decoding"] is False and info["run"]["threads"] == torch.get_num_threads()
    assert Image.open(result / "portrait.png").size == (96, 128)
    first, other = ((result / name).read_bytes() for name in ("portrait.png", "portrait_2.png"))
    assert "finished already" in portray(*options).done and "finished already" in portray(*options, "--sampling_fps", 16).done
    assert portray(*options[:-2], "--seed", 2025).done
    again = next(path for path in (tmp_path / "out").glob("0*") if path != result)
    assert first != other == (again / "portrait.png").read_bytes()
    late = portray(*options[:-2], "--num_inference_steps", 3)
    assert "the face's parts never enter the text: model.sampler.start_merge_step is 2, of 3 steps" in late.err
    Image.open(photo).resize((2000, 2000)).save(tmp_path / "large.png")
    prepare = Pipeline(load_config([*FILES, folder / "own.yaml", tmp_path / "more.yaml"]), torch.device("cpu")).photo_preparer()
    assert len(pickle.dumps(prepare(tmp_path / "large.png"))) < 8e6  # bytes; the photo has 12e6


def test_what_does_not_fit_is_one_line(portray, folder, tmp_path, photo, photographs, recognizer_folder):
    def line(*more, image=photo, **model) -> str:
        ended = portray("--prompt", "a woman laughs", "--image", image, *more, **model)
        assert ended.code and "Traceback" not in ended.err
        return ended.err

    assert "expected one photo, as the model takes one person" in line("--image", photo)
    assert "coffee.png: found no face" in line(image=photographs["coffee"])
    assert "SFace makes vectors of 128 numbers, expected ArcFace's 512" in line(own={"recognizer": str(recognizer_folder)})
    assert "expected prompts with this system" in line("--parallel", "video")
    assert "expected auto with this system" in line("--attention_kernel", "math")
    assert "--guidance_scale: found 0.5, expected 1 or more with this system" in line("--guidance_scale", 0.5)
    assert "nowhere: not there, expected a Segformer" in line(own={"parser": "nowhere"})
    assert "nowhere: no such folder, expected ArcFace; put insightface's buffalo_l" in line(own={"recognizer": "nowhere"})
    shutil.copytree(folder / "base", tmp_path / "xl")
    noise = tmp_path / "xl" / "scheduler" / "scheduler_config.json"
    for key, found in (("timestep_spacing", "trailing"), ("rescale_betas_zero_snr", True), ("beta_end", 0.02)):
        noise.write_text(json.dumps({key: found}))
        assert f"{noise}: {key}: found {found}, expected " in line(base=str(tmp_path / "xl"))
    index = tmp_path / "xl" / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionXLPipeline"))
    assert "found a StableDiffusionXLPipeline, expected Stable Diffusion 1.5" in line(base=str(tmp_path / "xl"))
    groups = torch.load(folder / "adapter.bin")
    torch.save({"adapter_modules": groups["adapter_modules"]}, tmp_path / "part.bin")
    assert "part.bin: found no image_proj, FacialEncoder, expected ConsistentID-v1.bin" in line("--load", tmp_path / "part.bin")
    weights_file = folder / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copytree(folder / "base", tmp_path / "half")
    (tmp_path / "half" / "unet" / weights_file.name).write_bytes(weights_file.read_bytes()[:-1000])
    assert "diffusion_pytorch_model.safetensors" in line(base=str(tmp_path / "half"))
    (tmp_path / "half" / "unet" / weights_file.name).unlink()
    assert f"{tmp_path / 'half' / 'unet'}" in line(base=str(tmp_path / "half"))


def test_lora_files_of_the_community_are_added_to_the_base(folder, tmp_path):
    def loaded(**model):
        made = pipeline(folder)
        vars(made.config.model).update(model)
        return made.load()[0].unet.state_dict()

    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    plain = loaded()
    out, wide = plain[f"{layer}.weight"].shape
    down, up = seeded("lora/down", (4, wide)), seeded("lora/up", (out, 4))
    kohya = "lora_unet_" + layer.replace(".", "_")
    of_kohya = {f"{kohya}.lora_down.weight": down, f"{kohya}.lora_up.weight": up, f"{kohya}.alpha": torch.tensor(4.0)}
    text, zeros = "lora_te_text_model_encoder_layers_0_mlp_fc1.lora", {"down": torch.zeros(4, out), "up": torch.zeros(out, 4)}
    of_text = {f"{text}_down.weight": torch.zeros(4, SIZES.text), f"{text}_up.weight": torch.zeros(2 * SIZES.text, 4)}
    old = {f"unet.{layer}_lora.{way}.weight".replace("to_v", "processor.to_v"): matrix for way, matrix in (("down", down), ("up", up))}
    old |= {f"unet.{layer}_lora.{way}.weight".replace("to_v", "processor.to_out"): matrix for way, matrix in zeros.items()}
    for tensors in (
        {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}, of_kohya, of_kohya | of_text,
        old,
    ):  # fmt: skip
        save_file(tensors, tmp_path / "style.safetensors")
        found = loaded(lora_weights=(str(tmp_path / "style.safetensors"),))
        assert found.keys() == plain.keys(), "and nothing of it stays beside them"
        assert_close(found[f"{layer}.weight"], plain[f"{layer}.weight"] + up @ down, 1e-6)
    lacking = {name.replace("attn2_to_v", "attn3_to_v"): tensor.clone() for name, tensor in of_kohya.items()}
    for tensors, told in (
        ({"a": down}, ""), (of_kohya | {f"{kohya}.dora_scale": torch.ones(out, 1)}, "found lora_unet_.*.dora_scale, of DoRA"),
        (of_kohya | lacking, "found lora_unet_.*attn3_to_v.lora_down.w.*, expected low-rank weights of layers of Stable Diffusion 1.5"),
    ):  # fmt: skip
        save_file(tensors, tmp_path / "other.safetensors")
        refused(f"other.safetensors: {told}", loaded, lora_weights=(str(tmp_path / "other.safetensors"),))


def test_what_libraries_go_on_without_is_missed(folder, tmp_path):
    """Half of a download: words, a layer of the text, a tensor of the others."""
    model = pipeline(folder).config.model
    shutil.copytree(folder / "base", tmp_path / "base")
    model.base = str(tmp_path / "base")
    for part in ("text_encoder", "unet", "vae"):
        (file,) = (tmp_path / "base" / part).glob("*.safetensors")
        whole = load_file(file)
        save_file({name: tensor for name, tensor in whole.items() if name != sorted(whole)[-1]}, file)
        refused(f"found no {sorted(whole)[-1]}", load_base, model, torch.float32)
        save_file(whole | {"mid.scale_weight": torch.ones(1)}, file)
        refused(f"{file}: found mid.scale_weight, by which other weights are multiplied", load_base, model, torch.float32)
        save_file(whole, file)
    for file in sorted((tmp_path / "base").glob("*/*.safetensors")):
        file.rename(file.with_suffix(".fp16.safetensors"))
        assert load_base(model, torch.float32).unet.conv_in.weight.shape, f"{file.parent.name} has a variant alone"
    shutil.rmtree(tmp_path / "base" / "tokenizer")
    refused("tokenizer: found .* as the end of a text, expected 49407", load_base, model, torch.float32)


def test_other_bases_load_from_one_file(folder, tmp_path):
    file, model = tmp_path / "base.safetensors", pipeline(folder).config.model
    expected = load_base(model, torch.float32)
    for parameter in (*expected.unet.parameters(), *expected.vae.parameters(), *expected.text_encoder.parameters()):
        parameter.mul_(2)  # other weights than those of the folder
    save_file(single_file(expected), file)
    model.base_file = str(file)
    found = load_base(model, torch.float32)
    for name in ("unet", "vae", "text_encoder"):
        tensors, own = getattr(found, name).state_dict(), getattr(expected, name).state_dict()
        assert tensors.keys() == own.keys() and all(torch.equal(tensor, own[key]) for key, tensor in tensors.items()), name
    save_file(load_file(file) | {"model.diffusion_model.scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}, file)
    refused("base.safetensors: found model.diffusion_model.scaled_fp8", load_base, model, torch.float32)
    file.write_bytes(file.read_bytes()[:-500])
    refused("base.safetensors", load_base, model, torch.float32)
