"""Pickles of PyTorch's checkpoints, followed step by step without making anything: what they ask for is known before it is allocated.

torch.load keeps code from running (`weights_only`), but not a kilobyte from asking for 12 GiB, or for a hash that takes years.
"""

import io
import pickle
import pickletools
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch._utils import IMPORT_MAPPING, NAME_MAPPING  # of Python 2's modules

from concat_id.weights.pickle_calls import (
    BUILT,
    CALLS,
    EFFORT,
    HUGE,
    INERT,
    ITEM_SIZES,
    Made,
    Name,
    Storage,
    items_of,
    made_tuple,
    product,
    refuse,
    size_of,
)

LARGEST_PICKLE = 16 * 2**20  # bytes; released ones have 0.1 MB, a training's with all its settings 1 MB
MOST_STEPS = 2 * 10**6  # of one checkpoint; thirty a tensor
MOST_HUGE = 1000  # of numbers from `HUGE` on, which can be made to have one hash
MOST_RECORDS = 200_000  # of a zip archive
LARGEST_ARRAY = 2**24  # numbers of a numpy array beside the tensors
RECORD_MODULES = ("omegaconf.", "deepspeed.")  # their objects sit beside the tensors in training checkpoints; nothing reads them
MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how PyTorch's older format begins
ZIP = b"PK\x03\x04"


class ForeignNamesError(Exception):
    """The pickle names what is neither a tensor nor plain data; the names are the arguments."""


def check_pickles(path: Path) -> list[str]:
    """Follow the pickles of a checkpoint; returns which libraries' records (`RECORD_MODULES`) they name.

    Raises `ForeignNamesError` for names that are not known to be harmless, `pickle.UnpicklingError` for what asks for more than the file
    holds or never ends, and what the readers of the formats raise for damaged files.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
        file.seek(0)
        if head.startswith(ZIP):
            content, records = _from_zip(file, size)
            follower = _Follower(records, size)
            follower.follow(io.BytesIO(content))
        else:
            _require_older_format(head)
            stream, follower = io.BytesIO(file.read(LARGEST_PICKLE)), _Follower(None, size)
            for _ in ("magic number", "version", "system", "content", "keys of the storages"):
                follower.follow(stream)
            if sum(follower.storages.values()) > size:
                raise ValueError(f"its tensors take {sum(follower.storages.values()):,} bytes")
    if follower.foreign:
        raise ForeignNamesError(*follower.foreign)
    return follower.records


def _from_zip(file: io.BufferedReader, size: int) -> tuple[bytes, dict[str, int]]:
    """Return the pickle of an archive, and the sizes of its records. Raises `ValueError` for one that torch.save does not write."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        root = entries[0].filename.partition("/")[0] if entries else ""
        records = {entry.filename.removeprefix(f"{root}/"): entry.file_size for entry in entries}
        if len(records) < len(entries) or len(entries) > MOST_RECORDS:
            raise ValueError(f"it lists {len(entries)} records under {len(records)} names")
        packed = next((entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None)
        if packed is not None:
            raise ValueError(f"{packed} is compressed")
        if sum(records.values()) > size:
            raise ValueError(f"its records claim {sum(records.values()):,} bytes of a file of {size:,}")
        if records.get("data.pkl", 0) > LARGEST_PICKLE:
            raise ValueError(f"data.pkl has {records['data.pkl']:,} bytes, expected at most {LARGEST_PICKLE:,}")
        if "data.pkl" not in records:
            raise ValueError("it has no data.pkl")
        return archive.read(f"{root}/data.pkl"), records


def _require_older_format(head: bytes) -> None:
    """Raise `pickle.UnpicklingError` or `ValueError` unless a file begins as PyTorch's older format does; its oldest is a tar archive."""
    if not head.startswith(b"\x80"):
        raise ValueError("no pickle")
    if not head.startswith(MAGIC):
        raise pickle.UnpicklingError("no magic number of PyTorch's")
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return
    raise pickle.UnpicklingError("it is a tar archive")


LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": Made("tuple"), "EMPTY_SET": Made("set")}
TAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}  # values from the stack; their kin all from a mark on
MAPPINGS = {"dict", "OrderedDict", "Counter"}


class _Follower:
    """A pickle machine whose values are sizes and names alone; it knows the steps that torch.load's careful unpickler knows."""

    def __init__(self, records: Mapping[str, int] | None, file_size: int):
        """`records` are a zip archive's, with sizes; in the older format storages follow the pickles."""
        self.zip_records = records
        self.file_size = file_size
        self.storages: dict[Any, int] = {}
        self.foreign: list[str] = []
        self.records: list[str] = []
        self.steps = self.effort = self.huge = self.tensor_bytes = 0

    def follow(self, stream: io.BytesIO) -> None:
        """Follow one pickle to its end."""
        try:
            self._follow(stream)
        except (LookupError, AttributeError, TypeError) as error:  # of steps that lack what they work on
            raise pickle.UnpicklingError("broken steps") from error

    def _follow(self, stream: io.BytesIO) -> None:
        stack, waiting, memo = [], [], {}
        for opcode, argument, _ in pickletools.genops(stream):
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise pickle.UnpicklingError(f"more than {MOST_STEPS:,} steps")
            kind = opcode.name
            if kind in LITERALS:
                self.huge += kind == "LONG1" and abs(argument) >= HUGE
                if self.huge > MOST_HUGE:
                    raise pickle.UnpicklingError(f"more than {MOST_HUGE:,} huge numbers")
                stack.append(argument)
            elif kind in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif kind in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif kind in CONSTANTS:
                stack.append(CONSTANTS[kind])
            elif kind in ("EMPTY_LIST", "EMPTY_DICT"):
                stack.append(Made(kind.removeprefix("EMPTY_").lower()))
            elif kind == "MARK":
                waiting.append(stack)
                stack = []
            elif kind.startswith(("TUPLE", "APPEND", "SETITEM")):
                if count := TAKES.get(kind):
                    items, stack[-count:] = stack[-count:], []
                else:
                    items, stack = stack, waiting.pop()
                if kind.startswith("TUPLE"):
                    stack.append(made_tuple(items))
                else:
                    self._fill(stack[-1], items, kind.startswith("SETITEM"))
            elif kind == "GLOBAL":
                stack.append(self._named(argument))
            elif kind == "BINPERSID":
                stack.append(self._storage(stack.pop()))
            elif kind in ("REDUCE", "NEWOBJ"):
                arguments, called = stack.pop(), stack.pop()
                stack.append(self.call(called, arguments))
            elif kind == "BUILD":
                self._build(stack[-2], stack.pop())
            elif kind not in ("PROTO", "STOP"):
                raise pickle.UnpicklingError(f"the step {kind}, which PyTorch does not write")

    def _spend(self, *values: Any) -> None:
        self.effort += sum(map(size_of, values))
        if self.effort > EFFORT:
            raise pickle.UnpicklingError("the same contents over and over")

    def _fill(self, target: Any, items: Sequence[Any], with_keys: bool) -> None:
        if not isinstance(target, Made) or target.kind not in (MAPPINGS if with_keys else {"list"}):
            raise pickle.UnpicklingError("items for what is no container")
        if with_keys:
            for key in items[::2]:
                self._spend(key)
        target.size += sum(map(size_of, items))

    def _named(self, argument: str) -> Name:
        module, name = argument.split(" ", 1)
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}"
        if full.startswith(RECORD_MODULES):
            self.records.append(full)
        elif full not in INERT and full not in CALLS and not full.startswith("torch."):  # torch.load knows its own
            self.foreign.append(full)
        return Name(full)

    def _storage(self, identity: Any) -> Storage:
        _, kind, key, _, numbers = items_of(identity)[:5]
        kind = kind.name.rpartition(".")[2].removesuffix("Storage")
        if kind not in ITEM_SIZES:
            raise pickle.UnpicklingError(f"storage of the unknown kind {kind}")
        size = product([numbers]) * ITEM_SIZES[kind]
        held = size if self.zip_records is None else self.zip_records.get(f"data/{key}", -1)
        if size > held:
            raise ValueError(f"its tensors take {size:,} bytes of the record data/{key}, which has {max(held, 0):,}")
        self.storages[key] = max(size, self.storages.get(key, 0))
        return Storage(numbers, ITEM_SIZES[kind])

    def call(self, called: Any, arguments: Any) -> Any:
        """Say what a call makes; raises `pickle.UnpicklingError` for one that may make more than it is given."""
        name = called.name if isinstance(called, Name) else "a call of data"
        items = items_of(arguments)
        if name in self.foreign:
            return Made(name)
        self._spend(*items)
        if name.startswith(RECORD_MODULES):
            return Made(name)
        if name not in CALLS:
            refuse(name, items)
        return CALLS[name](self, name, items)

    def _build(self, target: Any, state: Any) -> None:
        self._spend(state)
        kind = target.kind if isinstance(target, Made) else "data"
        if kind == "numpy.ndarray":
            if len(items_of(state)) != 5 or product(items_of(state.items[1])) > LARGEST_ARRAY:
                raise pickle.UnpicklingError(f"a numpy array of more than {LARGEST_ARRAY:,} numbers")
        elif kind == "numpy.dtype":
            if any(part is not None for part in items_of(state)[2:5]):
                raise pickle.UnpicklingError("a numpy array of records")
        elif kind not in BUILT and kind not in self.foreign and not kind.startswith(RECORD_MODULES):
            raise pickle.UnpicklingError(f"a state for {kind}")

    def add_tensor(self, numbers: int, last: int, available: int, item_size: int) -> Made:
        """Count a tensor of `numbers` that looks at `available` up to `last`."""
        if last > available:
            raise pickle.UnpicklingError(f"a tensor up to number {last:,} of {available:,}")
        self.tensor_bytes += numbers * item_size
        if self.tensor_bytes > 8 * self.file_size + LARGEST_PICKLE:
            raise pickle.UnpicklingError(f"tensors of {self.tensor_bytes:,} bytes in a file of {self.file_size:,}")
        return Made("tensor")


