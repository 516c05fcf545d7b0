"""Manifests, lists, thresholds and vectors that nobody expects: a result, or one line."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from in_process import LOCKING, another_process, load_script, refused
from odd_input import FEW, is_told, mutated, odd_paths, result_or_line, start
from PIL import Image

from concat_id.curation.prepared_videos import recall
from concat_id.curation.source_videos import RECORD, Captions, read_sources
from concat_id.curation.thresholds import Thresholds
from concat_id.data.manifest_files import read_manifest
from concat_id.errors import one_line
from concat_id.files.json_files import write_json

from .conftest import read

PERSON = {"folder": "v/a", "identity": "p"}
CLIP = {"video_path": "v/a.png", "caption": "c", "split": "train", "recording": "r", "people": [PERSON]}
MANIFEST = {"recognizer": "SFace", "threshold": 0.4, "clips": [CLIP, CLIP | {"recording": None, "split": None}]}
BANDS = {"recognizer": "SFace", "cross": [0.1, 0.9], "cross_two": [0.1, 0.9], "trade_off": [0.5, 0.9], "hygiene": 0.4}
THRESHOLDS = {"thresholds": BANDS}
ENTRY = {"video_path": "v/a.png", "caption": "c", "identities": ["p"], "split": "test", "recording": "r"}
MAKE_PAIRS = load_script(ROOT / "sat" / "make_pairs.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with one image of one person, its mask and its vector."""
    folder = tmp_path_factory.mktemp("data")
    for kind in ("a", "a.masks"):
        (folder / "v" / kind).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "v" / kind / "0.png")
    Image.new("RGB", (8, 8)).save(folder / "v" / "a.png")
    write_vectors(folder / "v" / "vectors.npz")
    return folder


def write_vectors(file, files=("a/0.png",), vectors=((0.6, 0.8),), save=np.savez):
    save(file, files=np.array(files), vectors=np.array(vectors))


@FEW
@given(content=mutated(MANIFEST))
def test_any_value_anywhere_in_a_manifest_ends_in_lists_or_one_line(data, content):
    write_json(data / "manifest.json", content)
    ended = start(MAKE_PAIRS, data / "manifest.json", "--output", data / "lists", "--stage", 1)
    assert is_told(ended, 2) or (ended.code == 0 and (data / "lists" / "summary.json").is_file())
    assert {path.name for path in data.iterdir()} == {"v", "manifest.json", "lists"} and not list(data.glob("lists/.*"))


@pytest.mark.parametrize("document, read", [(THRESHOLDS, Thresholds.read), ([ENTRY], lambda file: read_sources([file], Captions()))])
@FEW
@given(drawn=st.data())
def test_any_value_anywhere_in_thresholds_and_lists_is_read_or_told(data, document, read, drawn):
    write_json(data / "v" / "odd.json", drawn.draw(mutated(document)))
    result_or_line(".*odd.json: ", read, data / "v" / "odd.json")


def lying(file):
    """A header that promises 10^12 rows."""
    write_vectors(file)
    with zipfile.ZipFile(file) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content.replace(b"(1, 2), }            ", b"(1000000000000, 2), }"))


DAMAGE = {
    "absent": lambda file: file.unlink(),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-40]),
    "pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "bomb": lambda file: write_vectors(file, vectors=np.zeros((10**6, 2)), save=np.savez_compressed),
    "lying": lying,
    "not a number": lambda file: write_vectors(file, vectors=[(np.nan, 0)]),
    "objects": lambda file: write_vectors(file, vectors=np.array([{}, None], dtype=object)),
    "others": lambda file: write_vectors(file, files=["b/0.png"]),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_vectors_are_told(data, tmp_path, damage):
    shutil.copytree(data / "v", tmp_path / "v")
    write_json(tmp_path / "manifest.json", MANIFEST)
    damage(tmp_path / "v" / "vectors.npz")
    assert "vectors.npz" in refused("prepare the clips again", read_manifest, tmp_path / "manifest.json")


def test_a_record_counts_while_all_of_it_is_there(data, tmp_path):
    def home(name: str, **changes) -> Path:
        folder = shutil.copytree(data / "v", tmp_path / name)
        sizes = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
        clip = CLIP | {"video_path": "a.png", "start": 0.0, "end": 1.0, "people": [PERSON | {"folder": "a"}]}
        made = {"fingerprint": "f", "source": "s", "clips": [clip], "discarded": [], "files": sizes | {"a/1.png": 7, "a.masks/1.png": 7}}
        write_json(folder / RECORD, made | changes)
        return folder

    whole = home("whole")
    assert recall(whole, "f") == read(whole / RECORD), "crops that were taken out by hand stay out"
    assert recall(whole, "g") is None and recall(home("older", files=None), "f")
    damages = [("vectors.npz", DAMAGE[name]) for name in ("absent", "cut", "pipe", "not a number")]
    damages += [(RECORD, lambda file, text=text: file.write_text(text)) for text in ("", "[]", '{"fingerprint": ' + "[" * 10**5)]
    damages += [("a/0.png", DAMAGE["cut"]), ("a.masks/0.png", DAMAGE["absent"])]
    for number, (file, damage) in enumerate(damages):
        damaged = home(str(number))
        damage(damaged / file)
        assert recall(damaged, "f") is None, file
    assert recall(home("clips", clips=[{"video_path": 1}]), "f") is None


def test_a_second_writer_is_told_who_the_first_is(prepare, data, videos, tmp_path):
    write_json(data / "manifest.json", MANIFEST)
    with another_process(LOCKING, tmp_path / ".concat_id.lock") as first:
        code, out, told = prepare("--videos", videos / "whole.mp4", "--caption", "c", "--output", tmp_path)
        assert code == 2 and told == one_line(told) + "\n" and f"{tmp_path}: process {first.pid} on " in told
        assert f"process {first.pid} on " in start(MAKE_PAIRS, data / "manifest.json", "--output", tmp_path).err
        assert [path.name for path in tmp_path.iterdir()] == [".concat_id.lock"]


def test_no_clip_at_all_is_a_failure(prepare, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    code, out, told = prepare("--videos", tmp_path / "black.png", "--caption", "c", "--output", tmp_path / "out")
    assert code == 1 and "manifest.json: found no clip in any video, expected one or more" in told
    assert read(tmp_path / "out" / "manifest.json")["discarded"][0]["reason"] == "no face in 1 frames"
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    code, out, told = prepare("--videos", tmp_path / "nowhere.png", "--caption", "c", "--output", tmp_path / "out")
    assert code == 1 and "nowhere.png" in told and (tmp_path / "out" / "manifest.json").read_bytes() == before, "nothing is lost"


def test_names_that_are_no_text_come_through(prepare, call, portraits, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    name = os.fsdecode(b"caf\xe9 \x1b[31m.png")
    for who, file in {"left": name, "middle": "=1+1.png"}.items():
        portraits[who].save(tmp_path / file)
        entries = [{"video_path": file, "caption": "c", "identities": [file], "split": "test"} for file in (name, "=1+1.png")]
    write_json(tmp_path / "list.json", entries)
    code, out, told = prepare("--videos", "~/list.json", "--output", "~/out", "--crop", 64)
    assert code == 0 and not Path("~").exists(), told
    assert "\x1b" not in out + told
    code, out, told = call("make_pairs", "~/out/manifest.json", "--output", "~/lists")
    assert code == 0 and "\x1b" not in out + told, told
    assert [Path(entry["video_path"]).name for entry in read(tmp_path / "lists" / "stage_1_test.json")] == [name, "=1+1.png"]
    assert read(tmp_path / "out" / "manifest.json")["clips"][0]["identities"] == [name]


@pytest.mark.parametrize("option", ["--videos", "--captions", "--output", "manifest", "--thresholds"])
def test_paths_of_every_kind_are_told(option, prepare, call, videos, data, tmp_path):
    write_json(data / "manifest.json", MANIFEST)
    for kind, path in odd_paths(tmp_path).items():
        if option in ("manifest", "--thresholds"):
            words = [path] if option == "manifest" else [data / "manifest.json", option, path]
            ended = call("make_pairs", *words, "--output", tmp_path / "out")
        elif option == "--output" and kind in ("none", "bytes"):
            continue
        else:
            given = {"--videos": videos / "whole.mp4", "--output": tmp_path / "out"} | {option: path}
            ended = prepare("--caption", "c", *(word for pair in given.items() for word in pair))
        assert is_told(ended, 1, 2), (kind, ended.err)


def test_windows_shorter_than_a_sampled_frame_are_looked_at(prepare, videos, tmp_path):
    short = "--frames", 1, "--fps", 10, "--rate", 1, "--max_clips", 2, "--crop", 64
    assert prepare("--videos", videos / "whole.mp4", "--caption", "c", "--output", tmp_path, *short).done
    assert len(read(tmp_path / "manifest.json")["clips"]) == 2
