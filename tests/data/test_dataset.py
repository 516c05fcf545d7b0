"""Samples: what is in them, what their randomness depends on, and what happens to clips that cannot be read."""

import json
import pickle

import numpy as np
import pytest
import torch
from in_process import refused
from PIL import Image

from concat_id.config.args import DataConfig
from concat_id.data.dataset import ClipDataset, apply_mask, joined
from concat_id.data.records import read_records
from concat_id.video.transforms import to_frames
from concat_id.weights.tensor_cache import TensorCache

from .conftest import HEIGHT, WIDTH, burned_times

DATA = DataConfig((HEIGHT, WIDTH), fps=8, max_num_frames=9, skip_frms_num=3)
RED, LIME, BLUE = ([1.0, -1, -1], [-1, 1.0, -1], [-1, -1, 1.0])


@pytest.fixture
def make(folder):
    made = []

    def dataset(*entries, **settings) -> ClipDataset:
        made.append(ClipDataset(read_records([folder.list(*entries)]), settings.pop("data", DATA), **settings))
        return made[-1]

    yield dataset
    for dataset in made:
        dataset.reader.close()


def colour(ref: torch.Tensor) -> list[float]:
    """The colour in the middle of a reference."""
    return ref[:, HEIGHT // 2, WIDTH // 2].tolist()


def times(sample) -> np.ndarray:
    return burned_times(sample.video[0].permute(1, 2, 3, 0))


def test_a_sample_has_clip_caption_and_people_in_order(make, folder):
    sample = make(folder.entry(image="b.png@@a.png@@c.png"))[0, 0]
    assert sample.video.shape == (1, 3, 9, HEIGHT, WIDTH) and sample.video.dtype == torch.uint8 and sample.video.float().std() > 40
    assert sample.refs.shape == (1, 3, 3, HEIGHT, WIDTH) and [colour(ref) for ref in sample.refs[0]] == [LIME, RED, BLUE]
    assert (sample.captions, sample.indices, sample.replaced, sample.held) == (["A person talks."], [0], [False], [0])
    assert np.abs(np.diff(times(sample)) - 0.125).max() < 3e-3


def test_the_first_frame_stands_for_a_missing_image(make, folder):
    sample = make(folder.entry(image=""))[1, 0]
    assert sample.refs.shape == (1, 1, 3, HEIGHT, WIDTH)
    assert burned_times(to_frames(sample.refs[0, 0][:, None])) == pytest.approx([3 / 24], abs=2e-3), "after the frames that are skipped"


def test_images_are_fitted_and_never_mirrored(make, folder):
    image = Image.new("RGB", (64, 64), "red")
    image.paste("blue", (32, 0, 64, 64))
    image.save(folder.path / "halves.png")
    dataset = make(folder.entry(image="halves.png"))
    for epoch in range(8):
        ref = dataset[epoch, 0].refs[0, 0]
        assert ref[:, 48, 30].tolist() == RED and ref[:, 48, 98].tolist() == BLUE
        assert (ref[:, :, :16] == -1).all() and (ref[:, :, -16:] == -1).all(), "black beside a square image"


def test_everything_random_depends_on_seed_epoch_and_index_alone(make, folder):
    for number in range(6):
        folder.image(f"many/{number}.png", (40 * number, 0, 0))
    entries = [folder.entry(image="many")] * 3
    dataset, again, other = make(*entries), make(*entries), make(*entries, seed=43)
    keys = [(epoch, index) for epoch in range(3) for index in range(3)]
    starts = {key: (times(dataset[key])[0], colour(dataset[key].refs[0, 0])[0]) for key in keys}
    assert len({start for start, _ in starts.values()}) > 5 and len({red for _, red in starts.values()}) > 2
    torch.manual_seed(7), np.random.seed(7)
    for key in reversed(keys):
        sample, same = dataset[key], again[key]
        assert torch.equal(sample.video, same.video) and torch.equal(sample.refs, same.refs)
    assert any(not torch.equal(other[key].refs, dataset[key].refs) for key in keys)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[keys[3]].video, dataset[keys[3]].video)
    copy.reader.close()


def test_validation_takes_the_middle_and_the_first_image(make, folder):
    folder.image("many/1.png", "red"), folder.image("many/2.png", "blue")
    sample = make(folder.entry(image="many"), training=False)[1, 0]
    assert colour(sample.refs[0, 0]) == RED
    assert times(sample)[0] == pytest.approx((4.0 - 1 / 24 - 1.0) / 2, abs=0.025), "the window lies in the centre of 4 seconds"


def test_masks_blacken_nine_times_in_ten(make, folder):
    folder.image("mask.png", "black")
    dataset = make(folder.entry(mask_path="mask.png"))
    masked = [colour(dataset._references(dataset.records[0], np.random.default_rng(seed))[0]) == [-1, -1, -1] for seed in range(80)]
    assert 0.8 < np.mean(masked) < 0.98
    assert colour(make(folder.entry(mask_path="mask.png"), training=False)[0, 0].refs[0, 0]) == [-1, -1, -1]


def test_clothes_alone_are_mirrored_in_half_of_the_epochs(make, folder):
    halves = Image.new("RGB", (64, 48), "red")
    halves.paste("lime", (32, 0, 64, 48))
    halves.save(folder.path / "halves.png")
    entry = folder.entry(image="@@".join(["halves.png"] * 3), kind="face@@clothes@@background")
    dataset, still = make(entry), make(entry, training=False)
    seen = [[ref[0, HEIGHT // 2, WIDTH // 4] > 0 for ref in dataset[epoch, 0].refs[0]] for epoch in range(40)]
    faces, clothes, backgrounds = zip(*seen, strict=True)
    assert all(faces) and all(backgrounds) and 10 < sum(clothes) < 30
    assert all(ref[0, HEIGHT // 2, WIDTH // 4] > 0 for epoch in range(8) for ref in still[epoch, 0].refs[0])


@pytest.mark.parametrize("white", [1, 15, 128, 255])
def test_masks_keep_what_is_not_black(white):
    mask = np.zeros((10, 20), np.uint8)
    mask[:, 10:] = white
    masked = np.asarray(apply_mask(Image.new("RGB", (40, 20), (200, 100, 50)), Image.fromarray(mask)))
    assert masked[10, 30].tolist() == [200, 100, 50] and masked[10, 5].tolist() == [0, 0, 0]


def test_unreadable_clips_are_replaced_by_the_same_others_and_listed(make, folder):
    good = [folder.entry(clip=name, caption=name) for name in folder.copies(4)]
    two = folder.entry(clip="good.mp4", image="a.png@@b.png")
    listed = folder.path / "run" / "bad_clips.jsonl"
    entries = [folder.entry(clip="broken.mp4"), *good, two]
    dataset = make(*entries, bad_clips=listed)
    first = [dataset[epoch, 0] for epoch in range(6)]
    assert all(sample.replaced == [True] and sample.refs.shape[1] == 1 for sample in first)
    assert len({sample.indices[0] for sample in first}) > 1 and {sample.indices[0] for sample in first} <= {1, 2, 3, 4}
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [line["file"] for line in lines] == [str(folder.path / "broken.mp4")] and lines[0]["source"].endswith("list.json:2")
    later = make(*entries, bad_clips=listed)
    lonely = make(folder.entry(clip="broken.mp4", image="a.png@@b.png"), *good)
    refused("1 clips in a row cannot be read", lonely.__getitem__, (0, 0))
    lonely.any_kind = True
    assert lonely[0, 0].indices[0] > 0
    assert [later[epoch, 0].indices for epoch in range(6)] == [sample.indices for sample in first]
    assert torch.equal(later[3, 0].video, first[3].video)


def test_files_that_vanish_during_the_run_are_replaced(make, folder):
    folder.image("gone.png")
    dataset = make(*(folder.entry(clip=name) for name in folder.copies(2)), folder.entry(image="gone.png"))
    (folder.path / "clip0.mp4").unlink(), (folder.path / "gone.png").unlink()
    assert [(dataset[0, index].indices, dataset[0, index].replaced) for index in range(3)] == [([1], [True]), ([1], [False]), ([1], [True])]


def test_when_nothing_can_be_read_the_run_ends(make, folder):
    names = [f"broken{number}.mp4" for number in range(30)]
    for name in names:
        (folder.path / name).write_bytes(b"noise")
    dataset = make(*(folder.entry(clip=name) for name in names))
    refused(r"21 clips in a row cannot be read, the first is .*list.json:7.*check_dataset.py", dataset.__getitem__, (0, 1))


def test_collate_stacks(make, folder):
    dataset = make(folder.entry(image="a.png@@b.png"), folder.entry(image="b.png@@c.png", caption="Two."))
    batch = joined([dataset[0, 1], dataset[0, 0]])
    assert batch.video.shape == (2, 3, 9, HEIGHT, WIDTH) and batch.refs.shape == (2, 2, 3, HEIGHT, WIDTH)
    assert (batch.captions, batch.indices, batch.held) == (["Two.", "A person talks."], [1, 0], [0, 0])
    assert batch.video.dtype == torch.uint8
    batch.video[0, 0, 0, 0, :2] = torch.tensor([0, 255])
    assert batch.as_floats().video[0, 0, 0, 0, :2].tolist() == [-1, 1]


def test_cached_windows_are_not_decoded_again(make, folder):
    cache, seen = TensorCache(folder.path / "cache", ["weights", 0.7, "float32"]), set()
    dataset = make(folder.entry(), folder.entry(caption="Other words."), latents=cache)
    for epoch in range(20):
        for index in (0, 1):
            sample = dataset[epoch, index]
            assert (sample.video is None) == (json.dumps(sample.windows) in seen)
            if sample.moments == [None]:
                cache.write(sample.windows[0], sample.video[0, :, 0].float(), torch.ones(3))
            seen.add(json.dumps(sample.windows))
    assert len(seen) == dataset.windows, "two entries of one clip share its places"
    batch = joined([dataset[0, 0], make(folder.entry())[0, 0]])
    assert batch.video.shape[0] == 1 and batch.moments[0][1].shape == (3,) and batch.moments[1] is None


def test_a_image_is_a_video_of_one_frame(make, folder):
    folder.image("wide.png", "blue", (300, 90))
    dataset = make(folder.entry(), folder.entry(clip="wide.png", image="b.png"), folder.entry(clip="c.png", image="a.png@@b.png"))
    assert dataset.kinds == [1, -1, -2]
    sample = dataset[0, 1]
    assert sample.video.shape == (1, 3, 1, HEIGHT, WIDTH)
    assert colour(sample.video[0, :, 0]) == [0, 0, 255] and colour(sample.refs[0, 0]) == LIME
    assert (sample.video[0, 2] == 255).all(), "cut to the middle, not padded"


def test_a_image_is_replaced_by_a_image_and_cached_by_its_file(make, folder, tmp_path):
    (folder.path / "broken.png").write_bytes(b"no image")
    cache = TensorCache(tmp_path / "cache", "test")
    entries = [folder.entry(), folder.entry(clip="broken.png"), folder.entry(clip="b.png")]
    sample = make(*entries, latents=cache)[0, 1]
    assert (sample.replaced, sample.indices, sample.video.shape[2]) == ([True], [2], 1)
    cache.write(sample.windows[0], torch.zeros(1, 2, 3, 4), torch.ones(1, 2, 3, 4))
    assert make(*entries, latents=cache)[5, 2].video is None, "an image has one window"
