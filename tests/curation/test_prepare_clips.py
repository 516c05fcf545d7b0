"""From videos to clips through the command: what is found, what is discarded and why, and what a second run does."""

import json
import unicodedata
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from in_process import ffmpeg, no_file_larger_than
from odd_input import is_told
from PIL import Image, ImageFilter
from tiny_faces import write_segformer

from concat_id.curation.source_videos import Captions, read_sources
from concat_id.data.manifest_files import read_manifest
from concat_id.video.writing import write_video

from .conftest import FPS, HEIGHT, WIDTH, read, scene


def test_clips_people_and_reasons(videos, prepare, tmp_path, detector, recognizer, portraits):
    output = tmp_path / "out"
    assert prepare("--videos", videos / "whole.mp4", videos / "cuts.mp4", "--caption", " two  words ", "--output", output).done
    manifest = read(output / "manifest.json")
    whole, two = manifest["clips"]
    assert whole["video_path"] == str(videos / "whole.mp4") and len(whole["people"]) == 1 and whole["caption"] == "two words"
    assert manifest["recognizer"] == "SFace" and "identities" not in whole
    assert (two["start"], two["end"]) == (0.0, 1.2) and [round(person["position"], 1) for person in two["people"]] == [0.3, 0.8]
    assert all(0 <= left < person["position"] < right <= 1 and 0 <= top < bottom <= 1 for person in two["people"]
               for left, top, right, bottom in [person["box"]])  # fmt: skip
    reasons = sorted((entry["start"], entry["reason"]) for entry in manifest["discarded"])
    assert reasons == [(1.2, "a shot of 0.4 s, expected 1.1"), (1.6, "no face in 6 frames")]
    page = (output / "summary.html").read_text()
    assert "2 clips of 2 videos, 2 discarded" in page and "<td>1</td><td>no face in N frames</td>" in page and "http" not in page
    assert page.count('<img src="data:image/jpeg') == 3 and "<title>1.5 to 2.5: 1</title>" in page
    assert "<meta name=viewport" in page and "<title>0 to 0.05: " in page

    name, _, clips = read_manifest(output / "manifest.json")
    assert name == "SFace" and clips[1].video == output / two["video_path"] and clips[1].video.stat().st_size > 1000
    known = {name: recognizer.embed(portrait, detector.detect(portrait)[0]) for name, portrait in portraits.items()}
    found = [clips[0].people[0], *clips[1].people]
    for person, name in zip(found, ("left", "middle", "right"), strict=True):
        cosines = {other: float((person.vectors @ vector).min()) for other, vector in known.items()}
        assert max(cosines, key=cosines.get) == name and cosines[name] > 0.6
        assert 1 <= len(person.names) <= 2 and all(person.mask(number).is_file() for number in range(len(person.names)))
        crop, mask = Image.open(person.image(0)), np.asarray(Image.open(person.mask(0)))
        assert crop.size == (448, 448) and set(np.unique(mask)) == {0, 255} and mask[224, 224] == 255

    again = prepare("--videos", videos / "whole.mp4", videos / "cuts.mp4", "--caption", " two  words ", "--output", output, "--shard_mb", 1)
    assert "2 clips of 2 videos" in again.done and read(output / "manifest.json")["shards"] == {"manifest-00000.parquet": 2}
    for clip, sharded in zip(clips, read_manifest(output).clips, strict=True):
        assert (clip.file, clip.caption) == (sharded.file, sharded.caption)
        assert all(np.array_equal(one.vectors, other.vectors) for one, other in zip(clip.people, sharded.people, strict=True))


def test_names_stay_with_the_faces_of_people_who_change_sides_at_a_cut(prepare, tmp_path, portraits):
    (one, other), backgrounds = (portraits["left"], portraits["middle"]), (250, 30, 140)
    shots = [scene(background, (left, 0), (right, 140)) for background, (left, right) in
             zip(backgrounds, ((one, other), (other, one), (one, other)), strict=True)]  # fmt: skip
    write_video(tmp_path / "sides.mp4", np.concatenate(shots), 10)
    (tmp_path / "list.json").write_text(json.dumps([{"video_path": "sides.mp4", "caption": "c", "identities": ["one", "other"]}]))
    assert prepare("--videos", tmp_path / "list.json", "--output", tmp_path / "out").done
    clips = read(tmp_path / "out" / "manifest.json")["clips"]
    assert [clip["identities"] for clip in clips] == [["one", "other"], ["other", "one"], ["one", "other"]]


def test_a_stranger_after_a_cut_gets_no_name(prepare, tmp_path, portraits):
    shots = [scene(250, (portraits["left"], 80), frames=4), *(scene(place, (portraits[who], place)) for who, place in
             (("left", 0), ("middle", 140), ("left", 70)))]  # fmt: skip
    write_video(tmp_path / "interview.mp4", np.concatenate(shots), 10)
    (tmp_path / "list.json").write_text(json.dumps([{"video_path": "interview.mp4", "caption": "c", "identities": ["anna"]}]))
    done = prepare("--videos", tmp_path / "list.json", "--output", tmp_path / "out").done
    clips = read(tmp_path / "out" / "manifest.json")["clips"]
    assert [(clip["start"], clip["identities"]) for clip in clips] == [(0.4, ["anna"]), (2.8, ["anna"])]
    assert "1.6-2.8 s discarded: somebody is none of those whom the list names: cosine " in done


def test_the_parser_may_be_named(videos, prepare, tmp_path):
    command = "--videos", videos / "whole.mp4", "--caption", "c", "--output", tmp_path / "out", "--parser", tmp_path / "parser"
    assert (ended := prepare(*command)).code == 2 and "parser: not there, expected a Segformer" in ended.err
    write_segformer(tmp_path / "parser")
    assert (ended := prepare(*command)).done and "oval" not in ended.err and "Traceback" not in ended.err
    mask = next((tmp_path / "out").rglob("*.masks/0.png"))
    before = mask.stat().st_mtime_ns
    settings = tmp_path / "parser" / "preprocessor_config.json"  # as of another parser in a folder of this name
    settings.write_text(settings.read_text().replace('"height": 512', '"height": 256'))
    assert prepare(*command).done and mask.stat().st_mtime_ns > before


def test_crops_get_verdicts_that_are_counted(prepare, tmp_path, portraits):
    sharp, blurred = portraits["left"], portraits["middle"].filter(ImageFilter.GaussianBlur(3))
    write_video(tmp_path / "two.mp4", scene(250, (sharp, 0), (blurred, 140)), 10)
    command = "--videos", tmp_path / "two.mp4", "--caption", "c", "--output", tmp_path / "out", "--min_face", 10
    done = prepare(*command).done
    record = next((tmp_path / "out").glob("*/video.json"))
    assert '"verdict"' not in (tmp_path / "out" / "manifest.json").read_text(), "it would be ten times as large"
    (clip,) = read(record)["clips"]
    left, right = ([reference["verdict"] for reference in person["references"]] for person in clip["people"])
    assert "blurred" in [reason["kind"] for reason in right[0]["reasons"]] and right[0]["level"] != "good" and left[0]["measurements"]
    assert not {"blurred", "several faces"} & {reason["kind"] for verdict in left for reason in verdict["reasons"]}
    levels = [verdict["level"] for verdict in (*left, *right)]
    (line,) = [line for line in done.splitlines() if line.startswith("reference crops: ")]
    assert line.startswith("reference crops: " + ", ".join(f"{levels.count(level)} {level}" for level in ("good", "usable", "poor")))
    assert "; most often " in line and f"blurred ({len(right)})" in line

    next(record.parent.glob("*_person_2/1.png")).unlink()  # as people do who do not want it
    assert f"blurred ({len(right) - 1})" in prepare(*command).done
    whole = record.read_text()
    record.write_text(whole.replace('"verdict"', '"older"'))  # a record without verdicts
    assert "reference crops" not in prepare(*command).done
    record.write_text(whole.replace('"level"', '"rank"'))  # an odd one is made again
    assert f"blurred ({len(right)})" in prepare(*command).done


def test_ten_bits_hdr_wide_pixels_and_suffixes_in_upper_case_make_the_same_clips(videos, prepare, tmp_path):
    """As cameras write; the part of a longer video is written with 8 bits."""
    colours = "log-level=none:colorprim=bt2020:transfer=arib-std-b67:colormatrix=bt2020nc"
    hdr = "-c:v", "libx265", "-x265-params", colours, "-pix_fmt", "yuv420p10le"
    ffmpeg("-i", videos / "cuts.mp4", "-vf", "scale=iw/2:ih,setsar=2", *hdr, tmp_path / "ten.MOV")
    (tmp_path / "ten.TXT").write_text("two people")
    (tmp_path / "._ten.mov").write_bytes(b"what macOS writes beside files")
    code, out, told = prepare("--videos", tmp_path, "--output", tmp_path / "out")
    assert code == 0 and "ten.MOV: found HDR (HLG) colours" in told and "._ten" not in told
    (clip,) = read(tmp_path / "out" / "manifest.json")["clips"]
    assert (clip["start"], clip["end"], len(clip["people"]), clip["caption"]) == (0.0, 1.2, 2, "two people")
    made = iio.immeta(tmp_path / "out" / clip["video_path"], plugin="FFMPEG")
    assert made["pix_fmt"].startswith("yuv420p(") and made["size"] == (288, 192)


def test_a_video_of_which_training_sees_other_frames_is_cut(videos, prepare, tmp_path):
    whole, another = videos / "whole.mp4", ("-f", "lavfi", "-t", 1.2, "-i", f"mandelbrot=s={WIDTH}x{HEIGHT}:r={FPS}")
    mirrored, two, turned, late = files = [tmp_path / f"{name}.mp4" for name in ("mirrored", "two", "turned", "late")]
    ffmpeg("-display_hflip", "-i", whole, "-c", "copy", mirrored)
    ffmpeg("-i", whole, *another, "-map", "0:v", "-map", "1:v", "-c:v:0", "copy", "-c:v:1", "libx264", "-qp:v:1", 2, two)
    ffmpeg("-i", whole, "-vf", "hflip,vflip", tmp_path / "lying.mp4")
    ffmpeg("-display_rotation", 180, "-i", tmp_path / "lying.mp4", "-c", "copy", turned)
    ffmpeg("-f", "lavfi", "-t", 2, "-i", "sine", "-itsoffset", 0.25, "-i", whole, "-c:v", "copy", late)
    assert prepare("--videos", *files, "--caption", "c", "--output", tmp_path / "out").done
    clips = read(tmp_path / "out" / "manifest.json")["clips"]
    assert [clip["video_path"] == clip["source"] for clip in clips] == [False, False, True, True]


def test_a_codec_that_training_does_not_read_is_encoded_anew(videos, prepare, tmp_path):
    ffmpeg("-i", videos / "whole.mp4", "-c:v", "libsvtav1", "-preset", 12, tmp_path / "av1.mp4")
    assert prepare("--videos", tmp_path / "av1.mp4", "--caption", "c", "--output", tmp_path / "out").done
    (clip,) = read(tmp_path / "out" / "manifest.json")["clips"]
    made = iio.immeta(tmp_path / "out" / clip["video_path"], plugin="FFMPEG")
    assert (made["codec"], made["fps"], made["duration"], len(clip["people"])) == ("h264", 10, 1.2, 1)


def test_parts_that_are_damaged_are_discarded_with_the_reason(prepare, tmp_path, portraits):
    write_video(tmp_path / "sound.mp4", scene(0, (portraits["left"], 80), frames=64), 10)
    ffmpeg("-i", tmp_path / "sound.mp4", "-c:v", "libsvtav1", "-preset", 12, "-g", 4, tmp_path / "video.mp4")
    video = bytearray((tmp_path / "video.mp4").read_bytes())
    start, end = len(video) * 3 // 10, len(video) * 6 // 10
    video[start:end] = bytes(end - start)
    (tmp_path / "video.mp4").write_bytes(video)
    assert prepare("--videos", tmp_path / "video.mp4", "--caption", "c", "--output", tmp_path / "out", "--presence", 0.2).done
    manifest = read(tmp_path / "out" / "manifest.json")
    reasons = " ".join(entry["reason"] for entry in manifest["discarded"])
    assert "mp4: no frame can be decoded at " in reasons and " s of it can be decoded, so that the last frame would be held " in reasons
    assert len(list((tmp_path / "out").glob("*/*.mp4"))) == len(manifest["clips"]) > 0


def test_a_second_run_takes_over_what_is_done(videos, prepare, tmp_path):
    def crops() -> dict[Path, int]:
        assert prepare("--videos", tmp_path / "own.mp4", "--caption", "c", "--output", tmp_path / "out")[0] == 0
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}

    (tmp_path / "own.mp4").write_bytes((videos / "whole.mp4").read_bytes())
    first, manifest = crops(), read(tmp_path / "out" / "manifest.json")
    assert crops() == first and read(tmp_path / "out" / "manifest.json") == manifest
    (tmp_path / "own.mp4").touch()
    again = crops()
    assert again.keys() == first.keys() and not again.items() & first.items()


def test_crops_that_are_taken_out_by_hand_stay_out(videos, prepare, tmp_path):
    def crops(caption: str) -> tuple[set[Path], str]:
        done = prepare("--videos", videos / "whole.mp4", videos / "cuts.mp4", "--caption", caption, "--output", tmp_path, "--crop", 64).done
        return set(tmp_path.rglob("*_person_?/*.png")), done

    made, _ = crops("c")
    gone = {path for path in made if path.match("whole-*/*/0.png") or path.match("cuts-*/*_person_2/*")}
    for path in gone:
        path.unlink()
    left, told = crops("another")
    assert left == made - gone and "cuts.mp4: 0 clips" in told
    assert "    0.0-1.2 s discarded: all crops of a person have been taken out by hand" in told
    (clip,) = read(tmp_path / "manifest.json")["clips"]
    assert clip["source"] == str(videos / "whole.mp4") and clip["caption"] == "another" and "more prepared" not in told
    told = prepare("--videos", videos / "whole.mp4", "--caption", "c", "--output", tmp_path, "--crop", 64).done
    assert f"{tmp_path}: 1 more prepared folders are not listed; name all videos in one command" in told


def test_bad_videos_are_told_and_the_others_prepared(videos, prepare, tmp_path):
    entries = [
        {"video_path": "broken.mp4", "caption": "c"},
        {"video_path": "nowhere.mp4", "caption": "c"},
        {"video_path": "cuts.mp4"},
        {"video_path": "whole.mp4", "caption": "c", "identities": ["p1"], "split": "test", "spilt": 0},
        {"video_path": "whole.mp4", "caption": "c"},
        {"video_path": "cuts.mp4", "caption": "c", "identities": "p1"},
        {"video_path": "cuts.mp4", "caption": "c", "split": "held out"},
        {"video_path": "cuts.mp4", "caption": "c", "identities": ["p1"]},
    ]
    file = videos / "list.json"
    file.write_text(json.dumps(entries, indent=0))
    code, out, told = prepare("--videos", file, "--output", tmp_path)
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    for text in ("broken.mp4: cannot be read", "'nowhere.mp4'", "cuts.mp4: found no caption", "named twice", 'found "p1"', "\"held out\""):
        assert sum(text in line for line in errors) == 1, text
    assert code == 1 and len(errors) == 6 and "Traceback" not in told
    assert f"warning: {file}: spilt: in 1 entries and not read; the nearest key that is read is split" in told
    manifest = read(tmp_path / "manifest.json")
    assert "2 people, but the list names 1" in [entry["reason"] for entry in manifest["discarded"]]
    (clip,) = manifest["clips"]
    assert (clip["identities"], clip["split"], clip["caption"]) == (["p1"], "test", "c")
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == ["cuts", "manifest.json", "summary.html", "whole"]


def test_a_list_is_not_taken_for_the_manifest(videos, prepare, tmp_path):
    file = tmp_path / "manifest.json"
    file.write_text(text := json.dumps([{"video_path": str(videos / "whole.mp4"), "caption": "c"}]))
    ended = prepare("--videos", file, "--output", tmp_path)
    assert is_told(ended, 2) and "choose another --output" in ended.err and file.read_text() == text


def test_nothing_half_written_on_a_full_disk(videos, prepare, tmp_path):
    with no_file_larger_than():
        ended = prepare("--videos", videos / "whole.mp4", "--caption", "c", "--output", tmp_path)
    assert is_told(ended, 1) and not list(tmp_path.iterdir())


def test_wrong_options(call, videos, tmp_path):
    (tmp_path / "captions.json").write_text('{"a.mp4": " "}')
    (lines := tmp_path / "v.jsonl").write_text('{"video_path": "a.mp4"}\n{"video_path": "b.mp4"}\n')
    for options, text in (
        (["--frames", "0"], "--frames: found 0"),
        (["--presence", "2"], "--presence"),
        (["--captions", tmp_path / "none.json"], "none.json"),
        (["--captions", tmp_path / "captions.json"], "captions.json"),
        (["--captions", lines], "v.jsonl: found one object a line (JSON Lines), expected a JSON object with captions; convert it"),
        (["--videos", lines], "v.jsonl: found one object a line (JSON Lines), expected a JSON list of objects; put commas between"),
    ):
        ended = call("prepare_clips", "--videos", videos / "whole.mp4", "--output", tmp_path / "out", *options)
        assert is_told(ended, 2) and text in ended.err


def test_captions_beside_a_video_and_in_a_file(tmp_path, capsys):
    for name in ("a", "b", "c", unicodedata.normalize("NFD", "café")):
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "b.txt").write_text("beside\nit")
    for name in ("talks/2024/d.mp4", "talks/.trash/e.mp4", "out/cuts-0/clip_000.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "out" / "cuts-0" / "video.json").write_text('{"fingerprint": "f", "source": "s"}')
    (tmp_path / "talks" / "2024" / "video.json").write_text('{"source": "somebody else\'s"}')
    (tmp_path / "talks" / "2024" / "d.txt").write_text("deep")
    (tmp_path / "talks" / "a.mp4").touch()
    (tmp_path / "captions.json").write_text('{"a.mp4": "by  name", "café": "letters", "A.mp4": "x", "z": "y"}')
    sources, problems = read_sources([tmp_path], Captions(tmp_path / "captions.json"))
    assert [source.caption for source in sources] == ["by name", "beside it", "letters", "deep"]
    assert [problem.partition("; ")[0] for problem in problems[1:]] == [
        f"--captions: {tmp_path}/captions.json: a.mp4: found {tmp_path}/a.mp4 and {tmp_path}/talks/a.mp4, expected one file"]  # fmt: skip
    assert "c.mp4" in problems[0] and "captions.json: 2 captions are not used; " in (told := capsys.readouterr().err) and "'A.mp4'" in told


def test_only_different_files_without_their_own_words_contest_a_caption(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, content in {"x/a": "one", "y/a": "one", "x/b": "two", "y/b": "three", "x/c": "four", "x/d": "five"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.mp4").write_text(content)
    people = {"b": "\u00c9va", "c": "E\u0301va\u3000"}
    entries = [{"video_path": f"x/{name}.mp4", "caption": f"own {name}", "identities": [people[name]], "recording": people[name]}
               for name in people]  # fmt: skip
    Path("list.json").write_text(json.dumps(entries))
    Path("captions.json").write_text('{"a": "of both", "b.mp4": "y\'s", "c": "not needed", "x/d.mp4": "by path"}')
    named = "list.json", "x/a.mp4", "y/a.mp4", "y/b.mp4", "x/d.mp4", tmp_path / "x" / "d.mp4"
    sources, problems = read_sources([Path(name) for name in named], Captions(Path("captions.json")))
    assert [source.caption for source in sources] == ["own b", "own c", "of both", "y's", "by path"] and capsys.readouterr().err == ""
    assert {(source.identities, source.recording) for source in sources[:2]} == {(("\u00c9va",), "\u00c9va")}, "one person"
    assert problems == [f"{named[-1]}: named twice; the first is used", "y/a.mp4: a copy of x/a.mp4; the first is used"]


def test_photographs_are_clips_of_one_frame_whatever_the_number_of_processes(prepare, tmp_path, portraits):
    entries = [{"video_path": f"{name}.png", "caption": f"c {name}", "identities": [name], "split": "train", "recording": "group"}
               for name in portraits]  # fmt: skip
    for name, portrait in portraits.items():
        portrait.save(tmp_path / f"{name}.png")
    Image.new("RGB", (144, 144), "white").save(tmp_path / "empty.png")
    (tmp_path / "damaged.png").write_bytes(b"no image")
    (tmp_path / "copy.png").write_bytes((tmp_path / "left.png").read_bytes())
    entries += [{"video_path": name, "caption": "c"} for name in ("empty.png", "damaged.png", "copy.png")]
    (tmp_path / "list.json").write_text(json.dumps(entries, default=str))
    manifests = []
    for workers in (1, 2):
        options = "--videos", tmp_path / "list.json", "--output", tmp_path / str(workers), "--crop", 96, "--workers", workers
        code, _, told = prepare(*options)
        assert code == 1 and told.count("error: ") == 2 and "damaged.png" in told and "Traceback" not in told
        assert f"copy.png: a copy of {tmp_path / 'left.png'}; the first is used" in told, "it would pass for another clip of a person"
        manifests.append(read(tmp_path / str(workers) / "manifest.json"))
    assert manifests[0] == manifests[1], "paths are from the manifest's folder"
    assert [entry["reason"] for entry in manifests[0]["discarded"]] == ["no face in 1 frames"]

    clips = read_manifest(tmp_path / "2" / "manifest.json").clips
    assert [clip.video.name for clip in clips] == ["left.png", "middle.png", "right.png"]
    assert [clip.origin for clip in clips] == ["group"] * 3 and clips[0].caption == "c left"
    assert [len(clip.people[0].names) for clip in clips] == [1, 1, 1] and Image.open(clips[0].people[0].image(0)).size == (96, 96)
    again = read_manifest(tmp_path / "1" / "manifest.json").clips
    assert np.array_equal(again[0].people[0].vectors, clips[0].people[0].vectors)


def test_a_photograph_that_lies_becomes_an_upright_clip(prepare, tmp_path, portraits):
    portraits["left"].rotate(90).save(tmp_path / "lying.png")
    options = "--videos", tmp_path / "lying.png", "--caption", "c", "--output", tmp_path / "out", "--same_person", 0.5
    code, out, _ = prepare(*options)
    assert code == 0 and "the photo lies on its left side; it is turned upright" in out
    assert "two faces are one person's from a cosine of 0.5 (as asked for)" in out
    (clip,) = read_manifest(tmp_path / "out" / "manifest.json").clips
    assert clip.video.parent.parent == tmp_path / "out" and clip.video.name == "clip_000.png"
    assert np.array_equal(np.asarray(Image.open(clip.video)), np.asarray(portraits["left"])) and clip.origin == str(clip.video)
