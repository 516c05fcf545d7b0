"""Which of many vectors are close to one another: exactly among so many, above that among candidates that FAISS finds.

Nothing here takes more memory than a number for each vector, FAISS's codes (half a byte for each of up to 128 parts of a vector, Johnson,
Douze and Jegou, arXiv:1702.08734), and a block. The same vectors give the same result.
"""

from types import ModuleType

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from concat_id.errors import UserError, tell

EXACT = 100_000  # vectors that are all compared
BLOCK = 2048  # rows of cosines at a time
CELL, TRAINED_ON, ROUNDS = 250, 32, 5  # vectors of a cell of the index; of them those that k-means sees, and how often
PROBES, CAREFUL = 64, 1024  # cells searched for each vector, and for one that nothing was found for
NEIGHBOURS, MOST_NEIGHBOURS = 32, 2048  # asked for at first, and at most
MARGIN = 0.2  # by which a cosine of FAISS's codes may be wrong
PAIRS = 8192  # cosines at a time
SAMPLE = 1000  # vectors that are compared with all to tell the recall
COMMAND = "bash scripts/setup.sh curation"


class Components:
    """Groups of vectors that links join, numbered by their first one; links are forgotten as soon as they are many."""

    def __init__(self, count: int):
        self._labels = np.arange(count)
        self._links: list[np.ndarray] = []
        self._waiting = 0

    def link(self, pairs: np.ndarray) -> None:
        """Join vectors by pairs of numbers (E, 2)."""
        ends = self._labels[pairs]
        self._links.append(ends[ends[:, 0] != ends[:, 1]])
        self._waiting += len(self._links[-1])
        if self._waiting > len(self._labels):
            self._merge()

    @property
    def labels(self) -> np.ndarray:
        """The group (N,) of each vector."""
        self._merge()
        return self._labels

    def _merge(self) -> None:
        if self._waiting:
            ends, count = np.concatenate(self._links), self._labels.max() + 1
            graph = coo_matrix((np.ones(len(ends), bool), ends.T), shape=(count, count))
            self._labels = connected_components(graph, directed=False)[1][self._labels]
        self._links, self._waiting = [], 0


def join_close(parts: Components, vectors: np.ndarray, threshold: float, named: np.ndarray) -> None:
    """Link vectors (N, D) of length 1 whose cosine is at least `threshold`, but no two that are `named` (N,). Raises `UserError`.

    Above `EXACT` vectors it tells how many of the links of a sample are kept within a group.
    """
    if len(vectors) <= EXACT:
        for start in range(0, len(vectors), BLOCK):
            rows = vectors[start : start + BLOCK]
            for other in range(start, len(vectors), BLOCK):
                close = rows @ vectors[other : other + BLOCK].T >= threshold
                close &= ~(named[start : start + BLOCK, None] & named[other : other + BLOCK])
                parts.link(np.argwhere(close) + (start, other))
        return
    index = Candidates(vectors)
    asked, count = np.arange(len(vectors)), NEIGHBOURS
    while len(asked) and count <= MOST_NEIGHBOURS:  # whoever has as many as were asked for may have more
        asked = _join_found(parts, index, vectors, asked, count, PROBES, threshold, named)
        asked = asked[np.bincount(parts.labels)[parts.labels[asked]] <= MOST_NEIGHBOURS]  # larger groups have links enough
        count *= 8
    labels = parts.labels
    alone = np.flatnonzero(np.bincount(labels)[labels] == 1)
    _join_found(parts, index, vectors, alone, NEIGHBOURS, CAREFUL, threshold, named)
    _tell_recall(parts, vectors, threshold, named)


def _join_found(parts: Components, index: "Candidates", vectors: np.ndarray, asked: np.ndarray, count: int, probes: int,
                threshold: float, named: np.ndarray) -> np.ndarray:  # fmt: skip
    """Link `count` neighbours of the vectors `asked` for if their exact cosine is high enough; return who has as many."""
    size, full = max(BLOCK * NEIGHBOURS // count, 1), [asked[:0]]
    for start in tqdm(range(0, len(asked), size), desc=f"{count} neighbours", unit="block", dynamic_ncols=True):
        queries = asked[start : start + size]
        cosines, numbers = index.search(vectors[queries], count, probes)
        place, column = np.nonzero((numbers >= 0) & (cosines >= threshold - MARGIN))
        one, other = queries[place], numbers[place, column]
        parcels = np.array_split(np.arange(len(one)), len(one) // PAIRS + 1)
        close = np.concatenate([_cosines(vectors[one[parcel]], vectors[other[parcel]]) for parcel in parcels]) >= threshold
        full.append(queries[np.bincount(place[close], minlength=len(queries)) >= count])
        close &= ~(named[one] & named[other])
        parts.link(np.stack([one[close], other[close]], axis=1))
    return np.concatenate(full)


def _cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", one.astype(np.float32), other.astype(np.float32))


class Candidates:
    """An index of vectors (N, D) in which FAISS finds the probable nearest of another."""

    def __init__(self, vectors: np.ndarray):
        faiss, (number, size) = load_faiss(), vectors.shape
        cells = max(number // CELL, 1)
        parts = next(parts for parts in range(min(size, 128), 0, -1) if size % parts == 0)
        self._index = faiss.index_factory(size, f"IVF{cells},PQ{parts}x4fs", faiss.METRIC_INNER_PRODUCT)
        self._index.cp.niter, self._index.cp.min_points_per_centroid, self._index.cp.max_points_per_centroid = ROUNDS, 1, TRAINED_ON
        known = np.random.default_rng(0).choice(number, min(number, cells * TRAINED_ON), replace=False)
        self._index.train(vectors[np.sort(known)].astype(np.float32))
        for start in tqdm(range(0, number, 16 * BLOCK), desc="index", unit="block", dynamic_ncols=True):
            self._index.add(vectors[start : start + 16 * BLOCK].astype(np.float32))

    def search(self, queries: np.ndarray, count: int, probes: int = PROBES) -> tuple[np.ndarray, np.ndarray]:
        """Return approximate cosines (Q, count) and numbers (Q, count), -1 where there is none."""
        self._index.nprobe = min(probes, self._index.nlist)
        return self._index.search(queries.astype(np.float32), count)


def load_faiss() -> ModuleType:
    """Import FAISS. Raises `UserError` that names the command which installs it."""
    try:
        import faiss
    except ImportError as error:
        raise UserError(f"more than {EXACT:,} people in clips are compared by FAISS; install it with `{COMMAND}`, or give people names "
                        "(`identities` of the list that clips are prepared from)") from error  # fmt: skip
    return faiss


def nearest(vectors: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """Return the numbers (Q, count) of the vectors that are nearest to each query, in any order, -1 where there is none."""
    count = min(count, len(vectors))
    if len(vectors) > EXACT:
        return Candidates(vectors).search(queries, count)[1]
    found = np.empty((len(queries), count), int)
    for start in range(0, len(queries), BLOCK // 8):  # each row of cosines is as long as there are vectors
        found[start : start + BLOCK // 8] = np.argpartition(-(queries[start : start + BLOCK // 8] @ vectors.T), count - 1)[:, :count]
    return found


def _tell_recall(parts: Components, vectors: np.ndarray, threshold: float, named: np.ndarray) -> None:
    """Compare a sample with all vectors, say which share of its links lies within a group, and link the rest."""
    sample, labels = np.sort(np.random.default_rng(1).choice(len(vectors), SAMPLE, replace=False)), parts.labels
    queries, number, kept = vectors[sample].astype(np.float32), 0, 0
    for start in range(0, len(vectors), BLOCK):
        close = queries @ vectors[start : start + BLOCK].astype(np.float32).T >= threshold
        close &= ~(named[sample, None] & named[start : start + BLOCK]) & (sample[:, None] != np.arange(start, start + close.shape[1]))
        one, other = np.nonzero(close)
        pairs = np.stack([sample[one], other + start], axis=1)
        number, kept = number + len(pairs), kept + int((labels[pairs[:, 0]] == labels[pairs[:, 1]]).sum())
        parts.link(pairs)
    tell(f"{len(vectors):,} people in clips compared by FAISS: of {number:,} exact links of {SAMPLE:,} of them, "
         f"{kept / max(number, 1):.2%} are found")  # fmt: skip
