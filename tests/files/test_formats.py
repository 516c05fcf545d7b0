"""What counts as an image and as a video, and what a video is whatever it is called."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from in_process import ffmpeg, refused
from PIL import Image

from concat_id.curation.source_videos import Captions, read_sources
from concat_id.data.records import inspect_records
from concat_id.evaluation.face_vectors import images_in
from concat_id.evaluation.layouts import find_samples
from concat_id.files.formats import CONTAINERS, beside, container_of, is_image, is_video, media_in
from concat_id.files.paths import file_digest
from concat_id.video.transforms import load_image

ENCODERS = {".ogv": "libtheora", ".gif": "gif", ".webm": "libvpx", ".wmv": "wmv2", ".asf": "wmv2", ".flv": "flv1"}
ENCODERS |= dict.fromkeys((".mpg", ".mpeg", ".vob"), "mpeg2video")


@pytest.mark.parametrize(("container", "suffix"), [(name, suffix) for name, (_, found) in CONTAINERS.items() for suffix in sorted(found)])
def test_containers_are_told_by_their_first_bytes(tmp_path, container, suffix):
    clip = tmp_path / f"clip{suffix}"
    codec = ENCODERS.get(suffix, "mpeg4")
    ffmpeg("-f", "lavfi", "-i", "color=s=64x64:r=25:d=0.4", "-c:v", codec, clip)
    renamed = clip.rename(tmp_path / "photo.png")
    assert container_of(renamed) == container and is_video(clip) and not is_image(clip)


PLAYLISTS = [b"ffconcat version 1.0\nfile a.mp4\n", b"#EXTM3U\n#EXTINF:2,\na.ts\n", b"v=0\nc=IN IP4 127.0.0.1\nm=video 1 RTP/AVP 96\n"]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    text=st.text().filter(lambda text: not re.search("matroska|webm", text)),  # else it may be a Matroska file
    prefix=st.sampled_from([b"", *PLAYLISTS, b"\0\0\0\0moov", b"\x1aE\xdf\xa3", b"<?xml"]),
)
@example("", b"")
def test_other_files_are_no_videos(tmp_path_factory, text, prefix):
    path = tmp_path_factory.getbasetemp() / "text.mp4"
    path.write_bytes(prefix + text.encode(errors="replace"))
    refused("text.mp4: not a video that can be read: found (text|other data|an empty file), expected MP4", container_of, path)


def test_every_format_that_pillow_writes_counts_by_its_suffix(tmp_path):
    for suffix in (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".jfif"):
        path = tmp_path / f"photo{suffix.upper()}"
        Image.new("RGB", (32, 24), "red").save(path)
        assert is_image(path) and not is_video(path) and load_image(path).size == (32, 24)
    assert is_image(tmp_path / "a.HEIC") and not any(is_image(tmp_path / name) for name in ("a.eps", "a.pdf", "a.fits", ".png"))


def test_folders_are_listed_without_what_is_hidden(tmp_path):
    (tmp_path / "b").mkdir(), (tmp_path / ".c").mkdir()
    for name in ("B.MP4", "a.mov", "._a.mp4", ".b.mp4", "b/x.mkv", ".c/y.mp4", "b/._x.mkv", "a.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in media_in(tmp_path, is_video)] == ["B.MP4", "a.mov"]
    assert [path.name for path in media_in(tmp_path, is_video, deep=True)] == ["B.MP4", "a.mov", "x.mkv"]


def test_files_beside_have_a_suffix_in_any_case(tmp_path):
    assert beside(tmp_path / "C.MP4", ".txt") == tmp_path / "C.txt"
    for name in ("C.tXt", "C.txt"):
        (tmp_path / name).touch()
        assert beside(tmp_path / "C.MP4", ".txt") == tmp_path / name


def test_every_tool_understands_the_same_folder(tmp_path):
    """A camera's suffixes in upper case, an AVIF photo, and what macOS leaves behind."""
    for name in ("C.MP4", "._C.MP4", "d.mov", ".d.mov"):
        (tmp_path / name).touch()
    for name in ("C.JPG", "d.avif"):
        Image.new("RGB", (32, 24)).save(tmp_path / name)
    (tmp_path / "._C.JPG").touch(), (tmp_path / "C.TXT").write_text("a man"), (tmp_path / "d.txt").write_text("a woman")
    expected = [("C.MP4", "a man", "C.JPG"), ("d.mov", "a woman", "d.avif")]
    records, problems, _ = inspect_records([tmp_path])
    assert [(record.video.name, record.caption, record.images[0][0].name) for record in records] == expected and problems == []
    sources, problems = read_sources([tmp_path], Captions())
    assert [(source.path.name, source.caption) for source in sources] == [item[:2] for item in expected] and problems == []
    assert read_sources([tmp_path / "d.avif"], Captions())[0][0].is_image
    samples, problems, notes = find_samples(tmp_path, None)
    assert [(sample.video.name, sample.prompt, sample.references[0].name) for sample in samples] == expected and problems == notes == []
    assert [path.name for path in images_in(tmp_path, "--people")] == ["C.JPG", "d.avif"]


def test_pipes_and_devices_have_no_digest_and_are_no_videos(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", Path("/dev/zero"), tmp_path, tmp_path / "none"):
        for read in (file_digest, container_of):
            refused("expected a (file|video)", read, path)
