"""demo/render_people.py: what it writes, that it goes on where it stopped, and what it says of mistakes."""

import json
import os
import subprocess
import sys

import imageio
import numpy as np
import pytest
from conftest import ROOT
from in_process import call_main, load_script
from PIL import Image

SMALL = ["--people", "2", "--shots", "1", "--pairs", "0.5", "--stills", "1", "--frames", "5", "--size", "48", "72"]
SMALL += ["--workers", "1", "--seed", "1"]


def render(*options):
    command = [sys.executable, str(ROOT / "demo" / "render_people.py"), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("my world") / "people"
    result = render("--output", folder, *SMALL)
    assert result.returncode == 0, result.stderr
    return folder


def test_the_list_names_clips_that_exist_and_the_facts_of_their_shots(world):
    clips = json.loads((world / "clips.json").read_text())
    assert [clip["identities"] for clip in clips if len(clip["identities"]) == 1] == [["p0000"], ["p0001"]]
    (together,) = (clip for clip in clips if len(clip["identities"]) == 2)
    assert sorted(together["identities"]) == ["p0000", "p0001"] and len(together["attributes"]["people"]) == 2
    for clip in clips:
        with imageio.get_reader(world / clip["video_path"]) as video:
            assert video.get_meta_data()["fps"] == 8
        assert np.stack(imageio.mimread(world / clip["video_path"])).shape == (5, 48, 72, 3)
        assert clip["split"] in ("train", "valid", "test") and clip["attributes"]["background"]["color"] in clip["caption"]
    stills = json.loads((world / "stills.json").read_text())
    assert len(stills) == 2 and all((world / still["image_path"]).is_file() for still in stills)


def test_a_stopped_run_goes_on_and_ends_the_same(world):
    clip, record = world / "clips" / "p0001_shot0.mp4", world / "records" / "p0001_shot0.json"
    other = world / "clips" / "p0000_shot0.mp4"
    before, listed, untouched = clip.read_bytes(), (world / "clips.json").read_text(), other.stat().st_mtime_ns
    record.unlink()
    clip.write_bytes(b"half")
    (world / "clips" / ".killed.partial.mp4").write_bytes(b"")
    assert render("--output", world, *SMALL).returncode == 0
    assert clip.read_bytes() == before and (world / "clips.json").read_text() == listed
    assert other.stat().st_mtime_ns == untouched and not list((world / "clips").glob(".*"))


def test_damaged_folders_others_settings_and_mistakes_are_told_in_one_line(world, tmp_path, monkeypatch, capsys):
    script = load_script(ROOT / "demo" / "render_people.py")

    def is_told(expected: str, *options):
        ended = call_main(script, options, monkeypatch, capsys)
        assert ended.code == 2 and expected in ended.err and len(ended.err.splitlines()) == 1

    is_told("seed 1", "--output", world, *SMALL, "--seed", "77")
    for content, expected in (("{", "cannot be read"), ("[3]", "cannot be read"), ('{"seed": 1}', "was begun with shots None")):
        (tmp_path / "settings.json").write_text(content)
        is_told(expected, "--output", tmp_path, *SMALL)
    for wrong in (["--portraits"], ["--people", "0"], ["--size", "47", "72"], ["--pairs", "-1"], ["--pairs", "nan"]):
        is_told(wrong[0], "--output", tmp_path / "x", *wrong)


def test_splits_do_not_depend_on_how_many_there_are():
    from world.dataset import partner_of, split_of

    splits = [split_of(0, index) for index in range(2000)]
    assert 0.84 < splits.count("train") / 2000 < 0.92 and splits.count("valid") > 40 and splits.count("test") > 100
    for index in range(50):
        partner = partner_of(0, index, 200)
        assert partner != index and splits[partner] == splits[index]
    assert partner_of(0, 0, 1) is None


def test_single_frames_in_place_of_clips(tmp_path):
    assert render("--output", tmp_path, *SMALL, "--images", "--stills", "0").returncode == 0
    listed = json.loads((tmp_path / "clips.json").read_text())
    assert len(listed) == 3 and len({entry["caption"] for entry in listed}) == 3, "a frame of each of three shots"
    for entry in listed:
        with Image.open(tmp_path / entry["video_path"]) as image:
            assert image.size == (72, 48)


def test_portraits_show_the_people_of_a_shot_in_its_light(tmp_path):
    options = [*SMALL, "--images", "--portraits", "--stills", "0"]
    assert render("--output", tmp_path, *options).returncode == 0
    shots = {entry["recording"]: entry for entry in json.loads((tmp_path / "clips.json").read_text())}
    portraits = json.loads((tmp_path / "stills.json").read_text())
    assert len(shots) == 3 and len(portraits) == 4, "of two people alone, and of both together"
    for entry in portraits:
        shot, facts = shots[entry["recording"]], entry["attributes"]
        assert set(entry["identities"]) <= set(shot["identities"]) and len(entry["identities"]) == 1
        assert facts["light"] == shot["attributes"]["light"] and facts["people"][0]["hat"] is None and facts["people"][0]["turn"] == "none"
        assert (tmp_path / entry["image_path"]).is_file()
