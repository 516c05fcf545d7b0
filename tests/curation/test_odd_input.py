"""Manifests, lists, thresholds and vectors that nobody expects: a result, or one line."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from in_process import load_script
from odd_input import FEW, is_told, mutated, odd_paths, start
from PIL import Image

from concat_id.curation.preparing import RECORD, recall
from concat_id.curation.source_videos import Captions, read_sources
from concat_id.curation.thresholds import Thresholds
from concat_id.data.manifest import read_manifest
from concat_id.errors import UserError, one_line
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


@FEW
@given(content=mutated(THRESHOLDS))
def test_any_value_anywhere_in_thresholds(data, content):
    write_json(data / "v" / "thresholds.json", content)
    try:
        assert Thresholds.read(data / "v" / "thresholds.json").cross[1] < 1e101
    except UserError as error:
        assert "thresholds.json: " in str(error) and len(one_line(error).splitlines()) == 1


@FEW
@given(entries=mutated([ENTRY]))
def test_any_value_anywhere_in_a_list_of_videos(data, entries):
    write_json(data / "v" / "list.json", entries)
    try:
        sources, problems = read_sources([data / "v" / "list.json"], Captions())
        assert len(sources) + len(problems) == len(entries)
    except UserError as error:
        assert "list.json: " in str(error)


@pytest.mark.parametrize(("place", "value", "told"), [
    (("clips", 1, "caption"), None, "clips[1]: caption: found null, expected text"),
    (("threshold",), "high", 'threshold: found "high", expected a number'),
    (("clips", 0, "people", 0, "folder"), "../v/a", "folder: found '../v/a', expected one inside"),
    (("clips", 0, "video_path"), "/dev/zero", "/dev/zero: found a device, expected the video of a clip"),
])  # fmt: skip
def test_wrong_values_are_named_by_their_place(data, place, value, told):
    from odd_input import replaced

    write_json(data / "manifest.json", replaced(MANIFEST, place, value))
    ended = start(MAKE_PAIRS, data / "manifest.json", "--output", data / "lists")
    assert is_told(ended, 2) and told in ended.err, ended.err


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
    "objects": lambda file: write_vectors(file, vectors=np.array([{}, None], dtype=object)),
    "bomb": lambda file: write_vectors(file, vectors=np.zeros((10**6, 2)), save=np.savez_compressed),
    "lying": lying,
    "not a number": lambda file: write_vectors(file, vectors=[(np.nan, 0)]),
    "too long": lambda file: write_vectors(file, vectors=[(1e300, 0)]),
    "one more": lambda file: write_vectors(file, vectors=[(1.0, 0)] * 2),
    "others": lambda file: write_vectors(file, files=["b/0.png"]),
    "no names": lambda file: np.savez(file, vectors=np.eye(2)),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_vectors_are_told(data, tmp_path, damage):
    shutil.copytree(data / "v", tmp_path / "v")
    write_json(tmp_path / "manifest.json", MANIFEST)
    damage(tmp_path / "v" / "vectors.npz")
    with pytest.raises(UserError, match="prepare the clips again") as caught:
        read_manifest(tmp_path / "manifest.json")
    assert "vectors.npz" in str(caught.value)


def test_a_record_counts_while_all_of_it_is_there(data, tmp_path):
    def home(name: str, **changes) -> Path:
        folder = shutil.copytree(data / "v", tmp_path / name)
        sizes = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
        clip = CLIP | {"video_path": "a.png", "people": [PERSON | {"folder": "a"}]}
        made = {"fingerprint": "f", "source": "s", "clips": [clip], "discarded": [], "files": sizes | {"a/1.png": 7, "a.masks/1.png": 7}}
        write_json(folder / RECORD, made | changes)
        return folder

    whole = home("whole")
    assert recall(whole, "f") == read(whole / RECORD), "crops that were taken out by hand stay out"
    assert recall(whole, "g") is None and recall(home("older", files=None), "f")
    damages = [("vectors.npz", DAMAGE[name]) for name in ("absent", "cut", "pipe", "not a number")]
    damages += [(RECORD, lambda file, text=text: file.write_text(text)) for text in ("", "[]", '{"fingerprint": ' + "[" * 10**5)]
    damages += [("a/0.png", DAMAGE["cut"]), ("a/0.png", DAMAGE["absent"]), ("a.masks/0.png", DAMAGE["absent"])]
    for number, (file, damage) in enumerate(damages):
        damaged = home(str(number))
        damage(damaged / file)
        assert recall(damaged, "f") is None, file
    assert recall(home("clips", clips=[{"video_path": 1}]), "f") is None


def test_a_second_writer_is_told_who_the_first_is(prepare, data, videos, tmp_path):
    lock = str(tmp_path / ".concat_id.lock")
    holding = f"from concat_id.files.locks import locked\nwith locked({lock!r}, ''): print('held', flush=True); input()"
    write_json(data / "manifest.json", MANIFEST)
    with subprocess.Popen([sys.executable, "-c", holding], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT / "sat") as first:
        assert first.stdout.readline() == b"held\n"
        code, told = prepare("--videos", videos / "whole.mp4", "--caption", "c", "--output", tmp_path)
        assert code == 2 and told == one_line(told) + "\n" and f"{tmp_path}: process {first.pid} on " in told
        assert f"process {first.pid} on " in start(MAKE_PAIRS, data / "manifest.json", "--output", tmp_path).err
        assert [path.name for path in tmp_path.iterdir()] == [".concat_id.lock"]
        first.communicate(b"\n")


def test_no_clip_at_all_is_a_failure(prepare, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    code, told = prepare("--videos", tmp_path / "black.png", "--caption", "c", "--output", tmp_path / "out")
    assert code == 1 and "manifest.json: found no clip in any video, expected one or more" in told
    assert read(tmp_path / "out" / "manifest.json")["discarded"][0]["reason"] == "no face in 1 frames"
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    code, told = prepare("--videos", tmp_path / "nowhere.png", "--caption", "c", "--output", tmp_path / "out")
    assert code == 1 and "nowhere.png" in told and (tmp_path / "out" / "manifest.json").read_bytes() == before, "nothing is lost"


def test_names_that_are_no_text_come_through(prepare, call, portraits, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    name = os.fsdecode(b"caf\xe9 \x1b[31m.png")
    for who, file in {"left": name, "middle": "=1+1.png"}.items():
        portraits[who].save(tmp_path / file)
        entries = [{"video_path": file, "caption": "c", "identities": [file], "split": "test"} for file in (name, "=1+1.png")]
    write_json(tmp_path / "list.json", entries)
    code, told = prepare("--videos", "~/list.json", "--output", "~/out", "--crop", 64)
    assert code == 0 and not Path("~").exists(), told
    code, told = call("make_pairs", "~/out/manifest.json", "--output", "~/lists")
    assert code == 0 and "\x1b" not in told + call.printed + prepare.printed, told
    assert [Path(entry["video_path"]).name for entry in read(tmp_path / "lists" / "stage_1_test.json")] == [name, "=1+1.png"]
    assert read(tmp_path / "out" / "manifest.json")["clips"][0]["identities"] == [name]


@pytest.mark.parametrize("option", ["--videos", "--captions", "--output", "manifest", "--thresholds", "entry"])
def test_paths_of_every_kind_are_told(option, prepare, call, videos, data, tmp_path):
    write_json(data / "manifest.json", MANIFEST)
    for kind, path in odd_paths(tmp_path).items():
        if option == "entry":
            write_json(tmp_path / "list.json", [{"video_path": path, "caption": "c"}])
            code, told = prepare("--videos", tmp_path / "list.json", "--output", tmp_path / "out")
        elif option in ("manifest", "--thresholds"):
            words = [path] if option == "manifest" else [data / "manifest.json", option, path]
            code, told = call("make_pairs", *words, "--output", tmp_path / "out")
        elif option == "--output" and kind in ("none", "bytes"):
            continue
        else:
            given = {"--videos": videos / "whole.mp4", "--output": tmp_path / "out"} | {option: path}
            code, told = prepare("--caption", "c", *(word for pair in given.items() for word in pair))
        errors = [line for line in told.splitlines() if line.startswith("error: ")]
        assert code in (1, 2) and len(errors) == 1 and len(errors[0]) < 2100 and "Traceback" not in told, (kind, told)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a": 1' + "0" * 5000 + "}", "", '{"a.mp4": " "}'])
def test_files_that_exhaust_a_parser(text, call, videos, tmp_path):
    (tmp_path / "odd.json").write_text(text)
    for words in (["prepare_clips", "--videos", tmp_path / "odd.json"],
                  ["prepare_clips", "--videos", videos / "whole.mp4", "--captions", tmp_path / "odd.json"],
                  ["make_pairs", tmp_path / "odd.json"]):  # fmt: skip
        code, told = call(*words, "--output", tmp_path / "out")
        assert code == 2 and told.startswith("error: ") and told.count("\n") == 1 and "odd.json" in told, told


def test_windows_shorter_than_a_sampled_frame_are_looked_at(prepare, videos, tmp_path):
    short = "--frames", 1, "--fps", 10, "--rate", 1, "--max_clips", 2, "--crop", 64
    code, told = prepare("--videos", videos / "whole.mp4", "--caption", "c", "--output", tmp_path, *short)
    assert code == 0, told
    assert len(read(tmp_path / "manifest.json")["clips"]) == 2
