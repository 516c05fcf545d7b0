"""The order of clips: complete, reproducible, the same for any number of processes, and taken up where it was left."""

import errno
import itertools
import multiprocessing.synchronize
import os

import pytest
import torch
from in_process import refused

from concat_id.config.args import DataConfig
from concat_id.data.dataset import ClipDataset
from concat_id.data.records import read_records
from concat_id.data.sampler import ClipLoader, EpochSampler

from .conftest import HEIGHT, WIDTH

DATA = DataConfig((HEIGHT, WIDTH), fps=8, max_num_frames=5, skip_frms_num=0)


def take(sampler, count: int):
    return list(itertools.islice(sampler, count))


def merged(num_refs, batch_size: int, world_size: int, steps: int, samples: int = 0):
    """The batches of all ranks in the order in which they count."""
    samplers = [EpochSampler(num_refs, batch_size, rank, world_size) for rank in range(world_size)]
    for sampler in samplers:
        sampler.load_state_dict({"samples": samples})
    return [batch for step in zip(*(take(sampler, steps) for sampler in samplers), strict=True) for batch in step]


@pytest.mark.parametrize("num_refs, batch_size", [([1] * 7, 1), ([1] * 8, 2), ([1, 2, 1, 3, 1, 2, 1, 1, 2], 2), ([2, 1, 1], 4)])
def test_the_order_is_the_same_for_any_number_of_ranks(num_refs, batch_size):
    expected = merged(num_refs, batch_size, 1, 24)
    for world_size in (2, 3, 4, 8):
        assert merged(num_refs, batch_size, world_size, 24 // world_size) == expected
    resumed = merged(num_refs, batch_size, 2, 7, samples=10 * batch_size)
    assert resumed == expected[10:24], "after ten batches, though on another number of ranks"


@pytest.mark.parametrize("num_refs, batch_size", [([1] * 10, 1), ([1, 2] * 5, 2), ([1, 1, 1, 2, 2, 3], 2), ([1, 2], 3)])
def test_an_epoch_sees_every_clip_and_batches_are_alike(num_refs, batch_size):
    sampler = EpochSampler(num_refs, batch_size)
    seen = []
    for epoch in range(4):
        batches = take(sampler, sampler.batches_per_epoch * (epoch + 1))[-sampler.batches_per_epoch :]
        assert {key[0] for batch in batches for key in batch} == {epoch}
        assert all(len(batch) == batch_size and len({num_refs[index] for _, index in batch}) == 1 for batch in batches)
        indices = [index for batch in batches for _, index in batch]
        assert set(indices) == set(range(len(num_refs))) and len(indices) < len(num_refs) + batch_size * len(set(num_refs))
        seen.append(indices)
    assert len(num_refs) < 3 or len({tuple(indices) for indices in seen}) > 1, "epochs are shuffled differently"


def test_a_batch_is_filled_up_with_the_first_records_of_its_epoch():
    first, second = EpochSampler([1] * 4, 3).epoch_batches(0)
    assert second[1:] == first[:2]


def test_the_batch_of_a_rare_kind_has_another_turn_each_epoch():
    """Else the number of batches of an epoch and of the parts of the timesteps would always give it the same part."""
    sampler = EpochSampler([1] * 14 + [2], 2)
    turns = {[batch[0][1] for batch in sampler.epoch_batches(epoch)].index(14) for epoch in range(10)}
    assert sampler.batches_per_epoch == 8 and len(turns) > 4


def test_epochs_seen_stay_whatever_the_batch_size():
    whole, single = EpochSampler([1] * 5, 4), EpochSampler([1] * 5, 1)
    for _ in range(8):  # batches of 4 and of 1, filled up: four epochs
        whole.advance()
    single.load_state_dict(whole.state_dict())
    assert single.samples == 4 * 5 and next(iter(single))[0][0] == 4
    single.load_state_dict({"samples": 32})  # of an older checkpoint
    assert single.samples == 32


def test_order_depends_on_the_seed():
    assert take(EpochSampler([1] * 50, seed=1), 50) != take(EpochSampler([1] * 50, seed=2), 50)


@pytest.fixture
def dataset(folder):
    images = "a.png", "a.png@@b.png", "b.png", "a.png", "c.png@@a.png"
    entries = [folder.entry(clip=name, caption=name, image=image) for name, image in zip(folder.copies(5), images, strict=True)]
    made = ClipDataset(read_records([folder.list(*entries)]), DATA)
    yield made
    made.reader.close()


def test_batches_do_not_depend_on_the_workers_and_can_be_resumed(dataset):
    def batches(workers: int, samples: int, count: int):
        sampler = EpochSampler(dataset.kinds, 2)
        sampler.load_state_dict({"samples": samples})
        found = []
        for batch in ClipLoader(dataset, sampler, workers):
            found.append((batch, sampler.state_dict()["samples"]))
            if len(found) == count:
                return found

    state = torch.get_rng_state()
    alone, parallel, resumed = batches(0, 0, 5), batches(2, 0, 5), batches(2, 4, 3)
    assert torch.equal(torch.get_rng_state(), state), "the trainer's random numbers are left alone"
    assert [samples for _, samples in parallel] == [2, 4, 6, 8, 10], "what workers read in advance does not count"
    for (expected, _), (found, _) in [*zip(alone, parallel, strict=True), *zip(alone[2:], resumed, strict=True)]:
        assert found.indices == expected.indices and found.captions == expected.captions
        assert found.video.dtype == torch.float32 and found.video.is_contiguous()
        assert torch.equal(found.video, expected.video) and torch.equal(found.refs, expected.refs)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_hopeless_list_ends_in_one_line(workers, folder):
    dataset = ClipDataset(read_records([folder.list(folder.entry(clip="broken.mp4"))]), DATA)
    refused("1 clips in a row cannot be read", next, iter(ClipLoader(dataset, EpochSampler(dataset.kinds), workers)))
    dataset.reader.close()


def test_a_full_shared_memory_is_told(dataset, monkeypatch):
    """As Docker's 64 MB are; torch itself would hang."""

    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    told = r"/dev/shm: has no room for a batch of .* MiB \(unable.*--shm-size.*--num_workers 0"
    refused(told, next, iter(ClipLoader(dataset, EpochSampler(dataset.kinds), 1)))
    assert next(iter(ClipLoader(dataset, EpochSampler(dataset.kinds), 0))).captions


@pytest.mark.parametrize("number, place", [(errno.EACCES, "/dev/shm"), (errno.ENOSPC, "/dev/shm"), (errno.EMFILE, "ulimit -n")])
def test_processes_that_cannot_be_started_are_told(dataset, monkeypatch, capfd, number, place):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", refuse)
    loader = ClipLoader(dataset, EpochSampler(dataset.kinds), 1)
    refused(rf"^{place}: no processes .*\({os.strerror(number)}\).*--num_workers 0$", next, iter(loader))
    assert capfd.readouterr().err == ""
