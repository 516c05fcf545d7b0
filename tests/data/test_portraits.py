"""ConsistentID's lists and samples: equal to the released data set's, and what happens to files that are wrong."""

import json

import numpy as np
import pytest
import torch
from conftest import golden_arrays, seeded
from golden_portraits import META, RELEASED_PARTS, ellipses, image_of
from hypothesis import given
from in_process import refused
from odd_input import FEW, mutated, result_or_line
from PIL import Image

from concat_id.data.dataset import joined
from concat_id.data.portraits import PortraitDataset, load_identity, read_portraits
from concat_id.data.sampler import ClipLoader, EpochSampler
from concat_id.files.json_files import write_json
from concat_id.video.face_parts import CLASSES, RELEASED_CLASSES


@pytest.fixture
def written(tmp_path):
    """The golden files' portraits in folders of their own kind, and a list beside them."""
    for number in range(3):
        image_of(f"data/picture{number}", (512, 512)).save(tmp_path / f"p{number}_resize.png")
        labels = ellipses(512, META["pipe"]["labels"][: META["dataset"][number]["labels_used"]])
        Image.fromarray(labels).save(tmp_path / f"p{number}_mask.png")
        torch.save(seeded(f"consistentid/data/id{number}", (1, 512)), tmp_path / f"p{number}_faceid.bin")
    return write_list(tmp_path, [entry["item"] for entry in META["dataset"]])


@pytest.fixture(scope="module")
def folder_of_one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    for key in ("resize_IMG", "parsing_mask_IMG", "id_embed_file_origin"):
        (folder / META["dataset"][0]["item"][key]).touch()
    return folder


def write_list(folder, entries):
    file = folder / "JSON_all.json"
    file.write_text(json.dumps(entries, indent=1))
    return file


def test_samples_of_the_released_data_set(written, capsys):
    golden, dataset = golden_arrays("consistentid_shared"), PortraitDataset(read_portraits([written]))
    assert capsys.readouterr().err == "warning: 1 of 4 portraits have no id_embed_file_origin; their identity counts as zeros\n"
    batch = joined([dataset[0, index] for index in range(4)])
    assert batch.images.dtype == torch.uint8 and batch.as_floats() is batch and batch.images.dtype == torch.float32
    for number, entry in enumerate(META["dataset"]):
        kept = [batch.parts[number].index(RELEASED_PARTS[name]) for name in entry["parts"]]  # those that the words name
        expected = {name: golden[f"data{number}/{name}"] for name in ("image_corner", "clip_mean", "parts_mean", "masks_sum", "id_norm")}
        torch.testing.assert_close(batch.images[number, :, 250:256, 250:256], expected["image_corner"], rtol=0, atol=1e-6)
        if not entry["dropped"]:
            torch.testing.assert_close(batch.clip_pixels[number].mean((1, 2)), expected["clip_mean"][0], rtol=0, atol=1e-6)
        torch.testing.assert_close(batch.part_pixels[number, kept].mean((2, 3)), expected["parts_mean"][: len(kept)], rtol=0, atol=1e-6)
        assert batch.part_masks[number, kept].sum((1, 2)).tolist() == expected["masks_sum"].tolist()[: len(kept)]
        torch.testing.assert_close(batch.identities[number].norm(), expected["id_norm"])
        assert (batch.captions[number], batch.face_captions[number]) == (
            entry["item"]["vqa_llva"], entry["item"]["vqa_llva_more_face_detail"])  # fmt: skip
    assert batch.identities.shape == (4, 1, 512) and set(batch.part_masks.unique().tolist()) == {0.0, 1.0}


def test_the_loader_serves_portraits_and_bad_ones_are_replaced(written, tmp_path):
    (tmp_path / "p1_mask.png").write_bytes(b"nothing")
    dataset = PortraitDataset(read_portraits([written]), size=64, bad_portraits=tmp_path / "bad.jsonl")
    loader = iter(ClipLoader(dataset, EpochSampler(dataset.kinds, 4), num_workers=1))
    batch = next(loader)
    assert batch.images.shape == (4, 3, 64, 64) and batch.part_masks.shape == (4, 5, 64, 64) and batch.images.min() >= -1
    assert 0 <= batch.without_background.min() < batch.without_background.max() <= 1 and batch.part_masks.max() == 1
    assert batch.replaced.count(True) == 1 and "p1_mask.png" in (tmp_path / "bad.jsonl").read_text()
    assert all((pixels[len(parts) :] == 0).all() for pixels, parts in zip(batch.part_pixels, batch.parts, strict=True))


def test_photos_of_any_shape_keep_parts_where_they_are(tmp_path):
    """A mask of another size is stretched over the photo; the square is its middle."""
    Image.new("RGB", (200, 100), "red").save(tmp_path / "a.png")
    labels = np.zeros((50, 50), np.uint8)
    labels[:, 25:] = RELEASED_CLASSES.index("nose")
    Image.fromarray(labels).save(tmp_path / "m.png")
    entry = {"IMG": "a.png", "parsing_mask_IMG": "m.png", "vqa_llva": "c", "vqa_llva_facial": "f"}
    sample = PortraitDataset(read_portraits([write_list(tmp_path, [entry])]), size=64)[0, 0]
    assert sample.parts == [("nose",)] and sample.face_captions == ["f"] and sample.images.shape == (1, 3, 64, 64)
    nose, others = sample.part_masks[0].split((1, 4))
    assert not nose[0, :, :30].any() and (nose[0, :, 34:] == 255).all() and not others.any()
    assert torch.equal(nose, sample.without_background[0]) and not sample.identities.any()


def test_lists_that_leave_out_their_folders_are_read(written, tmp_path):
    """As the released scripts write them, which are told a folder for each key."""
    entry, folders = json.loads(written.read_text())[0], ("FGID_resize", "parsing_mask_IMG", "FGID_faceID")
    for key, folder in zip(("resize_IMG", "parsing_mask_IMG", "id_embed_file_origin"), folders, strict=True):
        (inner := tmp_path / folder / "15").mkdir(parents=True)
        (tmp_path / entry[key]).rename(inner / entry[key])
        entry[key] = f"15/{entry[key]}"
    (record,) = read_portraits([write_list(tmp_path, [entry])])
    assert tuple(path.parent for path in (record.photo, record.mask, record.identity)) == tuple(tmp_path / name / "15" for name in folders)


def test_files_that_are_not_there_are_named(written, tmp_path):
    (tmp_path / "p0_mask.png").unlink()
    refused("JSON_all.json:2: entry 1: parsing_mask_IMG: found no such file 'p0_mask.png', expected an image with the class of each pixel "
            "beside the list", read_portraits, [write_list(tmp_path, [META["dataset"][0]["item"]])])  # fmt: skip


@pytest.mark.parametrize("change, told", [
    ({"resize_IMG": 3}, "entry 1: resize_IMG: found 3, expected text"),
    ({"vqa_llva": None}, "entry 1: vqa_llva: found null, expected text"),
    ({"id_embed_file_origin": "gone.bin"}, "entry 1: id_embed_file_origin: found no such file 'gone.bin'"),
    ({"resize_IMG": "a\0b"}, "zero byte"),
])  # fmt: skip
def test_wrong_entries(written, tmp_path, change, told):
    entries = json.loads(written.read_text())
    refused(told, read_portraits, [write_list(tmp_path, [entries[0] | change])])
    refused("vqa_llva_more_face_detail: missing", read_portraits, [write_list(tmp_path, [{
        key: value for key, value in entries[0].items() if key != "vqa_llva_more_face_detail"}])])  # fmt: skip
    refused("entry 1: found 3, expected an object; .*and 1 more", read_portraits, [write_list(tmp_path, [3] * 4)])


@FEW
@given(content=mutated([META["dataset"][0]["item"]]))
def test_any_value_anywhere_in_a_list_is_read_or_told(folder_of_one, content):
    write_json(folder_of_one / "odd.json", content)
    result_or_line(".*odd.json:", read_portraits, [folder_of_one / "odd.json"])


def test_masks_and_vectors_of_another_kind(written, tmp_path):
    dataset = PortraitDataset(read_portraits([write_list(tmp_path, json.loads(written.read_text())[:1])]))
    Image.new("RGB", (9, 9)).save(tmp_path / "p0_mask.png")
    refused("1 portraits in a row cannot be read, .*found an image of mode RGB, expected grey", lambda: dataset[0, 0])
    Image.new("L", (9, 9), len(CLASSES)).save(tmp_path / "p0_mask.png")
    refused("found the number 19, expected classes from 0 to 18", lambda: dataset[0, 0])
    odd = {r"a tensor \(1, 128\)": torch.zeros(1, 128), "a dict": {"a": torch.zeros(2)}, "a tensor": torch.full((512,), torch.nan)}
    for found, value in odd.items():
        torch.save(value, tmp_path / "v.bin")
        refused(f"v.bin: found {found}", load_identity, tmp_path / "v.bin")
