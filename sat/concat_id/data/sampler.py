"""The order in which clips are seen: the same whatever the number of processes, and taken up again where it was left."""

import errno
import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from concat_id.data.dataset import Batch, ReplacingDataset, joined
from concat_id.errors import UserError, reason_of, warn

MAX_RESTARTS = 3  # of the loader's processes, without a batch in between
ALONE = "or read clips without further processes: --num_workers 0"

Key = tuple[int, int]


class EpochSampler(Sampler[list[Key]]):
    """Batches of (epoch, record index) for one rank, without end.

    Each epoch is a shuffled order of all records, cut into batches of records of one kind (`ClipDataset.kinds`); batches that remain
    too small are filled up with the first records of their kind. Ranks take turns with the batches, so their number does not change
    the order. The position counts `batch_size` samples for every batch that was used on any rank, not those
    that a loader has asked for in advance.
    """

    def __init__(self, kinds: Sequence[int], batch_size: int = 1, rank: int = 0, world_size: int = 1, seed: int = 42):
        self.kinds = np.asarray(kinds)
        self.batch_size, self.rank, self.world_size, self.seed = batch_size, rank, world_size, seed
        self.samples = 0
        self.batches_per_epoch = sum(-(-int(count) // batch_size) for count in np.unique(self.kinds, return_counts=True)[1])

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield this rank's batches from the position on."""
        batch = self.samples // self.batch_size + self.rank
        epoch, batches = -1, []
        while True:
            wanted, place = divmod(batch, self.batches_per_epoch)
            if wanted != epoch:
                epoch, batches = wanted, self.epoch_batches(wanted)
            yield batches[place]
            batch += self.world_size

    def epoch_batches(self, epoch: int) -> list[list[Key]]:
        """The batches of an epoch, of all ranks."""
        order, size = np.random.default_rng([self.seed, epoch]).permutation(len(self.kinds)), self.batch_size
        keys = [(epoch, index) for index in order.tolist()]
        batches: list[tuple[int, list[Key]]] = []  # each with its turn, the place of its last record
        for kind in np.unique(self.kinds):
            places = np.flatnonzero(self.kinds[order] == kind).tolist()
            for own in (places[start : start + size] for start in range(0, len(places), size)):
                batches.append((own[-1], [keys[place] for place in (*own, *islice(cycle(places), size - len(own)))]))
        return [batch for _, batch in sorted(batches)]

    def advance(self) -> None:
        """Count one batch on every rank as used."""
        self.samples += self.batch_size * self.world_size

    def state_dict(self) -> dict[str, int]:
        """How many samples all ranks together have used, and what makes epochs of them."""
        return {"samples": self.samples, "batch_size": self.batch_size, "batches_per_epoch": self.batches_per_epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after so many samples, whatever the number of ranks was; after as many epochs if they are cut otherwise here."""
        self.samples = int(state["samples"])
        size, batches = state.get("batch_size"), state.get("batches_per_epoch")  # which older checkpoints do not have
        if size and batches and (size, batches) != (self.batch_size, self.batches_per_epoch):
            self.samples = self.samples // size * self.batches_per_epoch // batches * self.batch_size


class _Guarded(Dataset):
    """Samples, or the `UserError` in their place: torch would turn it into pages of text."""

    def __init__(self, dataset: ReplacingDataset):
        self.dataset = dataset

    def __getitem__(self, key: Key) -> Batch | UserError:
        try:
            return self.dataset[key]
        except UserError as error:
            return error

    def collate(self, samples: list[Batch | UserError]) -> Batch | UserError:
        """Put samples together, in shared memory if this is not the trainer's process; or return the first error."""
        failed = next((sample for sample in samples if isinstance(sample, UserError)), None)
        if failed is not None:
            return failed
        batch = joined(samples)
        return batch if get_worker_info() is None else _shared(batch)


def _shared(batch: Batch) -> Batch | UserError:
    """Put a batch where the trainer sees it. torch would do so in a thread whose failure nobody notices, and the trainer would wait."""
    tensors = list(_tensors_in(list(vars(batch).values())))
    try:
        for tensor in tensors:
            tensor.share_memory_()
    except RuntimeError as error:
        size = sum(tensor.nbytes for tensor in tensors) / 2**20
        remedy = f"give it more (docker run --shm-size=16g), {ALONE}"
        return UserError(f"/dev/shm: has no room for a batch of {size:.1f} MiB ({reason_of(error)}); {remedy}")
    return batch


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for inner in value if isinstance(value, list | tuple) else ():
        yield from _tensors_in(inner)


def _require_queues(count: int) -> None:
    """Raise `UserError` where the queues of `count` processes, and some more, cannot be made: torch, left half made, ends in tracebacks."""
    try:
        [multiprocessing.Queue() for _ in range(2 * count + 16)]  # of two open files and three semaphores each
    except OSError as error:
        place = "ulimit -n" if error.errno in (errno.EMFILE, errno.ENFILE) else "/dev/shm"
        raise UserError(f"{place}: no processes that read clips can be started ({reason_of(error)}); allow more there, {ALONE}") from error


def _ignore_interrupts(_: int) -> None:
    """Leave Ctrl-C to the trainer, which may want another batch before it saves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class ClipLoader:
    """Collated batches of a sampler's keys without end, made by `num_workers` processes (0: by this one).

    A batch counts as used when it is handed out, so the sampler's state belongs to the last one. When a worker process is killed, all
    are started anew and nothing is left out. torch's global random state is not touched.
    """

    def __init__(self, dataset: ReplacingDataset, sampler: EpochSampler, num_workers: int = 0, prefetch_factor: int | None = None):
        """`prefetch_factor` batches are made in advance by every process (None: 2)."""
        self.dataset, self.sampler, self.num_workers = dataset, sampler, num_workers
        self.prefetch_factor = prefetch_factor if num_workers else None

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches from the sampler's position on."""
        restarts = 0
        while True:
            try:
                for batch in self._batches():
                    if isinstance(batch, UserError):
                        raise batch
                    restarts = 0
                    self.sampler.advance()
                    yield batch.as_floats()
            except (RuntimeError, OSError, EOFError) as error:  # the last two when it died while handing over a batch
                restarts += 1
                died = "DataLoader worker" in str(error) or not isinstance(error, RuntimeError)
                if not died or self.num_workers == 0 or restarts > MAX_RESTARTS:
                    raise
                warn(f"a process that reads clips died ({(str(error) or type(error).__name__).splitlines()[0]}); starting it again")

    def _batches(self) -> Iterator[Batch | UserError]:
        if self.num_workers:
            _require_queues(self.num_workers)
        before = signal.getsignal(signal.SIGCHLD)
        guarded = _Guarded(self.dataset)
        batches = iter(
            DataLoader(
                guarded,
                batch_sampler=self.sampler,
                collate_fn=guarded.collate,
                num_workers=self.num_workers,
                prefetch_factor=self.prefetch_factor,
                worker_init_fn=_ignore_interrupts,
                generator=torch.Generator(),  # its own, for the seeds of workers, which nothing here uses
            )
        )
        if threading.current_thread() is threading.main_thread():
            # torch would raise in the middle of whatever the trainer does when a worker dies; asking for a batch tells it as well.
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        return batches
