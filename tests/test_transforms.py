"""Pictures: reading what users have, fitting without distortion, tensors and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from concat_id.errors import UserError
from concat_id.transforms import fit_and_pad, load_image, to_pil, to_tensor

RED, GREEN = (255, 0, 0), (0, 255, 0)


def bounds(image: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is not black."""
    rows, columns = np.nonzero(np.asarray(image).max(axis=-1) > 8)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("source", [(448, 448), (50, 400), (400, 50), (31, 17), (1, 1), (720, 480), (3000, 10)])
@pytest.mark.parametrize("size", [(480, 720), (96, 144), (720, 480), (64, 64)])
def test_fit_and_pad_keeps_proportions_and_centres(source, size):
    fitted = fit_and_pad(Image.new("RGB", source, (200, 200, 200)), size)
    assert fitted.size == (size[1], size[0])
    left, top, right, bottom = bounds(fitted)
    scale = min(size[1] / source[0], size[0] / source[1])
    assert abs((right - left) - max(1, source[0] * scale)) <= 0.5
    assert abs((bottom - top) - max(1, source[1] * scale)) <= 0.5
    assert right - left == size[1] or bottom - top == size[0], "one side is filled"
    assert abs(left - (size[1] - right)) <= 1 and abs(top - (size[0] - bottom)) <= 1
    pixels = np.asarray(fitted)
    pixels = pixels.copy()
    pixels[top:bottom, left:right] = 0
    assert pixels.max() == 0, "the padding is black"


def test_fit_and_pad_draws_circles_as_circles():
    y, x = np.mgrid[:300, :200]
    circle = ((x - 100) ** 2 + (y - 150) ** 2 < 80**2).astype(np.uint8) * 255
    left, top, right, bottom = bounds(fit_and_pad(Image.fromarray(circle).convert("RGB"), (96, 144)))
    assert abs((right - left) - (bottom - top)) <= 1


def test_fit_and_pad_does_not_alias():
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    inner = np.asarray(fit_and_pad(Image.fromarray(stripes), (37, 37)))[5:-5, 5:-5]
    assert np.abs(inner.astype(int) - 127).max() <= 6, "stripes finer than a pixel are even grey"


def test_tensor_and_back_is_the_identity():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    tensor = to_tensor(Image.fromarray(pixels))
    assert tensor.shape == (3, 5, 7) and tensor.dtype == torch.float32
    assert tensor.min() >= -1 and tensor.max() <= 1
    assert np.array_equal(np.asarray(to_pil(tensor)), pixels)
    assert to_tensor(Image.new("RGB", (1, 1), (0, 0, 255))).flatten().tolist() == [-1, -1, 1]


def test_to_pil_clips():
    assert to_pil(torch.tensor([3.0, -3.0, 0.0]).view(3, 1, 1)).getpixel((0, 0)) == (255, 0, 128)


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (3, 1)), (6, (1, 0)), (8, (0, 3)), (2, (3, 0))])
def test_exif_orientation_is_applied(tmp_path, orientation, corner):
    picture = Image.new("RGB", (4, 2), RED)
    picture.putpixel((0, 0), GREEN)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.png", exif=exif)
    loaded = load_image(tmp_path / "a.png")
    assert loaded.size == ((4, 2) if orientation < 5 else (2, 4))
    assert loaded.getpixel(corner) == GREEN


def test_transparent_parts_become_black(tmp_path):
    picture = Image.new("RGBA", (2, 1), (255, 255, 255, 0))
    picture.putpixel((1, 0), (*RED, 255))
    picture.save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), RED]


@pytest.mark.parametrize("mode", ["L", "P", "LA", "1", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    grey16 = Image.fromarray(np.full((3, 4), 128 * 257, np.uint16))
    picture = grey16 if mode == "I;16" else Image.new("L", (4, 3), 128).convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I;16") else "a.png")
    picture.save(path)
    loaded = load_image(path)
    assert loaded.mode == "RGB" and loaded.size == (4, 3)
    if mode != "1":
        assert np.abs(np.asarray(loaded).astype(int) - 128).max() <= 4


def write_truncated(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("missing.png", lambda path: None, "no such file"),
        ("folder.png", lambda path: path.mkdir(), "folder"),
        ("text.png", lambda path: path.write_text("I am not a picture"), "not a picture"),
        ("empty.jpg", lambda path: path.write_bytes(b""), "not a picture"),
        ("cut.png", write_truncated, "cannot be read"),
        ("cut.jpg", write_truncated, "cannot be read"),
    ],
)
def test_bad_pictures_are_one_line(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        load_image(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)
