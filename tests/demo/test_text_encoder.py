"""demo/train_text_encoder.py: what it learns, that its files load where the released ones do, and mistakes in one line."""

import json
import random

import pytest
import torch
from conftest import ROOT
from entry import only_error
from in_process import call_main, load_script

from concat_id.errors import UserError
from concat_id.models.text_encoder import TextEncoder
from networks.building import write_tokenizer
from networks.captions import AttributeTable, make_caption, read_captions
from networks.learner import Learner
from networks.muon import orthogonalised
from networks.paraphrases import sentence, vary
from networks.vocabulary import letters, train_vocabulary

COLOURS, PLACES = ("red", "blue", "green", "white", "black", "pink"), ("wall", "curtain", "room", "garden")
SMALL = ("--width", 64, "--layers", 2, "--batch-size", 32, "--steps", 100, "--pieces", 900, "--learning-rate", 1e-2)


@pytest.fixture
def script(monkeypatch, capsys):
    """Call the script's main with options; returns (exit code, standard output, standard error)."""
    module = load_script(ROOT / "demo" / "train_text_encoder.py")

    def call(*options):
        return call_main(module, options, monkeypatch, capsys)

    return call


@pytest.fixture
def captions_list(tmp_path):
    """All colours at all places, some of them held out in one of two wordings."""
    entries = [
        {"caption": f"a man in a {colour} shirt talks before a {place}{extra}", "attributes": {"people": [{"shirt": colour}], "at": place},
         "split": "test" if (row + column) % 4 == 0 and extra else "train"}
        for row, colour in enumerate(COLOURS) for column, place in enumerate(PLACES) for extra in ("", " in soft light")
    ]  # fmt: skip
    (tmp_path / "clips.json").write_text(json.dumps(entries))
    return tmp_path / "clips.json"


def test_it_learns_what_captions_say_and_loads_as_the_released_one(script, captions_list, tmp_path):
    code, said, errors = script("--output", tmp_path / "t5", "--lists", captions_list, *SMALL)
    assert code == 0, errors
    made = json.loads((tmp_path / "t5" / "training.json").read_text())
    assert made["accuracy"].keys() == {"people.0.shirt", "at"} and min(made["accuracy"].values()) > 0.8, "chance is 1/6 and 1/4"
    assert made["held_out"] == 6 and made["fit"] == 1.0 and "48 captions, 6 held out; 100.00% fit" in said
    assert not (tmp_path / "t5.training").exists()

    encoder = TextEncoder(tmp_path / "t5", max_length=32, dtype=torch.float32)
    embeddings = encoder.encode(["a man in a red shirt", "A MAN in a Red shirt", "a man in a blue shirt"])
    assert embeddings.shape == (3, 32, 64) and torch.equal(embeddings[0], embeddings[1])
    assert (embeddings[0] - embeddings[2])[-1].norm() > 0.3 * embeddings[0][-1].norm(), "padding tells the colours apart too"


def test_the_same_command_makes_the_same_file_even_after_a_stop(script, captions_list, tmp_path, monkeypatch):
    few = (*SMALL, "--lists", captions_list, "--steps", 6)
    assert script("--output", tmp_path / "whole", *few)[0] == 0
    descend = Learner._descend

    def stop_after_three(learner, loss):
        descend(learner, loss)
        if learner.done == 3:
            learner.save()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "_descend", stop_after_three)
        assert script("--output", tmp_path / "parts", *few)[0] == 130
    assert not (tmp_path / "parts").exists()
    other = script("--output", tmp_path / "parts", *few, "--seed", 1)
    assert "other settings or data" in only_error(other[0], other[2])
    assert script("--output", tmp_path / "parts", *few)[0] == 0
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {"config.json", "model.safetensors", "spiece.model", "tokenizer_config.json", "training.json"}
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name


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


def test_attributes_are_numbered_and_what_training_never_saw_is_left_out(captions_list):
    captions = read_captions([captions_list])
    learned = [caption for caption in captions if not caption.held_out]
    table = AttributeTable(learned)
    assert table.values["people.0.shirt"] == ["absent", *sorted(COLOURS)]
    foreign = make_caption("a man", {"people": [{"shirt": "mauve"}], "at": "wall"})
    names = list(table.values)
    labels = table.labels([foreign, make_caption("a man", {})])
    assert labels[0, names.index("people.0.shirt")] == -100 and table.values["at"][labels[0, names.index("at")]] == "wall"
    assert (labels[1] == -100).all()


def test_captions_without_a_split_are_held_out_by_their_text(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"caption": f"caption {index}"} for index in range(400)]))
    held_out = {caption.text for caption in read_captions([tmp_path / "a.json"]) if caption.held_out}
    assert 8 <= len(held_out) <= 36
    (tmp_path / "b.json").write_text(json.dumps([{"caption": f"caption {index}"} for index in range(399, 99, -1)]))
    assert {caption.text for caption in read_captions([tmp_path / "b.json"]) if caption.held_out} <= held_out


@pytest.mark.parametrize(
    "content, expected",
    [
        ("[", "cannot be read"),
        ("{}", "found a dict, expected a list"),
        ('[{"video_path": "a.mp4"}]', "entry 0: found no caption"),
        ("[3]", "entry 0: found a int"),
        ('[{"caption": "a man", "split": "test"}]', "found 0 captions to learn from and 1 to measure on"),
        ('[{"caption": "a man", "split": "train"}]', "found 1 captions to learn from and 0 to measure on"),
    ],
)
def test_bad_lists_are_told_in_one_line(script, tmp_path, content, expected):
    (tmp_path / "bad.json").write_text(content)
    code, _, errors = script("--output", tmp_path / "t5", "--lists", tmp_path / "bad.json")
    assert expected in only_error(code, errors) and ("bad.json" in errors or "--lists" in errors)


@pytest.mark.parametrize(
    "options, expected",
    [
        ((), "neither --lists nor --world"),
        (("--world", 9, "--width", 100), "a multiple of 64"),
        (("--world", 9, "--pieces", 10), "--pieces: found 10, expected at least"),
        (("--lists", "nowhere.json"), "nowhere.json: cannot be read"),
    ],
)
def test_bad_options_are_told_in_one_line(script, tmp_path, options, expected):
    code, _, errors = script("--output", tmp_path / "t5", *options)
    assert expected in only_error(code, errors)
    assert not (tmp_path / "t5").exists()


def test_a_finished_folder_is_left_alone(script, tmp_path):
    code, _, errors = script("--output", tmp_path, "--world", 9)
    assert "exists already" in only_error(code, errors)


def test_muon_moves_along_orthogonal_matrices():
    matrix = torch.randn(24, 60, generator=torch.Generator().manual_seed(0)) * 100
    for sides in (matrix, matrix.T):
        strengths = torch.linalg.svdvals(orthogonalised(sides).float())
        assert strengths.min() > 0.6 and strengths.max() < 1.3


def test_a_gradient_that_is_not_finite_ends_the_run():
    network = torch.nn.Linear(2, 2)
    learner = Learner(network, [network.weight], steps=3, learning_rate=1e-3, seed=0)
    with pytest.raises(UserError, match="not finite"):
        list(learner.run(lambda step, generator: (network(torch.ones(1, 2)).sum() * float("nan"), {}), "test"))
