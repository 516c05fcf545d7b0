"""The command that checks a list: every problem named, the rest summed up."""

from functools import partial

from conftest import ROOT
from odd_input import is_told
from PIL import Image

from concat_id.data.checking import check_lists, summary
from concat_id.data.clips import Window

from .conftest import HEIGHT, WIDTH, write_clip

WINDOW = Window(8, 9, 3, (HEIGHT, WIDTH))


def test_all_kinds_of_problems_are_found_at_once(folder):
    write_clip(folder.path / "short.mp4", "24", 0.5)
    write_clip(folder.path / "wide.mp4", "24", 4.0, "setsar=4/3")
    write_clip(folder.path / "new.mp4", "24", 0.5, options=("-c:v", "libsvtav1", "-preset", "12"))
    (folder.path / "broken.png").write_bytes(b"no image")
    good, padding = (folder.path / "good.mp4").read_bytes(), b"\0\3\0\0free" + bytes(98300)
    for name, end in {"copy": b"", "padded": padding + bytes(98300), "twin": padding + b"t" + bytes(98299)}.items():
        (folder.path / f"{name}.mp4").write_bytes(good + end)
    Image.new("L", (10, 50)).save(folder.path / "tall.png")
    folder.hanging("hang.mp4")
    wrong = {
        "none.mp4": "found no file 'none.mp4'",
        "caption": "caption: found null",
        "broken.mp4": "broken.mp4 cannot be read",
        "hang.mp4": "not decoded within",
        "short.mp4": "too short: 0.50 s, expected 1.00 s and 3 frames",
        "wide.mp4": "wide.mp4 has pixels of 4:3, expected square ones",
        "new.mp4": "new.mp4 cannot be read: found AV1, which the reader of training clips does not know; convert it with `ffmpeg",
        "broken.png": "broken.png: not an image",
        "image as a clip": "broken.png cannot be read: not an image",
        "tall.png": "expected the shape of 64x48",
        "people": "4 reference images, the model takes at most 3",
        "again": "the same clip, caption and images as",
    }
    entries = [folder.entry(clip=name) for name in (*wrong, "copy.mp4", "padded.mp4", "twin.mp4") if name.endswith("mp4")]
    entries += [folder.entry(clip="broken.png"), folder.entry(clip="b.png"), folder.entry(caption=None)]
    entries += [folder.entry(image="broken.png"), folder.entry(mask_path="tall.png")]
    entries += [folder.entry(image="a.png@@b.png@@c.png@@a.png"), folder.entry(), folder.entry()]
    report = check_lists([folder.list(*entries)], WINDOW, workers=2, timeout_s=4)
    for words in wrong.values():
        assert sum(words in problem for problem in report.problems) == 1, (words, report.problems)
    assert summary(report)[0] == f"entries   {len(entries)}, of which 11 can be read, 7 different clips"
    assert len(report.problems) == len(wrong) and report.clips[folder.path / "b.png"]["frames"] == 1, report.problems
    assert ["copy.mp4" in note for note in report.notes if "has the same content as" in note] == [True]
    assert any("different numbers of references" in note for note in report.notes)
    assert all("\n" not in line for line in report.problems + report.notes)


def test_a_sound_list_is_summed_up(folder):
    folder.image("many/1.png"), folder.image("many/2.png")
    write_clip(folder.path / "slow.mp4", "5", 4.0)
    path = folder.list(folder.entry(), folder.entry(clip="slow.mp4", image="many"))
    report = check_lists([path], WINDOW, unseen={"too long for": lambda caption: "talks."})
    assert report.problems == []
    assert sum("does not see 'talks.'" in note for note in report.notes) == 2 and any("fewer than 8" in note for note in report.notes)
    text = "\n".join(summary(report))
    for words in ("2, of which 2 can be read", "8.0 s, 4.0 s a clip", "1 x 24", "1 x 5", "2 x 128x96", "2 x 1 person; 1 of them with alt"):
        assert words in text, text


def test_the_clips_of_all_sub_folders_are_counted(folder):
    for name in ("one", "part/two", "part/deep/three"):
        folder.image(f"data/images/{name}/1.png")
        clip = folder.path / "data" / "videos" / f"{name}.mp4"
        clip.parent.mkdir(parents=True, exist_ok=True)
        clip.write_bytes((folder.path / ("broken.mp4" if name == "part/two" else "good.mp4")).read_bytes())
    report = check_lists([folder.path / "data"], WINDOW)
    assert summary(report)[0] == "entries   3, of which 2 can be read, 2 different clips"
    assert len(report.problems) == 1 and "part/two.mp4 cannot be read" in report.problems[0]
    assert any("3 entries have an empty caption" in note for note in report.notes)


def test_the_command(folder, call, monkeypatch):
    monkeypatch.chdir(folder.path)  # the lists of configs/ are the project's
    good = folder.list(folder.entry(), name="good.json")
    bad = folder.list(folder.entry(), folder.entry(clip="broken.mp4"), name="bad.json")
    base = folder.path / "run.yaml"
    base.write_text(f"args: {{train_data: [{good}]}}\ndata: {{max_num_frames: 9}}\n")
    check = partial(call, "check_dataset")
    ended = check("--base", ROOT / "configs" / "debug.yaml", base)
    assert ended.code == 0 and ended.out.endswith("0 problems, 0 notes\n"), ended
    ended = check(bad, "--quiet")
    assert ended.code == 1 and "problem: " in ended.out and "bad.json:7" in ended.out and ended.out.endswith("\n2 problems, 1 note\n")
    shipped, options = "examples/training/single_identity_train.json", ["--workers", 1]
    ended = check(shipped, *options)
    assert ended.done and "judged as clips of 144x96, 49 frames" in ended.out and "configs/mini.yaml" in ended.out, ended
    ended = check(shipped, *options, "--model", "cogvideox_5b")
    assert ended.code == 1 and "judged as clips of 720x480" in ended.out and "8 problems" in ended.out, ended
    for options, words in (
        (["none.json"], "no such file, expected a"), (["--model", "cogvideox_5b"], "found no list in"), ([bad, "--workers", 0], "found 0"),
        (["--model", "mini", "--base", base], "found both"),
        ([bad, "--base", ROOT / "configs" / "consistentid.yaml"], "model.kind: found 'consistentid', expected cogvideox or wan; train it"),
    ):  # fmt: skip
        ended = check(*options)
        assert is_told(ended, 2) and words in ended.err
