"""Clothes and backgrounds as references: cut out and cleared by exact masks, and by tiny models of the real classes through the script."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_subjects import write_detector, write_inpainter, write_segmenter

from concat_id.curation import subjects
from concat_id.curation.clip_people import DiscardError
from concat_id.curation.subjects import OBJECTS, clear_of_people, cut_out_clothes
from concat_id.data.records import read_records
from concat_id.models import segmenter
from concat_id.models.segmenter import Segment

from .conftest import HEIGHT, WIDTH, read

GREY, RED, BLUE = (90, 90, 90), (250, 10, 10), (10, 10, 250)


def frame_with(*garments: tuple[int, tuple[int, int, int]]) -> tuple[Image.Image, list[Segment]]:
    """A grey frame with rectangles of 40 x 30 pixels from a column on, and the mask of each."""
    pixels, masks = np.full((100, 200, 3), GREY, np.uint8), []
    for left, colour in garments:
        mask = np.zeros(pixels.shape[:2], bool)
        mask[50:90, left : left + 30] = True
        pixels[mask] = colour
        masks.append(Segment(1.0, mask))
    return Image.fromarray(pixels), masks


def test_garments_are_cut_out_on_black_from_left_to_right():
    frame, masks = frame_with((120, BLUE), (20, RED))
    speck = np.zeros_like(masks[0].mask)
    speck[:5, :5] = True
    sleeve = masks[0].mask & (np.arange(200) < 130)
    red, blue = cut_out_clothes(frame, 2, lambda image, words: [*masks, Segment(1.0, sleeve), Segment(1.0, speck)], "clothes")
    assert red.size == blue.size == (34, 44) and red.getpixel((17, 22)) == RED and blue.getpixel((17, 22)) == BLUE
    assert red.getpixel((0, 0)) == (0, 0, 0)
    for people in (1, 3):
        with pytest.raises(DiscardError, match="not one 'clothes' of at least 1%"):
            cut_out_clothes(frame, people, lambda image, words: masks, "clothes")


def test_people_alone_are_taken_out_for_a_thing_that_the_seed_draws():
    frame, masks = frame_with((20, RED), (120, BLUE))
    asked = []

    def fill(image, mask, prompt, seed):
        asked.append((prompt, seed))
        return Image.fromarray(np.where(mask[..., None], np.uint8(0), np.asarray(image)))

    def cleared(seed: int) -> np.ndarray:
        return np.asarray(clear_of_people(frame, lambda image, words: masks, fill, np.random.default_rng(seed)))

    first = cleared(0)
    assert not first[48:92, 20:50].any() and not first[50:90, 18:52].any(), "grown by some pixels"
    assert (first[:45] == GREY).all() and (first[:, 60:110] == GREY).all()
    cleared(0), cleared(1)
    assert asked[0] == asked[1] != asked[2] and {prompt for prompt, _ in asked} <= set(OBJECTS) and "person" not in OBJECTS
    for found, words in (([], "nobody"), ([Segment(1.0, np.ones((100, 200), bool))], "people cover more than 80%")):
        with pytest.raises(DiscardError, match=words):
            clear_of_people(frame, lambda image, words, found=found: found, fill, np.random.default_rng(0))


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("subjects")
    makers = {"detector": write_detector, "segmenter": write_segmenter, "inpainter": write_inpainter}
    return {name: make(home / name) for name, make in makers.items()}


@pytest.fixture
def add(call, folders, monkeypatch, tmp_path, videos, portraits):
    """Start sat/add_subjects.py on a list of two clips, with random weights that find the whole image wherever they look."""
    monkeypatch.setattr(segmenter, "BOX", 0.0)
    monkeypatch.setattr(subjects, "INSIDE", -1.0)
    monkeypatch.setattr(subjects, "LARGEST", 1.0)
    portraits["left"].save(tmp_path / "face.png")
    entries = [{"video_path": str(videos / f"{name}.mp4"), "caption": name, "image_path": image, "mask_path": image}
               for name, image in {"whole": "face.png", "cuts": "face.png@@face.png"}.items()]  # fmt: skip
    (tmp_path / "list.json").write_text(json.dumps(entries))
    options = [part for name, folder in folders.items() for part in (f"--{name}", folder)]
    return partial(call, "add_subjects", tmp_path / "list.json", "--output", tmp_path / "lists" / "more.json", *options,
                   "--size", HEIGHT, WIDTH, "--skip", 0, "--max_refs", 5, "--device", "cpu")  # fmt: skip


def test_a_list_gets_clothes_and_backgrounds_once(add, tmp_path):
    told = add().done
    assert "1 with clothes" in told and "1 without clothes: not one 'clothes'" in told and "2 with background" in told
    written = tmp_path / "lists" / "more.json"
    one, two = read_records([written])
    assert one.kinds == ("face", "clothes", "background") and two.kinds == ("face", "face", "background")
    assert [bool(mask) for mask in two.masks] == [True, True, False]
    assert all(Image.open(image).getbbox() for images in one.images for image in images)

    def state() -> dict[Path, tuple[int, bytes]]:
        return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in sorted((tmp_path / "lists" / "more.subjects").rglob("*.*"))}

    first, entries = state(), read(written)
    assert len(first) == 7 and add().done and read(written) == entries and state() == first
    (clothes,), (background,) = one.images[1:]
    clothes.unlink()
    background.write_bytes(background.read_bytes()[:100])
    assert add().done
    again = state()
    assert [content for _, content in again.values()] == [content for _, content in first.values()] and again != first
    assert add("--kinds", "clothes", "--seed", 1).done and state() == again, "what does not depend on it stays"
    assert add("--max_refs", 3, "--seed", 1).done and state()[background] != again[background] and state()[clothes] == again[clothes]
    assert [record.kinds for record in read_records([written])] == [one.kinds, two.kinds]


def test_other_entries_stay_as_they_are(add, tmp_path):
    (entry, _), source = read(tmp_path / "list.json"), tmp_path / "list.json"
    others = {"image_path": "", "mask_path": ""}, {"video_path": "face.png"}, {"kind": "clothes"}
    source.write_text(json.dumps([entry | other for other in others]))
    assert add().done == f"{tmp_path / 'lists' / 'more.json'}: 3 entries\n"

    def read_back(file: Path) -> list[tuple]:
        return [(one.video.resolve(), [[image.resolve() for image in own] for own in one.images + one.masks], one.kinds)
                for one in read_records([file])]  # fmt: skip

    assert read_back(source) == read_back(tmp_path / "lists" / "more.json")


def test_what_does_not_fit_is_told(add, folders, tmp_path):
    def told(*options) -> str:
        ended = add(*options)
        assert ended.code == 2 and ended.err.count("error: ") == 1 and "Traceback" not in ended.err, ended.err
        return ended.err

    def changed(name: str, file: str, change) -> Path:
        folder = Path(shutil.copytree(folders[name], tmp_path / f"{name} {file.replace('/', ' ')}"))
        change(folder / file)
        return folder

    assert "found a sam2 model, expected Grounding DINO" in told("--detector", folders["segmenter"])
    assert "found a grounding-dino model, expected SAM 2" in told("--segmenter", folders["detector"])
    assert "model_index.json: found no such file" in told("--inpainter", folders["detector"])
    assert "expected a .json file that is no list to read" in told("--output", tmp_path / "list.json")
    assert "--words: found 0 letters" in told("--words", " ")
    cut = changed("segmenter", "model.safetensors", lambda file: file.write_bytes(file.read_bytes()[:-100]))
    assert f"{cut / 'model.safetensors'}: " in told("--segmenter", cut)
    assert "knows no words" in told("--detector", changed("detector", "tokenizer.json", Path.unlink))
    assert not (tmp_path / "lists").exists()
    del_one = changed("detector", "model.safetensors", lambda file: save_file(dict(list(load_file(file).items())[:-1]), file))
    assert "found no " in told("--detector", del_one, "--kinds", "clothes")
    assert "knows no words" in told("--inpainter", changed("inpainter", "tokenizer_2/tokenizer.json", Path.unlink))
    assert not (tmp_path / "lists" / "more.json").exists()
    assert add().done
    folder = next((tmp_path / "lists" / "more.subjects").glob("whole-*-background"))
    (folder / "subjects.json").rename(folder / "video.json")
    ended = add()
    assert ended.code == 1 and "expected a folder that add_subjects.py made" in ended.err and (folder / "video.json").exists()
