"""From a manifest to lists through the command, and the lists through sat/check_dataset.py."""

import json
from pathlib import Path

import numpy as np
import pytest
from odd_input import is_told
from PIL import Image

from concat_id.data.records import read_records
from concat_id.evaluation.layouts import find_samples
from concat_id.video.writing import write_video

from .conftest import FPS, read, scene


@pytest.fixture(scope="session")
def manifest(tmp_path_factory) -> Path:
    """A manifest of made-up people: 8 with four clips each, and vectors near their own."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    write_video(folder / "clip.mp4", scene(10), FPS)
    centres, clips = random.standard_normal((8, 32)), []
    for number in range(32):
        who, home = number % 8, folder / f"v{number}"
        vectors = centres[who] + 0.4 * random.standard_normal((3, 32))
        for kind in ("clip_000_person_1", "clip_000_person_1.masks"):
            (home / kind).mkdir(parents=True)
            for index in range(3):
                Image.new("RGB" if kind[-1] == "1" else "L", (16, 16), number).save(home / kind / f"{index}.png")
        (home / "clip_000.mp4").write_bytes((folder / "clip.mp4").read_bytes())
        files = [f"clip_000_person_1/{index}.png" for index in range(3)]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        np.savez(home / "vectors.npz", files=np.array(files), vectors=vectors.astype(np.float32))
        people = [{"folder": f"v{number}/clip_000_person_1", "identity": f"p{who}"}]
        clips.append({"video_path": f"v{number}/clip_000.mp4", "caption": f"person\n@@{who}", "split": None, "people": people})
    (folder / "manifest.json").write_text(json.dumps({"recognizer": "SFace", "clips": clips}))
    return folder / "manifest.json"


def test_lists_of_all_stages_pass_the_check(manifest, call, tmp_path):
    options = ["--output", tmp_path, "--calibrate", "--valid", 0.2, "--test", 0.2]
    code, out, told = call("make_pairs", manifest, *options)
    assert code == 0 and told == ""
    summary, found = read(tmp_path / "summary.json"), read(tmp_path / "thresholds.json")
    assert summary["people"] == {"train": 4, "valid": 2, "test": 2} and summary["stage 1"]["clips"] == {"train": 16, "valid": 8, "test": 8}
    assert summary["thresholds"] == found["thresholds"] and found["thresholds"]["recognizer"] == "SFace"
    names = {}
    for file in sorted(tmp_path.glob("stage_*.json")):
        records = read_records([file])
        _, stage, split = file.stem.split("_")
        assert len(records) == summary[f"stage {stage}"]["clips"][split]
        for record in records:
            assert names.setdefault(record.caption, split) == split
            assert len(record.images[0]) == len(record.masks[0]) == (3 if stage == "1" else 1)
            assert [mask.parent.name for mask in record.masks[0]] == [f"{image.parent.name}.masks" for image in record.images[0]]
            assert (record.images[0][0].parents[1] == record.video.parent) == (stage == "1")
    assert summary["stage 2"]["clips"]["train"] > 8 and 0 < summary["stage 3"]["clips"]["train"] <= 8
    low, high = found["thresholds"]["cross"]
    assert low <= summary["stage 2"]["cosine"][0] <= summary["stage 2"]["cosine"][2] < high
    assert "thresholds SFace: cross" in out and "stage 3" in out

    lines = (tmp_path / "test_prompts_1.txt").read_text().splitlines()
    photos = [Path(line.split("@@")[1]) for line in lines]
    assert len(lines) == 2, "all clips of a person have the same caption"
    assert summary["prompts"] == {"one person": 2} and "prompts    2 of one person" in out
    assert len(set(photos)) == 2 and all(photo.parent == tmp_path / "test_people" and photo.is_file() for photo in photos)
    assert all(len(list(photo.with_suffix("").glob("*.png"))) == 3 for photo in photos), "four clips of a person, one gives the photo"
    real = sorted((tmp_path / "test_clips_1").iterdir())
    told = [(read(folder / "info.json")["prompt"], read(folder / "info.json")["references"][0]["image"]) for folder in real]
    assert sorted(told) == sorted(tuple(line.split("@@")) for line in lines)
    assert all((folder / "video.mp4").read_bytes() == (manifest.parent / "clip.mp4").read_bytes() for folder in real)
    assert [sample.references[0] for sample in find_samples(tmp_path / "test_clips_1", None)[0]] == [Path(photo) for _, photo in told]

    yaml = tmp_path / "short.yaml"
    yaml.write_text("data: {video_size: [96, 144], fps: 8, max_num_frames: 9, skip_frms_num: 0}\n")
    lists = sorted(tmp_path.glob("stage_[12]_*.json"))
    assert call("check_dataset", *lists[:2], "--base", "configs/mini.yaml", yaml, "--workers", 1).done

    code, out, _ = call("make_pairs", manifest, "--output", tmp_path / "again", "--thresholds", tmp_path / "thresholds.json",
                   "--stage", 2, "--valid", 0.2, "--test", 0.2)  # fmt: skip
    assert code == 0 and [path.name for path in sorted((tmp_path / "again").glob("stage*"))] == [
        path.name for path in sorted(tmp_path.glob("stage_2*"))
    ]


def test_who_is_in_which_split_does_not_depend_on_the_number_of_people_asked_for(manifest, call, tmp_path):
    content = read(manifest)
    pairs = [content["clips"][left] | {"people": [person for number in (left, left + 1) for person in content["clips"][number]["people"]]}
             for left in (0, 2, 4)]  # fmt: skip
    file = manifest.with_name("pairs.json")
    file.write_text(json.dumps(content | {"clips": content["clips"] + pairs}))
    splits: dict[str, set[str]] = {}
    for people in (1, 2):
        options = "--people", people, "--stage", 1, "--valid", 0.3, "--test", 0.3, "--hygiene", 1, "--output", tmp_path / str(people)
        assert call("make_pairs", file, *options)[0] == 0
        for found in (tmp_path / str(people)).glob("stage_1_*.json"):
            for entry in read(found):
                for image in entry["image_path"].split("@@"):
                    splits.setdefault(f"p{int(Path(image).parts[-2][1:]) % 8}", set()).add(found.stem)
    assert len(splits) == 8 and all(len(found) == 1 for found in splits.values()) and len(set.union(*splits.values())) == 3


def test_names_in_any_script_keep_their_own_files(manifest, call, tmp_path):
    names = {f"p{number}": name for number, name in enumerate(("李明", "王芳", "José", "Jos", "a/b", "a_b", "..", "p7"))}
    content = read(manifest)
    for clip in content["clips"]:
        clip["people"][0]["identity"] = names[clip["people"][0]["identity"]]
    renamed = manifest.with_name("names.json")
    renamed.write_text(json.dumps(content))
    code, out, told = call("make_pairs", renamed, "--output", tmp_path, "--calibrate", "--hygiene", 1, "--valid", 0, "--test", 0.9)
    lines = (tmp_path / "test_prompts_1.txt").read_text().splitlines()
    photos = {line.partition("@@")[2] for line in lines}
    assert code == 0 and len(lines) == len(photos) >= 7 and all(Path(photo).parent == tmp_path / "test_people" for photo in photos)
    assert all(len(list(Path(photo).with_suffix("").glob("*.png"))) == 3 for photo in photos)
    assert len(list((tmp_path / "test_clips_1").iterdir())) == len(lines)


def test_another_recognizer_needs_other_thresholds(manifest, call, tmp_path):
    code, out, told = call("make_pairs", manifest, "--output", tmp_path, "--stage", 1)
    assert code == 0 and "meant for ArcFace, the cosines are SFace's" in told
    own = ["--cross", 0.5, 0.8, "--cross_two", 0.5, 0.8, "--trade_off", 0.8, 0.99, "--hygiene", 0.9]
    assert call("make_pairs", manifest, "--output", tmp_path, "--stage", 1, *own)[::2] == (0, "")


def test_files_that_it_has_not_written_stay(manifest, call, tmp_path):
    own = ("--output", tmp_path, "--stage", 1, "--test", 0.9)
    assert call("make_pairs", manifest, *own)[0] == 0
    assert call("make_pairs", manifest, *own)[0] == 0, "its own are replaced"
    (tmp_path / "test_people" / "mine.jpg").write_text("precious")
    code, out, errors = call("make_pairs", manifest, *own)
    assert code == 2 and "test_people/mine.jpg: found a file that this command has not written" in errors
    assert (tmp_path / "test_people" / "mine.jpg").read_text() == "precious"


def test_no_list_is_left_from_before(manifest, call, tmp_path):
    own = ["--cross_two", 0.5, 0.8, "--trade_off", 0.8, 0.99, "--hygiene", 1, "--stage", 2, "--no_masks", "--test", 0]
    call("make_pairs", manifest, "--output", tmp_path, "--cross", -1, 1, *own)
    assert "mask_path" not in read(tmp_path / "stage_2_train.json")[0] and not list(tmp_path.glob("test_prom*"))
    ended = call("make_pairs", manifest, "--output", tmp_path, "--cross", 0.999, 1, *own)
    assert not list(tmp_path.glob("stage_2*")) and "crops in other clips are below 0.999, expected 0.999 to 1.000" in ended.out
    assert "prompts    none\n" in ended.out


def test_mistakes_are_told_in_a_line(manifest, call, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text('{"recognizer": "SFace", "clips": [{"video_path": "a.mp4"}]}')
    outside = manifest.with_name("outside.json")
    outside.write_text(manifest.read_text().replace("v0/clip_000_person_1", "../clip_000_person_1"))
    for arguments, text in (
        ([outside], "folder: found '../clip_000_person_1', expected one inside"),
        ([tmp_path / "my own" / "none.json"], f"no such manifest; `python sat/prepare_clips.py --videos ... --output '{tmp_path}/my own'`"),
        ([broken], "clips[0]: caption: missing, expected text"),
        ([manifest, "--people", 3], "--people: found no clip of 3, expected at least one"),
        ([manifest, "--cross", 0.9, 0.7], "--cross: found 0.9 0.7"),
        ([manifest, "--valid", 0.6, "--test", 0.5], "--valid and --test: found 0.6 and 0.5"),
        ([manifest, "--test_captions", 0], "--test_captions: found 0, expected 1 to"),
    ):
        ended = call("make_pairs", *arguments, "--output", tmp_path / "lists")
        assert is_told(ended, 2) and text in ended.err, ended.err
