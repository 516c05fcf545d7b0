"""ConsistentID's adapter against the released code's outputs: fusion, identity tokens, UNet, prompts."""

import pytest
import torch
from conftest import assert_close, golden_arrays, seeded
from golden_consistentid import META, SIZES, make_adapter, make_unet, tokenizer  # noqa: F401
from golden_portraits import RELEASED_PARTS
from in_process import refused
from safetensors.torch import save_file

from concat_id.models.consistentid.adapter import GROUPS, load_adapter, read_adapter, released_groups, sizes_of
from concat_id.models.consistentid.base_model import make_scheduler
from concat_id.models.consistentid.prompts import FacialTokenizer, clauses_of

GOLDEN = golden_arrays("consistentid_shared")
P = "consistentid/"


@pytest.fixture(scope="module")
def adapter():
    return make_adapter()


@torch.no_grad()
@pytest.mark.parametrize("case", range(len(META["fe_cases"])))
def test_words_are_fused_with_parts(adapter, case):
    positions, tokens = META["fe_cases"][case], META["clip_tokens"]
    text = seeded(f"{P}fe{case}/text", (len(positions), 77, SIZES.text))
    parts = seeded(f"{P}fe{case}/parts", (len(positions), 5, tokens, SIZES.features))
    before = text.clone()
    assert_close(adapter.FacialEncoder(text, parts, positions), GOLDEN[f"fe{case}/out"], 1e-5)
    assert torch.equal(text, before)


def test_parts_become_tokens(adapter):
    parts = seeded(f"{P}fe0/parts", (1, 5, META["clip_tokens"], SIZES.features))
    assert_close(adapter.FacialEncoder.visual_projection(parts[0]), GOLDEN["fe0/projected"], 1e-5)


def identity(adapter, faceless: bool = False) -> torch.Tensor:
    vectors = seeded(f"{P}proj_in/id", (2, 512))
    return adapter.image_proj(vectors * (not faceless), seeded(f"{P}proj_in/clip", (2, META["clip_tokens"], SIZES.features)))


@torch.no_grad()
def test_a_face_becomes_identity_tokens(adapter):
    assert_close(identity(adapter), GOLDEN["proj/out"], 1e-5)
    assert_close(identity(adapter, faceless=True), GOLDEN["proj/out_noface"], 1e-5)
    latents = adapter.image_proj.norm(adapter.image_proj.proj(seeded(f"{P}proj_in/id", (2, 512))).unflatten(-1, (4, -1)))
    assert_close(latents + 0.5 * identity(adapter), GOLDEN["proj/out_shortcut"], 1e-5, "the way that SDXL goes")


@torch.no_grad()
@pytest.mark.parametrize(("scale", "name"), [(1.0, "out"), (0.5, "out_scale0.5"), (0.0, "out_scale0.0")])
def test_the_unet_attends_to_the_identity(adapter, scale, name):
    inputs = seeded(f"{P}unet_in/x", (2, 4, 32, 32)), torch.tensor([17, 843]), seeded(f"{P}unet_in/text", (2, 77, SIZES.text))
    adapter.set_strength(scale)
    try:
        found = adapter.unet(*inputs, cross_attention_kwargs={"identity": GOLDEN["proj/out"]}).sample
    finally:
        adapter.set_strength(1.0)
    assert_close(found, GOLDEN[f"unet/{name}"], 1e-5)


@torch.no_grad()
def test_the_unet_without_the_adapter(adapter):
    inputs = seeded(f"{P}unet_in/x", (2, 4, 32, 32)), torch.tensor([17, 843]), seeded(f"{P}unet_in/text", (2, 77, SIZES.text))
    assert_close(make_unet()(*inputs).sample, GOLDEN["unet/out_base"], 1e-5)


@pytest.mark.parametrize(("name", "steps", "golden"), [("euler", 6, "euler"), ("ddim", 6, "ddim"), ("euler", 50, "euler50")])
def test_samplers_have_the_released_noise_levels(name, steps, golden):
    scheduler = make_scheduler(name)
    scheduler.set_timesteps(steps)
    assert_close(scheduler.timesteps.float(), GOLDEN[f"pipe/{golden}/timesteps"], 1e-6)
    if name == "euler":
        assert_close(scheduler.sigmas, GOLDEN[f"pipe/{golden}/sigmas"], 1e-6)


@pytest.mark.parametrize("case", META["prompts"], ids=range(len(META["prompts"])))
def test_prompts_tell_where_parts_go(tokenizer, case):  # noqa: F811
    parts = [RELEASED_PARTS.get(part, "eyes") for part in case["parts"]]
    clauses = clauses_of(case["caption"], parts)
    assert clauses.text == case["text_face"]
    assert [part for part in parts if part in clauses.words] == [RELEASED_PARTS.get(part, "eyes") for part in case["parts_kept"]]
    made = FacialTokenizer(tokenizer).for_sampling(case["prompt"], case["caption"], parts)
    assert (made.tokens, made.positions) == (case["ids"], case["positions"])
    assert made.text.replace("<|facial|>", "") == case["plain_text"]
    assert (FacialTokenizer(tokenizer).plain(made.text) == case["ids"]) == case["plain_text_same_ids"]


def test_ears_and_eyes_are_swapped_as_released(tokenizer):  # noqa: F811
    parts = ["face", "eyes", "ears", "nose", "mouth"]
    made = FacialTokenizer(tokenizer).for_sampling("A man", "One face, one nose, two eyes, two ears, and one mouth.", parts)
    assert made.words == ("face", "ears", "eyes", "nose", "mouth")
    assert made.order(parts) == [0, 1, 2, 3, 4] and made.order(parts, "intended") == [0, 2, 1, 3, 4]
    assert made.order(["face", "nose"]) == [0, 1], "parts without a mask have no place"


def test_the_released_file_is_read_and_written(adapter, tmp_path):
    groups = released_groups(adapter.state_dict())
    assert {group: {name: list(tensor.shape) for name, tensor in tensors.items()} for group, tensors in groups.items()} == {
        group: META["keys"][group] for group in GROUPS
    }
    torch.save(groups, tmp_path / "a.bin")
    torch.save({"image_proj_model" if name == "image_proj" else name: group for name, group in groups.items()}, tmp_path / "b.bin")
    flat = {f"{'image_proj_model' if name == 'image_proj' else name}.{key}": tensor
            for name, group in groups.items() for key, tensor in group.items()}  # fmt: skip
    of_unet = {f"module.unet.{key}": tensor for key, tensor in adapter.unet.state_dict().items()}
    torch.save(flat | of_unet, tmp_path / "pytorch_model.bin")  # as the released trainer saves it, with more processes than one
    shared = {name: tensor for name, tensor in flat.items() if not name.startswith("adapter_modules.")}
    save_file(of_unet | shared, tmp_path / "model.safetensors")  # as accelerate does: what has two names is there once
    refused("; name .*model.safetensors or .*pytorch_model.bin", read_adapter, tmp_path)
    for name in ("a.bin", "b.bin", "pytorch_model.bin", "model.safetensors"):
        assert released_groups(read_adapter(tmp_path / name)).keys() == groups.keys()
        assert sizes_of(read_adapter(tmp_path / name), name, SIZES.head_size) == SIZES
        loaded = load_adapter(make_unet(), tmp_path / name, torch.float32, head_size=SIZES.head_size)
        assert all(torch.equal(tensor, adapter.state_dict()[key]) for key, tensor in loaded.state_dict().items())


def test_the_sizes_of_the_released_file():
    """Every name and shape of ConsistentID-v1.bin, on the UNet of Stable Diffusion 1.5."""
    from diffusers import UNet2DConditionModel

    from concat_id.models.consistentid.adapter import AdapterSizes, ConsistentIDAdapter
    from concat_id.weights.model_folders import made_on

    with made_on("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        adapter = ConsistentIDAdapter(unet, AdapterSizes())
    shapes = {f"{group}.{name}": shape for group, names in META["v1_keys"].items() for name, shape in names.items()}
    assert {name: list(tensor.shape) for name, tensor in adapter.state_dict().items()} == shapes
    assert list(unet.attn_processors) == META["v1_processors"]
