"""Frames, motion, intervals and layouts, which need no weights."""

import csv
import json
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from evaluation.clips import write_clip
from in_process import ffmpeg, refused
from PIL import Image

from concat_id.evaluation import layouts
from concat_id.evaluation.calibration import Calibration, Range, trained_on
from concat_id.evaluation.face_tracks import similarity
from concat_id.evaluation.identity import is_rank1
from concat_id.evaluation.intervals import UNBOUNDED, mean_interval, mean_with_interval
from concat_id.evaluation.layouts import find_samples
from concat_id.evaluation.motion import motion_scores
from concat_id.evaluation.page import _comparisons
from concat_id.evaluation.report import print_summary
from concat_id.evaluation.runs import Run, find_runs
from concat_id.evaluation.sampled_video import read_video
from concat_id.evaluation.summary import Summary
from concat_id.files.formats import media_in


def numbered_frames(count):
    return [Image.new("RGB", (64, 48), (5 * index, 5 * index, 5 * index)) for index in range(count)]


def test_frames_are_the_evenly_spaced_ones(tmp_path):
    video = read_video(write_clip(tmp_path / "a.mp4", numbered_frames(49), fps=8), 16)
    assert video.count == 49 and video.fps == 8 and len(video.small) == 49
    assert video.indices[0] == 0 and video.indices[-1] == 48 and len(video.indices) == 16 and set(np.diff(video.indices)) <= {3, 4}
    assert video.frames.shape == (16, 48, 64, 3)
    np.testing.assert_allclose(video.frames.mean(axis=(1, 2, 3)), 5 * np.array(video.indices), atol=3)
    few = read_video(write_clip(tmp_path / "b.mp4", [Image.new("RGB", (64, 48), (220, 30, 30))] * 3), 16)
    assert few.indices == (0, 1, 2) and few.frames[..., 0].mean() > 200 > 60 > few.frames[..., 2].mean(), "red, green, blue"
    numbered_frames(3)[2].save(tmp_path / "a.png")
    assert read_video(tmp_path / "a.png", 16).frames.shape == (1, 48, 64, 3)


def test_damaged_and_slow_files(tmp_path):
    clip = write_clip(tmp_path / "a.mp4", [Image.effect_noise((320, 240), 80).convert("RGB") for _ in range(30)])
    refused("no such file", read_video, tmp_path / "b.mp4", 4)
    refused("hangs", read_video, clip, 4, timeout_s=0.001)
    content = bytearray(clip.read_bytes())
    middle = content.index(b"mdat") + 20_000
    ffmpeg("-i", clip, "-c", "copy", tmp_path / "c.mp4")  # with its index at the end
    (tmp_path / "c.mp4").write_bytes((tmp_path / "c.mp4").read_bytes()[: len(content) // 3])
    refused(r"c.mp4: (not a video|\d+ of \d+ frames)", read_video, tmp_path / "c.mp4", 4)
    content[middle : middle + 50] = bytes(50)  # a scratch, which players get over as well
    (tmp_path / "d.mp4").write_bytes(content)
    assert len(read_video(tmp_path / "d.mp4", 4).frames) == 4
    (tmp_path / "e.mp4").write_bytes(clip.read_bytes()[:-20_000])  # what tells of all frames comes first
    refused("e.mp4: ends before its last frame", read_video, tmp_path / "e.mp4", 4)
    for name in ("f.mkv", "f.avi", "f.flv"):
        ffmpeg("-i", clip, "-metadata", "title=partial file", tmp_path / name)
        assert read_video(tmp_path / name, 4).count == 30
        with (tmp_path / name).open("ab") as file:
            file.write(b"\n" * 2000)
        assert read_video(tmp_path / name, 4).count == 30, "more may follow its end"
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-7000])
        refused("f.*: ends before its last frame", read_video, tmp_path / name, 4)


def test_each_frame_counts_once_at_a_rate_that_varies_and_behind_a_cut_or_a_hole(tmp_path):
    source = ["-f", "lavfi", "-i", "testsrc2=s=64x48:r=30:d=60", "-c:v", "libx264", "-g", "10", "-preset", "ultrafast"]
    ffmpeg(*source, "-vf", "select='lt(n,300)+not(mod(n,10))'", "-fps_mode", "passthrough", tmp_path / "varies.mp4")
    varies = read_video(tmp_path / "varies.mp4", 8)
    assert (varies.count, varies.announced, varies.indices[-1]) == (450, 450, 449)
    assert varies.fps == pytest.approx(449 / 59.67, abs=0.01)
    assert varies.small_fps == pytest.approx(255 / (203 / 30 + 52 / 3), abs=0.05), "of the middle 256"
    ffmpeg(*source, "-t", "4", tmp_path / "whole.mp4")
    ffmpeg("-ss", "0.7", "-i", tmp_path / "whole.mp4", "-c", "copy", tmp_path / "cut.mp4")
    cut = read_video(tmp_path / "cut.mp4", 8)
    assert cut.count == cut.announced == 99 and cut.fps == 30, "what an edit list hides is not announced"
    content = (tmp_path / "whole.mp4").read_bytes()
    for share in (24, 4):
        start, size = len(content) // 2, len(content) // share
        (tmp_path / f"hole_{share}.mp4").write_bytes(content[:start] + bytes(size) + content[start + size :])
    hole = read_video(tmp_path / "hole_24.mp4", 8)
    assert hole.count < hole.announced == 120
    refused("hole_4.mp4: .* of 120 frames can be decoded", read_video, tmp_path / "hole_4.mp4", 8)


@pytest.fixture(scope="module")
def texture():
    noise = np.random.default_rng(0).random((30, 44))
    return np.asarray(Image.fromarray((noise * 255).astype(np.uint8)).resize((352, 240), Image.Resampling.BICUBIC))


def test_motion_of_a_shifted_texture(texture):
    frames = np.stack([texture[40:160, 40 + 2 * index : 200 + 2 * index] for index in range(8)])
    scores = motion_scores(frames, fps=10)
    assert scores["motion_amplitude"] == pytest.approx(100 * 2 * 10 / np.hypot(120, 160), rel=0.1)
    assert scores["temporal_consistency"] > 0.9
    still = motion_scores(np.stack([frames[0]] * 4), fps=10)
    assert still["motion_amplitude"] < 0.05 and still["temporal_consistency"] > 0.999 and still["flicker"] == 0


def test_flicker_is_what_goes_up_and_down(texture):
    base = (texture[:120, :160] / 2 + 40).astype(np.uint8)
    flickering = np.stack([base + (10 if index % 2 else 0) for index in range(8)]).astype(np.uint8)
    fading = np.stack([base + 2 * index for index in range(8)]).astype(np.uint8)
    assert motion_scores(flickering, 8)["flicker"] == pytest.approx(100 * 10 / 255, rel=0.02)
    assert motion_scores(fading, 8)["flicker"] < 0.1
    noise = np.random.default_rng(1).integers(0, 255, (4, 120, 160)).astype(np.uint8)
    assert motion_scores(noise, 8)["temporal_consistency"] < 0.4 < motion_scores(fading, 8)["temporal_consistency"]
    fade, flat = (np.stack([np.full((32, 32), value, np.uint8) for value in values]) for values in (range(50, 130, 10), (0, 200, 0)))
    for uniform in (fade, flat, flat * 0):
        assert [motion_scores(uniform, 8)[name] for name in ("temporal_consistency", "flicker")] == [None, None]
    assert motion_scores(base[None], 8) == {"temporal_consistency": None, "motion_amplitude": None, "flicker": None}


@pytest.mark.parametrize("number", [2, 3, 6, 12, 30])
def test_few_verdicts_are_false(number):
    """Where nothing differs, about one interval of twenty excludes that: of scores, of shares within videos, of right or wrong."""
    generator = np.random.default_rng(number)
    shares = {share: generator.random((2, 1000, number)) < share for share in (0.5, 0.95)}
    for found in (generator.normal(0, 0.1, (1000, number)), np.diff(generator.beta(8, 2, (2, 1000, number)), axis=0)[0],
                  *(after * 1.0 - before for before, after in shares.values())):  # fmt: skip
        intervals = [mean_interval(differences, (-1, 1)) for differences in found]
        assert np.mean([low > 0 or high < 0 for low, high in intervals]) <= 0.075
    for share, (first, _) in shares.items():
        assert np.mean([low - 1e-9 <= share <= high + 1e-9 for low, high in (mean_interval(videos, (0, 1)) for videos in first)]) > 0.9


def test_rare_failures_make_intervals_as_narrow_as_told():
    generator = np.random.default_rng(0)
    for number in (6, 12, 30):
        fails = generator.random((1000, number)) < 0.05
        for scores, mean, bounds, least, most in ((generator.normal(0.6, 0.05, fails.shape), 0.6, UNBOUNDED, 0.14, 0.29),
                                                  (generator.binomial(16, 0.99, fails.shape) / 16, 0.99, (0, 1), 0.18, 0.52)):  # fmt: skip
            intervals = [mean_interval(videos, bounds) for videos in np.where(fails, 0, scores)]
            assert least < np.mean([not low <= 0.95 * mean <= high for low, high in intervals]) < most


def test_an_interval_needs_values_that_differ_or_bounds():
    assert mean_interval([0.5]) is None and mean_with_interval([0.2]) == {"mean": 0.2, "low": None, "high": None, "n": 1}
    assert mean_interval([0.9 - 0.8, 0.8 - 0.7]) is None, "the same but for rounding"
    assert mean_interval([0.4, 0.5, 0.6]) == pytest.approx((0.2516, 0.7484), abs=1e-4)
    assert mean_interval([1, 1, 1], (0, 1)) == pytest.approx((0.2924, 1), abs=1e-4), "three of three"
    assert mean_interval([0.9, 1, 1], (0, 1))[1] == 1 and mean_interval([0.1, 0, 0], (0, 1))[0] == 0
    assert [mean_interval([1] * number, (-1, 1))[0] > 0 for number in (5, 6)] == [False, True], "as the sign test"


def test_all_pairs_at_once_give_what_each_gives(monkeypatch):
    monkeypatch.setattr("concat_id.evaluation.calibration.similarity", None)  # millions of pairs take half a minute one by one
    drawn = np.random.default_rng(0).normal(size=(12, 128)).astype(np.float32)
    vectors = list(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
    people = {"a": vectors[:3], "b": vectors[3:4], "c": vectors[4:]}
    across = [similarity(a, b) for one, two in combinations(people.values(), 2) for a in one for b in two]
    within = [np.mean([similarity(a, b) for a, b in combinations(photos, 2)]) for photos in (vectors[:3], vectors[4:])]
    assert Calibration(people).whole == pytest.approx((np.mean(across), np.mean(within)), rel=1e-5)
    pairs = [similarity(a, b) for a, b in combinations(vectors, 2)]
    assert Calibration.from_references(vectors).whole == (pytest.approx(np.median(pairs), rel=1e-5, abs=1e-9), None)


def test_calibration_by_person_and_by_all():
    anna, ben = np.array([1.0, 0.0, 0.0]), np.array([0.6, 0.8, 0.0])
    photo = np.array([0.8, 0.0, 0.6])
    calibration = Calibration({"anna": [anna, photo], "ben": [ben]})
    assert calibration.whole.genuine == pytest.approx(0.8) and calibration.whole.impostor == pytest.approx((0.6 + 0.48) / 2)
    own = calibration.of(Path("anna.png"), anna)
    assert own.genuine == pytest.approx(0.8) and own.impostor == pytest.approx(0.6), "the reference itself is no other photo"
    assert calibration.of(Path("clara.png"), anna) == calibration.whole
    assert own.rescale(0.8) == pytest.approx(1) and own.rescale(0.6) == pytest.approx(0)
    assert Range(0.5, None).rescale(0.7) is None and Range(0.5, 0.4).rescale(0.7) is Range(0.5, 0.5).rescale(0.7) is None


def test_a_copied_photo_counts_once(tmp_path):
    anna, photo, ben = np.array([1.0, 0.0]), np.array([0.8, 0.6]), np.array([0.0, 1.0])
    photos = {"anna/1.png": anna, "anna/2.png": photo, "anna/copy.png": anna.copy(), "anna/old/1.png": anna.copy(), "ben/1.png": ben}
    found = Calibration.from_folder(tmp_path, {tmp_path / name: vector for name, vector in photos.items()})
    assert found.whole == pytest.approx((0.3, 0.8))
    refused("2 people with 2 different photos", Calibration.from_folder, tmp_path, {tmp_path / "a/1": anna, tmp_path / "a/2": anna,
                                                                                    tmp_path / "b/1": ben})  # fmt: skip


def test_impostor_similarity_from_references_alone():
    people = [np.eye(8)[number] * 0.8 + 0.6 * np.eye(8)[7] for number in range(4)]
    limits = Calibration.from_references([*people, people[0]]).whole
    assert limits.impostor == pytest.approx(0.36) and limits.genuine is None, "one person twice does not move it"
    assert Calibration.from_references(people[:1]).whole == (None, None)


def test_the_nearest_reference_is_found_by_one_conversion():
    class Vector:
        converted = 0

        def __array__(self, dtype=None, copy=None):
            self.converted += 1
            return np.array([1.0, 0.0])

    candidates = {"a": np.array([0.6, 0.8]), "b": np.array([0.8, 0.6]), "c": np.array([-1.0, 0.0])}
    vector = Vector()
    assert [is_rank1(vector, own, candidates) for own in "ab"] == [False, True] and vector.converted == 2
    assert not is_rank1(None, "b", candidates)
    assert all(is_rank1(vector, own, candidates | {"again": candidates["b"]}) for own in ("b", "again")), "one photo in two files"


def test_runs_have_as_many_parents_in_their_names_as_tell_them_apart(tmp_path):
    folders = [tmp_path / name for name in ("x/run1/videos", "y/run1/videos", "y/run2/videos", "y/other")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "a.mp4").touch()
    assert [run.name for run in find_runs(folders, None)] == ["x/run1/videos", "y/run1/videos", "run2/videos", "other"]
    (tmp_path / "link").symlink_to(folders[0])
    refused("the same folder twice", find_runs, [folders[0], tmp_path / "link"], None)


def summary_of(*runs, score="similarity"):
    """Summarise runs of videos (name, score, frame rate) that answer one request."""
    results = [[{"name": name, "prompt": "", "digests": {"references": []}, "scores": {score: value},
                 "frames": {"of": 9, "fps": (*fps, 8)[0]}} for name, value, *fps in run] for run in runs]  # fmt: skip
    tools = SimpleNamespace(metrics=(), clip=None, threshold=1, not_computed={}, recognizer=SimpleNamespace(name="SFace"))
    return Summary([Run(str(number), Path(), results=many) for number, many in enumerate(results)], tools, Calibration({}))


def test_repetitions_of_a_request_are_paired_by_name_first():
    summary = summary_of([("a/1", 0.1), ("a/2", 0.2), ("a/3", 0.3), ("a/4", 0.5)], [("a/2", 0.3), ("c", 0.6), ("a/4", 0.7)])
    compared = summary.comparisons[0][2]["similarity"]
    assert (compared["mean"], compared["n"]) == (pytest.approx((0.1 + 0.2 + 0.5) / 3), 3), "a/1 with c, a/3 with none"


def test_frame_rates_that_differ_leave_no_verdict_on_flicker(capsys):
    for rate, verdict in ((8.001, "worse"), (16, "frame rates differ")):
        runs = [(str(number), number / 9, 8) for number in range(9)], [(str(number), 2 + number / 9.1, rate) for number in range(9)]
        assert f"<td>{verdict}</td>" in _comparisons(summary_of(*runs, score="flicker"))
        print_summary(summary_of(*runs, score="flicker"))
        assert ("n=9  frame rates differ\n" in capsys.readouterr().out) == (rate == 16)
        assert "<td>better</td>" in _comparisons(summary_of(*runs))


def test_references_that_were_trained_on():
    reference, near, far = (np.array([cosine, (1 - cosine**2) ** 0.5]) for cosine in (1, 0.5, 0.4))
    found = trained_on({Path("r"): reference, Path("s"): -reference}, {Path("far"): far, Path("near"): near})
    assert found == {Path("r"): {"image": "near", "similarity": pytest.approx(0.5)}}


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def test_opens2v_eval(tmp_path):
    benchmark, videos = tmp_path / "OpenS2V-Eval", tmp_path / "Results" / "model"
    benchmark.mkdir()
    videos.mkdir(parents=True)
    both = ["Images/obj/cup/1.png", "Images/obj/woman/2.png"]
    entries = {
        "singlehuman_1": {"img_paths": ["Images/singlehuman/crop_man/15.png"], "prompt": "a man writes", "class_label": ["Man"]},
        "humanobj_2": {"img_paths": both, "prompt": "a woman drinks", "class_label": ["Cup", "Woman"]},
        "singleobj_3": {"img_paths": ["Images/singleobj/mango/3.png"], "prompt": "a mango", "class_label": ["Mango"]},
    }  # fmt: skip
    (benchmark / "Open-Domain_Eval.json").write_text(json.dumps(entries))
    for name in [*entries, "other_9"]:
        (videos / f"{name}.mp4").write_bytes(b"")
    samples, problems, notes = find_samples(videos, benchmark)
    found = {sample.name: ([path.relative_to(benchmark).as_posix() for path in sample.references], sample.prompt) for sample in samples}
    assert found == {
        "humanobj_2": (["Images/obj/woman/2.png"], "a woman drinks"),
        "singlehuman_1": (["Images/singlehuman/crop_man/15.png"], "a man writes"),
    }
    assert len(problems) == 1 and "other_9.mp4" in problems[0]
    assert notes == [f"{videos}: 1 videos of things rather than people are left out"]
    entries["singlehuman_1"]["img_paths"] = ["Images/singlehuman/man/15.png"]
    (benchmark / "Human-Domain_Eval.json").write_text(json.dumps({"singlehuman_1": entries["singlehuman_1"]}))
    refused("its lists ask for different things as 'singlehuman_1'; name the one", find_samples, videos, benchmark)
    (sample,) = find_samples(videos, benchmark / "Human-Domain_Eval.json")[0]
    assert sample.references == (benchmark / "Images/singlehuman/man/15.png",)


def test_consisid_bench(tmp_path):
    benchmark, videos = tmp_path / "data", tmp_path / "results"
    face = image(benchmark / "eval" / "face_images" / "1_woman_2.png")
    with open(benchmark / "video_caption_eval_old.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["index", "Class", "Original_Prompt", "Refined_man", "Refined_woman"],
                          ["7", "girl", "", "he, a {class_token}, runs", "she, a {class_token}, runs"]])  # fmt: skip
    (videos / "1_woman_2.png--7").mkdir(parents=True)
    (videos / "1_woman_2.png--7" / "output.mp4").write_bytes(b"")
    (videos / "1_woman_2--7.mp4").write_bytes(b"")
    samples, problems, notes = find_samples(videos, benchmark)
    assert {(sample.name, sample.references, sample.prompt) for sample in samples} == {("1_woman_2.png--7", (face,), "she, a girl, runs")}
    assert len(samples) == 2 and problems == notes == []
    copy = image(tmp_path / "copies" / face.name)
    for place, prompt in ("0000_she", "she, a girl,  runs"), ("0001_he", "he runs"):  # as sat/sample_video.py writes them
        (videos / place).mkdir()
        (videos / place / "portrait.png").write_bytes(b"")
        info = {"prompt": prompt, "references": [{"image": str(copy)}], "files": []}
        (videos / place / "info.json").write_text(json.dumps(info | {"settings": {"model": {"kind": "consistentid"}}}))
    samples, problems, _ = find_samples(videos, benchmark)
    assert [(sample.name, sample.system) for sample in samples[2:]] == [("1_woman_2.png--7", "ConsistentID")]
    assert len(problems) == 1 and "0001_he/portrait.png: " in problems[0] and "and not just once for this prompt and" in problems[0]
    with open(benchmark / "video_caption_eval_old.csv", "a", newline="") as file:
        csv.writer(file).writerow(["8", "girl", "", "", "she, a {class_token},  runs"])
    (videos / "0001_he").rename(videos / "1_woman_2.png--8")
    samples, problems, _ = find_samples(videos, benchmark)
    assert [sample.name for sample in samples[2:]] == ["1_woman_2.png--8"] and "0000_she" in problems[0], "names decide between equal ones"


def test_plain_folder_takes_people_from_left_to_right(tmp_path, monkeypatch):
    (tmp_path / "walk.mp4").write_bytes(b"")
    (tmp_path / "walk.txt").write_text("two people walk\n")
    images = [image(tmp_path / name) for name in ("walk_2.png", "walk_1.jpg", "walk_10.png", "walker.png")]
    (sample,), problems, notes = find_samples(tmp_path, None)
    assert sample.references == (images[1], images[0], images[2]) and sample.prompt == "two people walk"
    assert problems == notes == []
    poster = image(tmp_path / "walk_2.jpg")
    samples, (problem,), _ = find_samples(tmp_path, None)
    assert not samples and "walk.mp4: found walk_1.jpg, walk_2.jpg, walk_2.png, walk_10.png beside it, expected one image of" in problem
    poster.unlink()
    (tmp_path / "walker.txt").touch()
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "a.mp4").touch()
    lacking, unread = find_samples(tmp_path, None)[2]
    assert "1 prompt with an image but no video, such as walker.txt" in lacking and "1 video deeper in it" in unread
    for video in ("walk_1.mp4", "walk_1_2.mp4", "none.mp4"):
        (tmp_path / video).touch()
    further, looked = [image(tmp_path / "walk_1_2.png"), image(tmp_path / "walk_1_2_3.png")], []

    class Listed(list):
        def __iter__(self):
            looked.append(self)
            return super().__iter__()

    monkeypatch.setattr(layouts, "media_in", lambda *args, **deep: Listed(media_in(*args, **deep)))
    found = {sample.name: sample.references for sample in find_samples(tmp_path, None)[0]}
    assert found == {"walk": (images[0], images[2]), "walk_1": (images[1],), "walk_1_2": tuple(further), "none": ()}, "a video's own image"
    images[0].unlink()
    images[2].unlink()
    assert "walk.mp4: found no walk.png, expected it, as" in find_samples(tmp_path, None)[1][0]
    assert len(looked) == 8, "images once, videos twice, and what lies deeper"
