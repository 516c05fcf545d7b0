"""Videos and contact sheets, read back."""

import io
import os
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from in_process import ffmpeg, no_file_larger_than, refused, write_program
from PIL import Image, ImageFont

from concat_id.errors import UserError
from concat_id.evaluation.sampled_video import read_video
from concat_id.video import writing
from concat_id.video.transforms import to_frames
from concat_id.video.writing import _read_ppm, contact_sheet, decode_frames, describe_video, write_video


def moving_square(frames: int, size: tuple[int, int]) -> torch.Tensor:
    video = torch.full((3, frames, *size), -1.0)
    for index in range(frames):
        video[index % 3, index, 10:30, 4 * index : 4 * index + 16] = 1.0
    return video


def test_pixels_map_to_bytes_and_are_clipped():
    frames = to_frames(torch.tensor([-1.0, -0.5, 0.0, 1.0, 7.0, -7.0]).view(1, 1, 1, 6).expand(3, 1, 1, 6))
    assert frames.shape == (1, 1, 6, 3) and frames.dtype == np.uint8
    assert frames[0, 0, :, 0].tolist() == [0, 64, 128, 255, 255, 0]


def test_video_is_h264_with_the_right_rate_and_frames(tmp_path):
    path = tmp_path / "v.mp4"
    frames = to_frames(moving_square(17, (96, 144)))
    write_video(path, frames, fps=8)
    meta = iio.immeta(path, plugin="FFMPEG")
    assert (meta["codec"], meta["fps"], tuple(meta["size"])) == ("h264", 8.0, (144, 96))
    assert meta["pix_fmt"].startswith("yuv420p") and "smpte170m" in describe_video(path, 20)[0], "players take high ones for BT.709"
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat"), "the index is read first"
    read = iio.imread(path, plugin="FFMPEG")
    assert read.shape == frames.shape
    assert np.abs(read.astype(int) - frames).mean() < 3


def test_an_encoder_that_runs_out_of_space_is_an_error(tmp_path):
    """The encoder itself fails here, as on a full disk, with the video half written."""
    frames = np.random.default_rng(0).integers(0, 255, (20, 96, 144, 3), dtype=np.uint8)
    (tmp_path / "v.mp4").write_bytes(b"made earlier")
    with no_file_larger_than(64 * 1024), pytest.raises(UserError, match=r"v\.mp4: the video could not be written \(.+\); free some space"):
        write_video(tmp_path / "v.mp4", frames, fps=8)
    assert list(tmp_path.iterdir()) == [tmp_path / "v.mp4"] and (tmp_path / "v.mp4").read_bytes() == b"made earlier"


def test_contact_sheet_shows_references_then_frames():
    frames = to_frames(moving_square(13, (96, 144)))
    sheet = contact_sheet([Image.new("RGB", (144, 96), "red")], frames, "A very long prompt " * 20)
    assert sheet.width > 7 * 144 and sheet.height > 96
    pixels = np.asarray(sheet)
    assert (pixels[-20, 20] == [255, 0, 0]).all()


def test_letters_beyond_ascii_are_drawn_by_a_font_of_the_machine(monkeypatch, tmp_path):
    own = tmp_path / "own.ttf"
    own.write_bytes(ImageFont.load_default(20).font_bytes)
    monkeypatch.setattr(writing, "FONTS", ("none.ttf", str(own)))
    assert writing._font("ein Mädchen", 20).path == str(own) and writing._font("a girl", 20).path != str(own)
    monkeypatch.setattr(writing, "FONTS", ("none.ttf",))
    assert contact_sheet([], np.zeros((3, 96, 144, 3), np.uint8), "ein Mädchen").height > 96

    def of_letters(known, size):
        return SimpleNamespace(known=known, getmask=lambda letter: letter.encode() if letter in known else b"box")

    monkeypatch.setattr(writing, "FONTS", ("一位 smiles", "אישה smiles"))
    monkeypatch.setattr(ImageFont, "truetype", of_letters)
    monkeypatch.setattr(ImageFont, "load_default", lambda size: of_letters("smiles", size))
    assert [writing._font(text, 20).known for text in ("一位 smiles", "אישה smiles")] == [*writing.FONTS], "the one that has them"


def test_prompts_stay_on_the_sheet():
    font = ImageFont.load_default(20)
    for prompt in ("一位女士" * 100, "a woman smiles " * 40, "WMW " * 100, "一" * 9 + " smiles " + "一" * 400, "x" * 900):
        lines = writing._wrapped(prompt, font, 900)
        assert len(lines) > 3 and max(map(font.getlength, lines)) <= 900
        assert "".join(prompt.split()).startswith("".join("".join(lines).removesuffix(" ...").split()))


def make(path, *options, source="testsrc2=s=64x48:r=8:d=1"):
    ffmpeg("-f", "lavfi", "-i", source, *options, path)
    return path


TEN_BITS = ["-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params"]
ODD = {
    "usual.mp4": ["-pix_fmt", "yuv420p"],
    "ten.mp4": [*TEN_BITS, "log-level=none"],
    "twelve.mkv": ["-c:v", "ffv1", "-pix_fmt", "gbrp12le"],
    "grey.mkv": ["-c:v", "ffv1", "-pix_fmt", "gray16le", "-vf", "format=gray16le"],
    "palette.gif": [],
    "wide.mp4": ["-pix_fmt", "yuv420p", "-vf", "scale=128:48,setsar=1/2"],
    "-y.mp4": ["-pix_fmt", "yuv420p"],
    "concat:a.mp4|b.mp4": ["-pix_fmt", "yuv420p"],
}
MUXERS = {".mov": "mov", ".mkv": "matroska", ".gif": "gif"}


@pytest.mark.parametrize("name", ODD)
def test_every_video_gives_frames_of_8_bits_whatever_its_pixels_and_its_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.rename(make(tmp_path / "made", *ODD[name], "-f", MUXERS.get(name[-4:], "mp4")), name)
    frames = np.stack(list(decode_frames(name, 20)))
    assert frames.shape == (8, 48, 64, 3) and frames.dtype == np.uint8
    expected = np.stack(list(decode_frames(make(tmp_path / "usual.mkv", "-c:v", "ffv1", "-pix_fmt", "gbrp"), 20))).astype(int)
    grey = expected @ [0.299, 0.587, 0.114]
    assert np.abs(frames.mean(-1) - grey if name == "grey.mkv" else frames - expected).mean() < 12


def test_frames_beyond_4k_are_scaled_while_they_are_decoded(tmp_path):
    large = make(tmp_path / "large.mp4", "-pix_fmt", "yuv420p", "-preset", "ultrafast", source="testsrc2=s=5120x2880:r=1:d=1")
    (frame,) = decode_frames(large, 20)
    assert frame.shape == (2160, 3840, 3)


def test_an_output_that_ends_inside_a_frame_is_an_error(tmp_path, monkeypatch):
    """As of an encoder of 16 bits, whose image is twice as large as expected, or of one that was killed."""
    clip = make(tmp_path / "a.mp4", "-pix_fmt", "yuv420p")
    write_program(tmp_path / "ffmpeg", "#!/bin/sh\nprintf 'P6\\n2 1\\n255\\nabcdefP6\\n2 1\\n255\\nabc'\n")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "ffmpeg"))
    refused("a.mp4: decoding ended inside a frame; the file is damaged", list, decode_frames(clip, 20))
    with pytest.raises(ValueError, match="8 bits"):
        _read_ppm(io.BytesIO(b"P6\n2 1\n65535\n" + bytes(12)))


def test_a_title_is_no_stream(tmp_path, capsys):
    title = ["-metadata", "title=My Video: 1.2.3 fps\nStream #0:0: Video: smpte2084, 60 fps"]
    make(tmp_path / "b.mp4", "-pix_fmt", "yuv420p", *title)
    assert read_video(tmp_path / "b.mp4", 4, 60).fps == 8 and not capsys.readouterr().err


@pytest.mark.parametrize(("transfer", "told"), [("arib-std-b67", "HDR (HLG)"), ("smpte2084", "HDR (PQ)"), ("bt709", None)])
def test_hdr_is_told(tmp_path, capsys, transfer, told):
    colours = f"log-level=none:colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"
    describe_video(make(tmp_path / "a.mp4", *TEN_BITS, colours), 20)
    warnings = capsys.readouterr().err.splitlines()
    assert (len(warnings) == 1 and f"a.mp4: found {told} colours" in warnings[0]) if told else warnings == []


def test_interlaced_frames_are_told(tmp_path, capsys):
    options = "-vf", "tinterlace=interleave_top", "-pix_fmt", "yuv420p", "-flags", "+ildct", "-x264opts", "tff=1"
    describe_video(make(tmp_path / "a.mp4", *options), 20)
    assert "a.mp4: found interlaced frames, expected progressive ones; convert it with `ffmpeg -i FILE -vf bwdif" in capsys.readouterr().err


def test_a_prompt_of_any_length_leaves_a_sheet_to_look_at():
    for prompt in ("x" * 800_000, "a man " * 130_000):
        assert contact_sheet([], np.zeros((3, 96, 144, 3), np.uint8), prompt).height < 2 * 160 + 200
