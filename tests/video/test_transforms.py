"""Images: reading what users have, fitting without distortion, tensors and back."""

import io
import os
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import refused
from odd_input import result_or_line
from PIL import Image, ImageCms

from concat_id.files.formats import PHOTO_FORMATS
from concat_id.video import transforms
from concat_id.video.transforms import fit_and_pad, load_image, to_pil, to_tensor

RED, GREEN = (255, 0, 0), (0, 255, 0)


def bounds(image: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is not black."""
    rows, columns = np.nonzero(np.asarray(image).max(axis=-1) > 8)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("source", [(50, 400), (31, 17), (1, 1), (3000, 10)])
@pytest.mark.parametrize("size", [(480, 720), (64, 64)])
def test_fit_and_pad_keeps_proportions_and_centres(source, size):
    fitted = fit_and_pad(Image.new("RGB", source, (200, 200, 200)), size)
    assert fitted.size == (size[1], size[0])
    left, top, right, bottom = bounds(fitted)
    scale = min(size[1] / source[0], size[0] / source[1])
    assert abs((right - left) - max(1, source[0] * scale)) <= 0.5
    assert abs((bottom - top) - max(1, source[1] * scale)) <= 0.5
    assert right - left == size[1] or bottom - top == size[0], "one side is filled"
    assert abs(left - (size[1] - right)) <= 1 and abs(top - (size[0] - bottom)) <= 1
    pixels = np.array(fitted)
    pixels[top:bottom, left:right] = 0
    assert pixels.max() == 0, "the padding is black"


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
    assert to_pil(torch.tensor([3.0, -3.0, 0.0]).view(3, 1, 1)).getpixel((0, 0)) == (255, 0, 128)


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (3, 1)), (6, (1, 0))])
def test_exif_orientation_is_applied(tmp_path, orientation, corner):
    image = Image.new("RGB", (4, 2), RED)
    image.putpixel((0, 0), GREEN)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    loaded = load_image(tmp_path / "a.png")
    assert loaded.size == ((4, 2) if orientation < 5 else (2, 4))
    assert loaded.getpixel(corner) == GREEN


def test_transparent_parts_become_black(tmp_path):
    image = Image.new("RGBA", (2, 1), (255, 255, 255, 0))
    image.putpixel((1, 0), (*RED, 255))
    image.save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), RED]


HEIC = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"heic", 0, b"mif1", b"heic") + bytes(300)


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + bytes(4) + b"IDAT"


def write_truncated(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])


BAD = {
    "missing.png": (lambda path: None, "no such file"),
    "folder.png": (lambda path: path.mkdir(), "folder"),
    "text.png": (lambda path: path.write_text("I am not an image"), "not an image"),
    "cut.png": (write_truncated, "cannot be read"),
    "pipe.png": (os.mkfifo, "a named pipe"),
    "huge.png": (lambda path: path.write_bytes(png_header(20_000, 20_000)), "20000x20000 pixels, expected at most 250,000,000"),
    "phone.jpg": (lambda path: path.write_bytes(HEIC), f"{sys.executable} -m pip install pillow-heif"),
}


def test_bad_images_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for name, (write, message) in BAD.items():
        write(tmp_path / name)
        refused(f"{name}.*{message}", load_image, tmp_path / name)


def test_web_addresses_are_told():
    for address in ("https://example.org/me.jpg", "s3://bucket/me.png", "data:image/png;base64," + "A" * 300):
        refused("found a web address, expected an image; download it first", load_image, address)


def test_only_photographs_are_opened(tmp_path):
    """Whatever else Pillow reads, under the name of a photograph: EPS would start Ghostscript."""
    Image.init()
    tried = 0
    for name in sorted(Image.SAVE.keys() - {*PHOTO_FORMATS, "SPIDER"}):  # whose writer makes the suffix its own
        try:
            Image.new("RGB", (64, 64), RED).save(tmp_path / "photo.png", format=name)
        except Exception:  # formats of other modes, or without an encoder
            continue
        tried += 1
        refused("not an image that can be read", load_image, tmp_path / "photo.png")
    assert tried >= 8


def test_large_images_are_read_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(transforms, "AMPLE", 30_000)
    monkeypatch.setattr(transforms, "STRIP", 40)
    pixels = np.kron(np.arange(0, 240, 5, dtype=np.uint8).reshape(6, 8), np.ones((50, 50), np.uint8))
    plain = Image.fromarray(pixels)
    images = {
        "a.png": plain, "a.jpg": plain, "palette.png": plain.convert("P"), "clear.png": plain.convert("RGBA"),
        "grey16.png": Image.fromarray(pixels.astype(np.uint16) * 257), "bits.png": plain.convert("1", dither=Image.Dither.NONE),
        "cmyk.tif": plain.convert("CMYK"), "LA.png": plain.convert("LA"),
    }  # fmt: skip
    for name, image in images.items():
        image.save(tmp_path / name)
        loaded = load_image(tmp_path / name)
        assert loaded.size == (200, 150) and loaded.mode == "RGB"
        if name != "bits.png":
            assert np.abs(np.asarray(loaded).astype(int)[..., 0] - pixels[::2, ::2]).max() <= 1
    assert Image.MAX_IMAGE_PIXELS == 89_478_485, "Pillow's own limit is as it was"


def other_profile() -> bytes:
    """An ICC profile whose red is sRGB's green, and the other way round."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"-XYZ"), (b"gXYZ", b"rXYZ"), (b"-XYZ", b"gXYZ"), ("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))):
        profile = profile.replace(old, new)
    return profile


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_embedded_profiles_become_srgb(tmp_path, mode):
    stored = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image = Image.fromarray(stored).convert(mode)
    image.save(tmp_path / "a.png", icc_profile=other_profile())
    assert np.abs(np.asarray(load_image(tmp_path / "a.png")).astype(int) - stored[..., [1, 0, 2]]).max() <= 1
    image.save(tmp_path / "broken.png", icc_profile=other_profile()[:200])
    assert np.array_equal(np.asarray(load_image(tmp_path / "broken.png")), stored), "a broken profile says nothing"


@pytest.mark.parametrize("values, dtype, expected", [
    ([0, 512, 1023], np.uint16, [0, 128, 255]),
    ([0, 32768, 65535], np.uint16, [0, 128, 255]),
    ([0, 2**30, 2**31 - 1], np.int32, [0, 128, 255]),
    ([0.0, 0.5, 1.0], np.float32, [0, 128, 255]),
    ([0.0, 99.6, 254.0], np.float32, [0, 100, 254]),
    ([0.0, 0.5, np.nan], np.float32, None),
    ([0, 1, 2], np.uint16, None),
])  # fmt: skip
def test_numbers_of_other_ranges_are_scaled_or_refused(tmp_path, values, dtype, expected):
    Image.fromarray(np.tile(np.array(values, dtype), (4, 1))).save(tmp_path / "a.tif")
    if expected is None:
        refused("a.tif: found values from .* expected 0 to one of .*; save it with 8 bits", load_image, tmp_path / "a.tif")
    else:
        assert np.asarray(load_image(tmp_path / "a.tif"))[0, :, 0].tolist() == pytest.approx(expected, abs=1)


def test_ten_of_sixteen_bits_of_colour_are_refused(tmp_path):
    import cv2

    full = np.random.default_rng(0).integers(0, 65536, (8, 8, 3), dtype=np.uint16)
    for name in ("a.tif", "a.png"):
        cv2.imwrite(str(tmp_path / name), full)
        assert np.abs(np.asarray(load_image(tmp_path / name))[..., ::-1] - full / 257.0).max() <= 1
        cv2.imwrite(str(tmp_path / name), full >> 6)
        refused("10 or 12 bits in 16", load_image, tmp_path / name)


@pytest.mark.parametrize("tag, value, told", [(254, 1, "a thumbnail"), (262, 0, "white as zero"), (284, 2, "separate planes")])
def test_tiffs_that_would_be_misread_are_refused(tmp_path, tag, value, told):
    image = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    image.save(tmp_path / "a.tif", tiffinfo={tag: value})
    refused(f"a.tif: found .*{told}", load_image, tmp_path / "a.tif")


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    """A small image in every format."""
    Image.init()
    made, image, exif = {}, Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)), Image.Exif()
    exif[0x0112] = 6
    for name in set(PHOTO_FORMATS) & Image.SAVE.keys():
        stream = io.BytesIO()
        image.save(stream, format=name, **({} if name == "MPO" else {"exif": exif, "icc_profile": other_profile()}))
        made[name] = stream.getvalue()
    return made


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_images_are_read_or_told(images, tmp_path_factory, data):
    content = bytearray(images[data.draw(st.sampled_from(sorted(images)))])
    for place in data.draw(st.lists(st.integers(0, min(len(content), 400) - 1), max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    image = result_or_line(str(path), load_image, path)
    assert image is None or image.mode == "RGB"
