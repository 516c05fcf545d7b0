"""ViCLIP in its released file format, against transformers' CLIP, of which it is made."""

import numpy as np
import pytest
import torch
from in_process import refused
from models.tiny_clip import tiny_clip, write_tokenizer

from concat_id.models.viclip import MEAN, STD, ViClipEncoder

FRAMES = 3


def released_names(layers: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the layers of transformers' CLIP."""
    renamed = {}
    for name, tensor in layers.items():
        number, rest = name.split(".", 1)
        rest = rest.replace("layer_norm", "ln_").replace("self_attn.out_proj", "attn.out_proj")
        rest = rest.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")
        if "self_attn" not in rest:
            renamed[f"transformer.resblocks.{number}.{rest}"] = tensor
        elif "q_proj" in rest:
            parts = [layers[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            renamed[f"transformer.resblocks.{number}.attn.in_proj_{rest.split('.')[-1]}"] = torch.cat(parts)
    return renamed


def below(state_dict, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(54, positions=32)


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory):
    """Its weights as a ViCLIP of three frames."""
    folder = tmp_path_factory.mktemp("viclip")
    assert write_tokenizer(folder) == 54
    given = clip.state_dict()
    vision = {
        "conv1.weight": given["vision_model.embeddings.patch_embedding.weight"][:, :, None],
        "class_embedding": given["vision_model.embeddings.class_embedding"],
        "positional_embedding": given["vision_model.embeddings.position_embedding.weight"],
        "temporal_positional_embedding": torch.randn(1, FRAMES, 128) * 0.1,
        "proj": given["visual_projection.weight"].T.contiguous(),
        **{f"ln_pre.{name}": tensor for name, tensor in below(given, "vision_model.pre_layrnorm.").items()},
        **{f"ln_post.{name}": tensor for name, tensor in below(given, "vision_model.post_layernorm.").items()},
        **released_names(below(given, "vision_model.encoder.layers.")),
    }
    text = {
        "token_embedding.weight": given["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": given["text_model.embeddings.position_embedding.weight"],
        "text_projection": given["text_projection.weight"].T.contiguous(),
        **{f"ln_final.{name}": tensor for name, tensor in below(given, "text_model.final_layer_norm.").items()},
        **released_names(below(given, "text_model.encoder.layers.")),
    }
    model = {f"vision_encoder.{name}": tensor for name, tensor in vision.items()}
    model |= {f"text_encoder.{name}": tensor for name, tensor in text.items()} | {"temp": torch.tensor(0.01)}
    torch.save({"model": model}, folder / "ViCLIP-L_tiny.pth")
    return folder


@pytest.fixture(scope="module")
def viclip(folder):
    return ViClipEncoder(folder, "cpu")


def expected_video(clip, viclip, frames):
    """Patches of all frames through transformers' layers, with one class token."""
    vision = clip.vision_model
    pixels = torch.from_numpy(((frames / 255 - MEAN) / STD).astype(np.float32)).permute(0, 3, 1, 2)
    patches = vision.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    positions = vision.embeddings.position_embedding.weight
    times = viclip.model.vision_encoder.temporal_positional_embedding[0]
    tokens = torch.cat([(vision.embeddings.class_embedding + positions[0])[None], *(patches + positions[1:] + times[:, None])])[None]
    last = vision.encoder(inputs_embeds=vision.pre_layrnorm(tokens)).last_hidden_state
    vector = clip.visual_projection(vision.post_layernorm(last[:, 0]))[0].numpy()
    return vector / np.linalg.norm(vector)


@torch.no_grad()
def test_video_equals_clips_layers_over_all_frames(clip, viclip):
    frames = np.random.default_rng(0).integers(0, 255, (FRAMES, 32, 32, 3)).astype(np.uint8)
    assert viclip.num_frames == FRAMES
    np.testing.assert_allclose(viclip.encode_video(frames), expected_video(clip, viclip, frames), atol=2e-5)
    assert np.abs(viclip.encode_video(frames) - viclip.encode_video(frames[::-1])).max() > 1e-4, "time has a direction"
    longer = np.repeat(frames, 2, axis=0)[:5]
    np.testing.assert_allclose(viclip.encode_video(longer), expected_video(clip, viclip, longer[[0, 2, 4]]), atol=2e-5)
    np.testing.assert_allclose(viclip.encode_video(frames[:1]), expected_video(clip, viclip, frames[[0, 0, 0]]), atol=2e-5)


@torch.no_grad()
def test_prompt_equals_clips(clip, viclip):
    tokens = [52, *viclip.tokenizer("a b c", add_special_tokens=False)["input_ids"], 53]
    hidden = clip.text_model(input_ids=torch.tensor([tokens])).pooler_output
    expected = clip.text_projection(hidden)[0].numpy()
    vector, chunks = viclip.encode_text("a b c")
    assert chunks == 1
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=2e-5)
    assert viclip.encode_text(" ".join("a" * 31))[1] == 2


def test_incomplete_and_foreign_folders(folder, tmp_path):
    refused("found none, expected one ViCLIP", ViClipEncoder, tmp_path, "cpu")
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "ViCLIP.pth")
    refused("no CLIP tokenizer", ViClipEncoder, tmp_path, "cpu")
    write_tokenizer(tmp_path)
    refused("describes no ViCLIP", ViClipEncoder, tmp_path, "cpu")
    content = torch.load(folder / "ViCLIP-L_tiny.pth")
    del content["model"]["vision_encoder.ln_pre.bias"]
    torch.save(content, tmp_path / "ViCLIP.pth")
    refused("ln_pre.bias", ViClipEncoder, tmp_path, "cpu")
