"""demo/train_text_encoder.py: what it learns, that its files load where the released ones do, and mistakes in one line."""

import importlib.util
import json
import random

import pytest
import torch
from conftest import ROOT
from entry import only_error
from in_process import call_main, load_script, refused

from concat_id.models.text_encoder import TextEncoder
from networks.building import write_tokenizer
from networks.captions import AttributeTable, Caption, flat
from networks.learner import Descent
from networks.paraphrases import sentence, vary
from networks.text_encoder import TextEncoderTrainer, TextTraining
from networks.vocabulary import letters, train_vocabulary

COLOURS, PLACES = ("red", "blue", "green", "white", "black", "pink"), ("wall", "curtain", "room", "garden")
CAPTIONS = [  # all colours at all places, some of them held out in one of two wordings
    Caption(f"a man in a {colour} shirt talks before a {place}{extra}", {"people.0.shirt": colour, "at": place},
            held_out=(row + column) % 4 == 0 and bool(extra))
    for row, colour in enumerate(COLOURS) for column, place in enumerate(PLACES) for extra in ("", " in soft light")
]  # fmt: skip


def trainer(output, steps: int, seed: int = 0) -> TextEncoderTrainer:
    """A small one."""
    output.mkdir()
    training = TextTraining(width=64, layers=2, heads=1, hidden=128, pieces=900, steps=steps, batch_size=32, learning_rate=1e-2, seed=seed)
    return TextEncoderTrainer(CAPTIONS, training, output)


def test_it_learns_what_captions_say_and_loads_as_the_released_one(tmp_path):
    small = trainer(tmp_path / "t5", 100)
    small.train()
    accuracy = small.accuracy(small.held_out)
    assert accuracy.keys() == {"people.0.shirt", "at"} and min(accuracy.values()) > 0.8, "chance is 1/6 and 1/4"
    assert len(small.held_out) == 6 and small.lengths().max() <= 32
    small.finish({"accuracy": accuracy})
    names = {path.name for path in (tmp_path / "t5").iterdir()}
    assert names == {"config.json", "model.safetensors", "spiece.model", "tokenizer_config.json", "training.json"}
    assert json.loads((tmp_path / "t5" / "training.json").read_text())["accuracy"] == accuracy

    encoder = TextEncoder(tmp_path / "t5", max_length=32, dtype=torch.float32)
    embeddings = encoder.encode(["a man in a red shirt", "A MAN in a Red shirt", "a man in a blue shirt"])
    assert embeddings.shape == (3, 32, 64) and torch.equal(embeddings[0], embeddings[1])
    assert (embeddings[0] - embeddings[2])[-1].norm() > 0.3 * embeddings[0][-1].norm(), "padding tells the colours apart too"


def test_the_same_training_makes_the_same_file(tmp_path):
    for name in ("once", "again"):
        small = trainer(tmp_path / name, 3)
        small.train()
        small.finish({})
    for path in (tmp_path / "once").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_no_letter_is_unknown(tmp_path):
    pieces = train_vocabulary(["a man in a red t-shirt", "two people"] * 20, 700)
    tokenizer = write_tokenizer(tmp_path, pieces, 32)
    unknown = [letter for letter in letters() if tokenizer.unk_token_id in tokenizer(letter)["input_ids"]]
    assert not unknown and set("aäöüßéñłжω€7") <= set(letters())
    words = "Eine FRAU läuft über die Straße in Łódź, señor – Привет"
    assert tokenizer.unk_token_id not in tokenizer(words)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("People in red T-shirt")["input_ids"])[:4] == ["▁people", "▁in", "▁red", "▁t-shirt"]


def test_paraphrases_keep_what_is_said():
    words = random.Random(0)
    caption = "a woman in a red hat turns left and smiles in front of a blue wall"
    varied = {vary(caption, words) for _ in range(50)}
    assert len(varied) > 25
    for text in varied:
        assert {"red", "hat", "left", "blue"} <= set(text.rstrip(".").split()) and text.index("red") < text.index("blue")
    assert len({sentence(words) for _ in range(50)}) > 45


def test_attributes_are_numbered_and_what_training_never_saw_is_left_out():
    table = AttributeTable([caption for caption in CAPTIONS if not caption.held_out])
    assert table.values["people.0.shirt"] == ["absent", *sorted(COLOURS)]
    names = list(table.values)
    (labels,) = table.labels([Caption("a man", dict(flat({"people": [{"shirt": "mauve"}], "at": "wall"})), False)])
    assert labels[names.index("people.0.shirt")] == -100 and table.values["at"][labels[names.index("at")]] == "wall"


@pytest.mark.parametrize("options, expected", [(("--world", 9), "--world: found 9, expected at least 200"), ((), "exists already")])
def test_bad_options_are_told_in_one_line(tmp_path, monkeypatch, capsys, options, expected):
    ended = call_main(load_script(ROOT / "demo" / "train_text_encoder.py"), ("--output", tmp_path, *options), monkeypatch, capsys)
    assert expected in only_error(ended.code, ended.err)


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed: `bash scripts/setup.sh people`")
def test_shots_drawn_by_lot_are_learned_from(tmp_path, monkeypatch, capsys):
    options = "--output", tmp_path / "t5", "--world", 200, "--steps", 1
    ended = call_main(load_script(ROOT / "demo" / "train_text_encoder.py"), options, monkeypatch, capsys)
    assert ended.code == 0 and "200 captions" in ended.out and "people.0.clothes.color" in ended.out, ended.err


def test_a_gradient_that_is_not_finite_ends_the_run():
    network = torch.nn.Linear(2, 2)
    learner = Descent(network, [network.weight], learning_rate=1e-3)
    refused("not finite", learner.descend, network(torch.ones(1, 2)).sum() * float("nan"), 0.0)
