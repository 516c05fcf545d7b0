"""Videos and contact sheets, read back."""

import resource

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from concat_id.errors import UserError
from concat_id.video import contact_sheet, to_frames, write_video


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
    assert meta["pix_fmt"].startswith("yuv420p")
    read = iio.imread(path, plugin="FFMPEG")
    assert read.shape == frames.shape
    assert np.abs(read.astype(int) - frames).mean() < 3


def test_failed_writing_leaves_nothing_behind(tmp_path):
    path = tmp_path / "v.mp4"
    path.write_bytes(b"made before")
    try:
        write_video(path, [np.zeros((96, 144, 3), np.uint8), "no frame"], fps=8)
    except Exception:  # whatever the encoder makes of it
        pass
    else:
        raise AssertionError("a frame that is none was written")
    assert path.read_bytes() == b"made before"
    assert list(tmp_path.iterdir()) == [path]


def test_an_encoder_that_runs_out_of_space_is_an_error(tmp_path):
    """The encoder itself fails here, as on a full disk, with the video half written."""
    frames = np.random.default_rng(0).integers(0, 255, (20, 96, 144, 3), dtype=np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
    try:
        with pytest.raises(UserError, match=r"v\.mp4: the video could not be written \(.+\); free some space"):
            write_video(tmp_path / "v.mp4", frames, fps=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_contact_sheet_shows_references_then_frames():
    frames = to_frames(moving_square(13, (96, 144)))
    sheet = contact_sheet([Image.new("RGB", (144, 96), "red")], frames, "A very long prompt " * 20)
    assert sheet.width > 7 * 144 and sheet.height > 96
    pixels = np.asarray(sheet)
    assert (pixels[-20, 20] == [255, 0, 0]).all()
