"""Frames by time, whatever the clip's rate; clips that hang, crash or are broken."""

import json
import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from in_process import ffmpeg, refused

from concat_id.data.clips import BadFiles, ClipReader, UnreadableClipError, Window
from concat_id.data.decoding import choose_frames, resize_and_crop

from .conftest import HEIGHT, VARIABLE, WIDTH, burned_times, write_clip

SIZE = (HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def reader():
    reader = ClipReader(timeout_s=20)
    yield reader
    reader.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.mark.parametrize("rate", ["8", "24", "30000/1001", "60", "variable"])
@pytest.mark.parametrize("position", [0.0, 0.37, 1.0])
def test_frames_are_read_by_time(rate, position, made, reader):
    path = made / f"{rate.replace('/', '_')}.mp4"
    if not path.exists():
        write_clip(path, *(("60", 7.0, VARIABLE) if rate == "variable" else (rate, 7.0)))
    frames = reader.read(path, Window(8, 49 if rate != "8" else 33, 3, SIZE, position))
    times = burned_times(frames.pixels)
    np.testing.assert_allclose(times, frames.times, atol=2e-3, err_msg="the time stamps are those of the pixels")
    frame = {"variable": 5 / 60, "30000/1001": 1001 / 30000}.get(rate) or 1 / float(rate)  # longest of the source, in seconds
    late = times - np.arange(len(times)) / 8
    assert (late.max() - late.min()) / 2 <= frame / 2 + 2e-3, "some 8 moments a second are at most half a source frame from all"
    assert frames.held == 0
    if rate != "variable" and position == 0:
        assert abs(times[0] - 3 * frame) < 2e-3 and np.abs(late - times[0]).max() <= frame / 2 + 2e-3, "it starts after 3 source frames"


@pytest.mark.parametrize("seed", range(10))
def test_choosing_frames(seed):
    """For any time stamps: nearest to evenly spaced moments, in order, inside what is not skipped."""
    random = np.random.default_rng(seed)
    times = np.cumsum(random.uniform(0.005, 0.12, random.integers(1, 300))) + random.uniform(-1, 1)
    fps, count, skip, position = random.uniform(2, 40), 4 * int(random.integers(0, 13)) + 1, int(random.integers(0, 6)), random.random()
    indices, held = choose_frames(times, fps, count, skip, position)
    skip = min(skip, (len(times) - 1) // 2)
    assert len(indices) == count and (np.diff(indices) >= 0).all()
    assert indices.min() >= skip and indices.max() < len(times) - skip
    usable = times[skip : len(times) - skip]
    start = usable[0] + position * max(usable[-1] - usable[0] - (count - 1) / fps, 0)
    wanted = start + np.arange(count) / fps
    best = np.abs(usable[:, None] - wanted).min(0)
    assert np.allclose(np.abs(times[indices] - wanted), best, atol=2e-4)
    last = len(usable) > 1 and (usable[-1] - usable[-2]) / 2
    assert held == (wanted > usable[-1] + last + 1e-4).sum()


def test_ties_ends_and_clips_of_three_frames():
    assert choose_frames(np.arange(9) / 24, 16, 5, 0, 0.0)[0].tolist() == [0, 1, 3, 4, 6], "of two that are as near, the earlier"
    assert choose_frames(np.arange(5) / 10, 7, 4, 0, 0.5)[1] == 0, "a frame is shown until half of the time to the next has passed"
    assert choose_frames(np.arange(3) / 8, 8, 5, 3, 0.5)[0].tolist() == [1] * 5, "the middle is left"


def test_short_clips_hold_their_last_frame(made, reader):
    frames = reader.read(write_clip(made / "short.mp4", "24", 1.0), Window(8, 17, 3, SIZE, 0.9))
    times = burned_times(frames.pixels)
    assert times[0] == pytest.approx(3 / 24, abs=2e-3) and times[-1] == pytest.approx(20 / 24, abs=2e-3)
    np.testing.assert_allclose(times, frames.times, atol=2e-3)
    assert frames.held == 11 and (times[-frames.held :] == times[-1]).all()
    single = reader.read(write_clip(made / "single.mp4", "24", 1 / 24), Window(8, 5, 3, SIZE))
    assert single.pixels.shape == (5, *SIZE, 3) and single.held == 4


def test_clips_cut_without_encoding_anew_hide_what_was_cut_off(made, reader):
    whole = write_clip(made / "whole.mp4", "30", 14.0, options=("-g", "250", "-bf", "2"))
    cut = made / "cut.mp4"
    ffmpeg("-ss", 1.1, "-i", whole, "-c", "copy", cut)
    for position in (0.0, 0.5, 1.0):
        frames = reader.read(cut, Window(8, 9, 0, SIZE, position))
        np.testing.assert_allclose(burned_times(frames.pixels), np.array(frames.times) + 1.1, atol=2e-3)
    assert frames.times[-1] == pytest.approx(12.867, abs=0.02), "the last frame is reached"
    frames = reader.read(whole, Window(8, 9, 0, SIZE, 1.0))
    np.testing.assert_allclose(burned_times(frames.pixels), frames.times, atol=2e-3, err_msg="after a jump to a frame beyond FAR")


def test_avi_with_b_frames_is_read_by_its_rate(made, reader):
    whole = write_clip(made / "whole.avi", "30", 14.0, options=("-c:v", "mpeg4", "-q:v", "2", "-bf", "2", "-g", "250"))
    for position in (0.0, 1.0):
        frames = reader.read(whole, Window(8, 9, 0, SIZE, position))
        np.testing.assert_allclose(burned_times(frames.pixels), frames.times, atol=2e-3)
    ffmpeg("-i", write_clip(made / "b.mp4", "30", 1.0, options=("-bf", "2")), "-c", "copy", made / "copied.avi")
    with pytest.raises(UnreadableClipError, match="found no time stamps; convert it with `ffmpeg"):
        reader.probe(made / "copied.avi", Window(8, 9, 0, SIZE))


@pytest.mark.parametrize("options", [
    ("-x264opts", "open-gop=1:keyint=20:bframes=3"), ("-c:v", "libx265", "-x265-params", "log-level=none:keyint=20"),
    ("-c:v", "libx265", "-x265-params", "log-level=none", "-pix_fmt", "yuv420p10le", "-crf", "12"),
])  # fmt: skip
def test_groups_of_images_may_be_open_and_colours_of_ten_bits(options, made, reader):
    path = write_clip(made / f"{len(options)}.mp4", "30", 5.0, options=("-preset", "fast", *options))
    for position in (0.0, 0.5, 1.0):
        frames = reader.read(path, Window(8, 33, 3, SIZE, position))
        np.testing.assert_allclose(burned_times(frames.pixels), frames.times, atol=2e-3)


def test_resizing_fills_the_size_and_keeps_the_centre():
    frame = np.zeros((90, 200, 3), np.uint8)
    frame[:, 70:130] = 255  # the centred 60 columns
    square = resize_and_crop(frame, (45, 45))
    assert square.shape == (45, 45, 3)
    columns = square[20, :, 0] > 127
    assert columns.sum() == pytest.approx(30, abs=1) and abs(columns.argmax() - columns[::-1].argmax()) <= 1
    upright = resize_and_crop(frame.transpose(1, 0, 2), (45, 45)).astype(int)
    assert np.abs(upright - square.transpose(1, 0, 2)).max() <= 2, "rows as columns"
    assert resize_and_crop(frame, (180, 60)).min() > 200, "a narrow window sees the centre alone"
    checks = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.abs(resize_and_crop(np.stack([checks] * 3, -1), (32, 32))[4:-4, 4:-4].astype(int) - 127).max() <= 4, "no aliasing"


def test_probe_describes(made, reader):
    path = write_clip(made / "described.mp4", "25", 2.0)
    ffmpeg("-display_rotation", 90, "-i", path, "-c", "copy", made / "upright.mp4")
    facts = reader.probe(made / "upright.mp4", Window(8, 5, 0, SIZE))
    assert (facts["width"], facts["height"]) == (HEIGHT, WIDTH), "as phones held upright write"
    ffmpeg("-i", path, "-i", path, "-map", "0", "-map", "1", "-c:v:0", "copy", "-filter:v:1", "setsar=4/3", made / "tracks.mkv")
    assert reader.probe(made / "tracks.mkv", Window(8, 5, 0, SIZE))["sar"] == "1:1", "of the first track"
    facts = reader.probe(path, Window(8, 9, 3, SIZE), whole=True)
    assert facts.pop("sar") == "1:1"
    assert facts == pytest.approx({"frames": 50, "seconds": 2.0, "fps": 25.0, "varies": False, "height": 96, "width": 128, "held": 0})
    irregular = write_clip(made / "irregular.mp4", "60", 2.0, VARIABLE)
    assert reader.probe(irregular, Window(8, 49, 3, SIZE))["varies"]


def broken_clips(folder: Path, good: Path) -> dict[str, str]:
    """Write clips that cannot be read; returns what is told of each."""
    data = bytearray(good.read_bytes())
    random = np.random.default_rng(0)
    start = data.find(b"mdat") + 100
    for place in random.integers(start, len(data) - 2000, 3000):
        data[place] = random.integers(256)
    (folder / "bits.mp4").write_bytes(data)
    (folder / "half.mp4").write_bytes(good.read_bytes()[: len(data) // 2])
    (folder / "noise.mp4").write_bytes(random.bytes(5000))
    (folder / "empty.mp4").write_bytes(b"")
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.2", "-c:a", "aac", folder / "sound.mp4")
    ffmpeg("-i", good, folder / "a.ts")
    (folder / "list.mp4").write_text(f"ffconcat version 1.0\nfile {good}\n")
    os.mkfifo(folder / "pipe.mp4")
    found = {"a.ts": "found MPEG-TS, expected MP4", "list.mp4": "found text", "pipe.mp4": "found a named pipe",
             "sound.mp4": "no video in it", "half.mp4": "it is damaged or was cut short"}  # fmt: skip
    return found | dict.fromkeys(("bits.mp4", "noise.mp4", "empty.mp4", "missing.mp4"), "")


def test_broken_clips_are_told_in_words_of_the_user_and_the_reader_goes_on(made, good_clip, reader):
    for name, words in broken_clips(made, good_clip).items():
        with pytest.raises(UnreadableClipError) as error:
            reader.read(made / name, Window(8, 17, 3, SIZE))
        assert words in error.value.reason and "; convert it o" not in error.value.reason, "that is for who tells it"
        assert not {"\n", "/"} & set(error.value.reason), error.value.reason
    assert reader.read(good_clip, Window(8, 17, 3, SIZE)).pixels.shape == (17, *SIZE, 3)


def test_the_decoder_runs_nothing_of_the_working_folder(folder, good_clip, tmp_path):
    """Whatever lies there under a library's name, and though an empty entry of PYTHONPATH stands for that folder."""
    for name in ("decord", "numpy", "json", "concat_id", "torch", "PIL"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'a').write({name!r})")
    folder.patch.chdir(tmp_path)
    folder.patch.setenv("PYTHONPATH", f":{tmp_path / 'elsewhere'}:")
    reader = ClipReader()
    assert reader.read(good_clip, Window(8, 5, 3, SIZE)).pixels.shape == (5, *SIZE, 3)
    reader.close()
    assert not (tmp_path / "was-run").exists()


def test_a_decoder_killed_while_it_starts_is_started_again(folder, good_clip, tmp_path):
    (tmp_path / "slow").mkdir()
    killed = f"open({str(tmp_path / 'killed')!r}, 'a').write('x') == 1 and __import__('os').kill(__import__('os').getpid(), 9)"
    (tmp_path / "slow" / "decord.py").write_text(killed)
    folder.patch.setenv("PYTHONPATH", str(tmp_path / "slow"))
    refused("the process that decodes clips does not start", ClipReader().read, good_clip, Window(8, 5, 3, SIZE))
    assert (tmp_path / "killed").read_text() == "xxx"
    (tmp_path / "slow" / "decord.py").unlink()
    assert ClipReader().read(good_clip, Window(8, 5, 3, SIZE)).held == 0


@pytest.mark.parametrize("name", [b"caf\xe9.mp4", b"-y.mp4", b"concat:a|b.mp4", b"%03d.mp4", "ü\n[x].mp4".encode()])
def test_clips_of_any_name(tmp_path, monkeypatch, good_clip, reader, name):
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(name))
    path.write_bytes(good_clip.read_bytes())
    assert reader.probe(tmp_path / path, Window(8, 5, 0, SIZE))["frames"] == 96


def test_a_hanging_clip_is_given_up(folder, good_clip):
    reader, hanging = ClipReader(timeout_s=2.5), folder.hanging("hang.mp4")
    reader.read(good_clip, Window(8, 5, 3, SIZE))
    before = reader._process._process.pid
    with pytest.raises(UnreadableClipError, match="not decoded within 2.5 s"):
        reader.read(hanging, Window(8, 17, 3, SIZE))
    with pytest.raises(ProcessLookupError):
        os.kill(before, 0)
    assert reader.read(good_clip, Window(8, 5, 3, SIZE)).pixels.shape[0] == 5
    reader.close()


def test_the_decoder_ends_itself_when_its_parent_is_gone(folder):
    """A process stuck inside a decoder cannot see that its input ended; the kernel's alarm still reaches it."""
    request = {"task": "probe", "path": str(folder.hanging("hang.mp4")), "whole": False, "seconds": 0.3, "fps": 8, "num_frames": 5,
               "skip": 0}  # fmt: skip
    paths = f"{Path(__file__).resolve().parents[2] / 'sat'}{os.pathsep}{os.environ['PYTHONPATH']}"
    mine, theirs = Pipe()
    child = subprocess.Popen([sys.executable, "-m", "concat_id.data.decoding", str(theirs.fileno())], pass_fds=[theirs.fileno()],
                             env=os.environ | {"PYTHONPATH": paths})  # fmt: skip
    theirs.close()
    assert mine.recv() == ({}, None)
    mine.send(request)
    mine.close()
    assert child.wait(timeout=600) == -signal.SIGALRM


def test_a_killed_decoder_is_started_again(good_clip, reader):
    expected = reader.read(good_clip, Window(8, 5, 3, SIZE))
    os.kill(reader._process._process.pid, signal.SIGKILL)
    assert (reader.read(good_clip, Window(8, 5, 3, SIZE)).pixels == expected.pixels).all()


def test_bad_files_are_shared_and_forgotten_when_mended(tmp_path):
    list_path, clip, other = tmp_path / "run" / "bad_clips.jsonl", tmp_path / "x.mp4", tmp_path / "gone.mp4"
    clip.write_bytes(b"broken")
    mine, theirs = BadFiles(list_path), BadFiles(list_path)
    assert mine.reason(clip) is None
    mine.add(clip, "broken", "list.json:3")
    theirs.add(clip, "broken", "list.json:3")
    theirs.add(other, "no such file", "list.json:4")
    assert (theirs.reason(clip), mine.reason(other)) == ("broken", "no such file")
    lines = [json.loads(line) for line in list_path.read_text().splitlines()]
    assert [(line["file"], line["source"]) for line in lines] == [(str(clip), "list.json:3"), (str(other), "list.json:4")]
    list_path.open("a").write('{"file": "cut o')
    assert BadFiles(list_path).reason(clip) == "broken"
    clip.write_bytes(b"mended, longer")
    assert BadFiles(list_path).reason(clip) is None


@pytest.mark.parametrize("width", [16, 48, 64])
def test_narrow_frames_keep_their_columns(width, tmp_path, reader):
    path = write_clip(tmp_path / "narrow.mp4", "8", 0.5, f"scale={width}:{HEIGHT}")
    pixels = reader.read(path, Window(8, 1, 0, (HEIGHT, width), 0.0)).pixels[0]
    wanted = iio.imread(path, index=0)
    assert wanted.shape == pixels.shape == (HEIGHT, width, 3)
    assert np.abs(np.asarray(pixels, int) - wanted).mean() < 2
