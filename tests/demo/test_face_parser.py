"""demo/train_face_parser.py: from images with masks to a folder that the real loader reads, and mistakes in one line."""

import json

import numpy as np
import pytest
from conftest import ROOT
from in_process import call_main, load_script
from PIL import Image

from concat_id.face.parsing import CLASSES, SegformerParser
from networks.face_parser import ParserExample, crop, read_examples

COLOURS = {"background": (20, 20, 160), "skin": (220, 170, 140), "hair": (60, 30, 10), "cloth": (20, 160, 30)}


@pytest.fixture
def script(monkeypatch, capsys):
    """Call the script's main with options; returns (exit code, standard output, standard error)."""
    module = load_script(ROOT / "demo" / "train_face_parser.py")

    def call(*options):
        return call_main(module, options, monkeypatch, capsys)

    return call


def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A face of four parts at a random place, as an image (96, 144, 3) and as classes (96, 144)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :144]
    row, column, size = random.uniform(40, 52), random.uniform(60, 84), random.uniform(14, 20)
    classes = np.full((96, 144), CLASSES.index("background"))
    classes[(abs(x - column) < 2 * size) & (y > row + size)] = CLASSES.index("cloth")
    classes[np.hypot((y - row + 6) / 1.4, x - column) < size + 4] = CLASSES.index("hair")
    classes[np.hypot((y - row) / 1.3, x - column) < size] = CLASSES.index("skin")
    image = np.zeros((96, 144, 3))
    for name, colour in COLOURS.items():
        image[classes == CLASSES.index(name)] = colour
    return (image + random.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8), classes.astype(np.uint8)


@pytest.fixture
def lists(tmp_path):
    """Two frames of each of ten shots, the last two of test people, as demo/render_people.py --images --masks writes them."""
    entries = []
    for shot in range(10):
        images, masks = zip(*(draw(2 * shot + number) for number in range(2)), strict=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        np.savez_compressed(tmp_path / "masks" / f"s{shot}.npz", classes=np.stack(masks))
        for number, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / f"s{shot}_{number}.png")
            entries.append({"video_path": f"s{shot}_{number}.png", "recording": f"s{shot}", "identities": ["p"],
                            "split": "test" if shot > 7 else "train"})  # fmt: skip
    (tmp_path / "clips.json").write_text(json.dumps(entries))
    return tmp_path / "clips.json"


def test_a_parser_is_trained_that_the_real_loader_reads(script, lists, tmp_path):
    assert [example.held_out for example in read_examples([lists])] == [False] * 16 + [True] * 4
    options = ("--lists", lists, "--size", 64, "--steps", 60, "--batch-size", 8)
    code, said, errors = script("--output", tmp_path / "parser", *options)
    assert code == 0, errors
    made = json.loads((tmp_path / "parser" / "training.json").read_text())
    assert "16 faces to learn from, 4 held out" in said and made["iou"].keys() == COLOURS.keys()
    assert made["iou"]["skin"] > 0.6 and made["iou"]["background"] > 0.6 and not (tmp_path / "parser.training").exists()

    image, classes = crop(ParserExample(*draw(99), held_out=True), 96)
    found = SegformerParser(tmp_path / "parser", "cpu").parse(Image.fromarray(image), np.zeros((5, 2)))
    assert found.shape == (96, 96) and (found == classes).mean() > 0.7
    assert script("--output", tmp_path / "parser", *options)[0] == 2, "nothing is written over"


def test_a_crop_keeps_image_and_classes_together():
    image, classes = draw(1)
    cut, labels = crop(ParserExample(image, classes, False), 80, np.random.default_rng(3))
    for name, colour in COLOURS.items():
        inside = labels == CLASSES.index(name)
        assert inside.any() and abs(np.median(cut[inside], axis=0) - colour).max() < 15
    assert 0.05 < (labels == CLASSES.index("skin")).mean() < 0.5


def test_mistakes_are_told_in_a_line(script, lists, tmp_path):
    no_masks = tmp_path / "elsewhere" / "clips.json"
    no_masks.parent.mkdir()
    no_masks.write_text(lists.read_text())
    words, table = tmp_path / "words.json", tmp_path / "table.json"
    words.write_text('["a.png"]')
    table.write_text("{}")
    entries = json.loads(lists.read_text())
    (tmp_path / "train.json").write_text(json.dumps([entry for entry in entries if entry["split"] == "train"]))
    for arguments, text in (
        (["--lists", no_masks], "found no images with masks"),
        (["--lists", words], "found no images with masks"),
        (["--lists", table], "found a dict, expected a list"),
        (["--lists", tmp_path / "train.json"], "expected some of test people"),
        (["--lists", lists, "--size", 60], "--size 60"),
        (["--lists", lists, "--steps", 0], "--steps: found 0"),
    ):
        code, _, errors = script("--output", tmp_path / "parser", *arguments)
        assert code == 2 and text in errors and len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "parser").exists()
