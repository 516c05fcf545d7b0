"""Captions by a tiny Qwen2.5-VL with random weights: for clips that have none, once each."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from in_process import refused
from odd_input import is_told
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from concat_id.models.captioner import Captioner

from .conftest import read

MARKS = ["<pad>", "<end>", "<vision_start>", "<vision_end>", "<|image_pad|>", "<|video_pad|>"]
WORDS = ["a", "person", "in", "green", "walks", "through", "the", "garden", "and", "sings"]
TEMPLATE = """{% for message in messages %}{% for part in message.content %}{% if part.type == 'image' %}
<vision_start><|image_pad|><vision_end>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"""


@pytest.fixture(scope="session")
def captioner_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("captioner")
    ids = {word: number for number, word in enumerate([*MARKS, *WORDS])}
    words = Tokenizer(models.WordLevel(ids, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(MARKS)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>", unk_token="a")
    tokenizer.chat_template = TEMPLATE
    small = {"hidden_size": 32, "intermediate_size": 32, "initializer_range": 0.5}  # other images, other words
    text = small | {"vocab_size": len(ids), "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
                    "pad_token_id": 0, "eos_token_id": 1,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}  # fmt: skip
    vision = small | {"depth": 1, "num_heads": 2, "out_hidden_size": 32, "fullatt_block_indexes": [0]}
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, vision_start_token_id=2, vision_end_token_id=3, image_token_id=4,
                              video_token_id=5)  # fmt: skip
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    for part in tokenizer, Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56):
        part.save_pretrained(folder)
    return folder


def test_clips_without_a_caption_get_one_once(videos, prepare, tmp_path, captioner_folder, monkeypatch):
    entries = [{"video_path": str(videos / "whole.mp4")}, {"video_path": str(videos / "cuts.mp4"), "caption": "as the list says"}]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    (tmp_path / "prompt.txt").write_text("a person walks\n")
    run = partial(prepare, "--videos", tmp_path / "list.json", "--output", tmp_path / "out", "--captioner", captioner_folder)
    asked, describe = [], Captioner.describe
    monkeypatch.setattr(Captioner, "describe", lambda self, clips, words: asked.append((clips, words)) or describe(self, clips, words))

    def captions() -> list[str]:
        return [clip["caption"] for clip in read(tmp_path / "out" / "manifest.json")["clips"]]

    assert run().done
    written, given = first = captions()
    assert given == "as the list says" and written and set(written.split()) <= set(WORDS)
    ((frames,), instruction), = asked
    assert len(frames) == 6 and frames[0].size == (288, 192) and "clothes" in instruction
    assert run().done and captions() == first and len(asked) == 1
    (cache,) = (tmp_path / "out" / ".captions").iterdir()
    assert list(read(cache).values()) == [written]
    assert run("--caption_prompt", tmp_path / "prompt.txt").done and asked[1][1] == "a person walks"
    monkeypatch.setattr(Captioner, "describe", lambda self, clips, words: [" "[1:]] * len(clips))
    cache.unlink()
    ended = run()
    discarded = read(tmp_path / "out" / "manifest.json")["discarded"]
    assert captions() == [given] and "no caption: the captioner wrote no words" in [entry["reason"] for entry in discarded], ended.err


def test_a_batch_is_described_as_its_clips_are(captioner_folder):
    captioner = Captioner(captioner_folder, torch.device("cpu"))
    clips = [[Image.new("RGB", (64, 48), colour)] * count for colour, count in (((250, 0, 0), 3), ((0, 90, 250), 1))]
    alone = [captioner.describe([clip], "walks")[0] for clip in clips]
    assert captioner.describe(clips, "walks") == alone and alone[0] != alone[1]


@pytest.mark.parametrize("harm, told", [
    (lambda folder: (folder / "config.json").unlink(), "config.json"),
    (lambda folder: (folder / "config.json").write_text('{"model_type": "t5"}'), "found a t5 model, expected an image-text model"),
    (lambda folder: (folder / "config.json").write_text('{"auto_map": {"AutoConfig": "a.B"}}'), "cannot be loaded"),
    (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot be loaded"),
    (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "found pickled weights"),
    (lambda folder: (folder / "chat_template.jinja").unlink(), "chat_template.jinja"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"none"), "model.safetensors"),
])  # fmt: skip
def test_another_folder_is_told_in_a_line(harm, told, videos, prepare, tmp_path, captioner_folder):
    harm(Path(shutil.copytree(captioner_folder, tmp_path / "m")))
    ended = prepare("--videos", videos / "whole.mp4", "--output", tmp_path / "out", "--captioner", tmp_path / "m")
    assert is_told(ended, 2) and told in ended.err and str(tmp_path / "m") in ended.err


def test_clips_that_do_not_fit_together_are_described_one_by_one(captioner_folder, monkeypatch):
    frames, describe, room = Image.new("RGB", (56, 56), "red"), Captioner._describe, [1]
    captioner = Captioner(captioner_folder, torch.device("cpu"))
    expected = captioner.describe([[frames], [frames, frames]], "a person")

    def narrow(self, clips, instruction):
        if len(clips) > room[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return describe(self, clips, instruction)

    monkeypatch.setattr(Captioner, "_describe", narrow)
    assert captioner.describe([[frames], [frames, frames]], "a person") == expected
    room[0] = 0
    refused("cpu has no room for it; choose a smaller model", captioner.describe, [[frames]], "a person")
