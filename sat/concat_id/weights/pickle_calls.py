"""What a checkpoint's pickle may name and call, and how much each call makes: the values of the machine in `pickles`."""

import argparse
import codecs
import collections
import math
import pickle
import types
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch

EFFORT = 2**28  # bytes, about, that containers, texts and keys may have when each is counted as often as it is copied or hashed
ITEM = 64  # bytes, about, of an item of a container
HUGE = 2**63


class RecordedCall:
    """Stand-in for a library's configuration object: takes its fields and runs none of the library's code."""

    def __init__(self, *values: Any):
        self.values = values


def _without_default(*_: Any) -> dict:
    """Stand in for defaultdict, which PyTorch's careful unpickler can make but not fill."""
    return collections.OrderedDict()


_numpy_array, _numpy_scalar = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
_plain_types = (bool, bytes, dict, float, int, list, str, tuple)
PATHLIB = "pathlib", "pathlib._local"  # the second one is Python 3.13's
ITEM_SIZES = {  # bytes of a number in each kind of storage
    **dict.fromkeys(("Untyped", "Byte", "Char", "Bool", "QInt8", "QUInt8", "QUInt4x2", "QUInt2x4"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}  # fmt: skip


class Name(NamedTuple):
    """A class or function that the pickle names."""

    name: str


class Storage(NamedTuple):
    """Numbers of a file that tensors look at."""

    numbers: int
    item_size: int


class Made:
    """Something made: of which kind, of how many bytes (about; containers grow), and a tuple's items."""

    def __init__(self, kind: str, size: int = ITEM, items: Sequence[Any] = ()):
        self.kind, self.size, self.items = kind, size, items


def made_tuple(items: Sequence[Any]) -> Made:
    """Make a tuple."""
    return Made("tuple", ITEM + sum(map(size_of, items)), items)


def size_of(value: Any) -> int:
    """Bytes of a value, about, what it holds included."""
    if isinstance(value, Made):
        return min(value.size, 2 * EFFORT)
    return ITEM + len(value) if isinstance(value, str) else ITEM


def items_of(value: Any) -> Sequence[Any]:
    """Items of a tuple; raises `pickle.UnpicklingError` for anything else."""
    if not isinstance(value, Made) or value.kind != "tuple":
        raise pickle.UnpicklingError("no tuple where one belongs")
    return value.items


def product(sizes: Sequence[Any]) -> int:
    """How many numbers there are. Raises `pickle.UnpicklingError` for sizes that are none."""
    if len(sizes) > 64 or not all(isinstance(size, int) and 0 <= size < HUGE for size in sizes):
        raise pickle.UnpicklingError("sizes that are none")
    return math.prod(sizes)


def refuse(name: str, items: Sequence[Any]) -> NoReturn:
    """Say which call is not made."""
    shown = ", ".join(str(item) if isinstance(item, int | float) else "..." for item in items[:3])
    raise pickle.UnpicklingError(f"the call {name.removeprefix('builtins.')}({shown}), which no checkpoint needs")


def _tensor(machine: Any, name: str, items: Sequence[Any]) -> Made:
    """_rebuild_tensor*(storage, offset, sizes, strides, ...): places from 0 on; version 3 names the type behind."""
    storage, offset, (sizes, strides) = items[0], items[1], map(items_of, items[2:4])
    if not isinstance(storage, Storage) or len(sizes) != len(strides):
        refuse(name, items)
    numbers, (available, item_size) = product(sizes), storage
    if name.endswith("_v3"):
        dtype = getattr(torch, items[6].name.removeprefix("torch."), None)
        item_size = getattr(dtype, "itemsize", 1)
        available //= item_size
    steps = ((size - 1) * product([stride]) for size, stride in zip(sizes, strides, strict=True))
    last = product([offset]) + (1 + sum(steps) if numbers else 0)
    return machine.add_tensor(numbers, last, available, item_size)


def _without_values(machine: Any, name: str, items: Sequence[Any]) -> NoReturn:
    raise pickle.UnpicklingError("a tensor without values (meta)")


def _of_another(machine: Any, name: str, items: Sequence[Any]) -> Any:
    """_rebuild_from_type_v2(function, class, arguments, state)."""
    return machine.call(items[0], items[2])


def _first(machine: Any, name: str, items: Sequence[Any]) -> Any:
    return items[0]


def _result(kind: str) -> Callable[..., Made]:
    """A call that makes something no greater than its arguments."""
    return lambda machine, name, items: Made(kind, ITEM + sum(map(size_of, items)))


def _of_plain(kind: str) -> Callable[..., Made]:
    """A call of a type that makes nothing greater of what it is given, unless that is a number."""

    def call(machine: Any, name: str, items: Sequence[Any]) -> Made:
        if any(isinstance(item, int) for item in items):
            refuse(name, items)
        return _result(kind)(machine, name, items)

    return call


def _empty(machine: Any, name: str, items: Sequence[Any]) -> Made:
    if items:
        refuse(name, items)
    return Made(name.rpartition(".")[2])


def _encoded(machine: Any, name: str, items: Sequence[Any]) -> Made:
    if len(items) != 2 or not isinstance(items[0], str) or items[1] not in ("latin1", "latin-1", "ascii", "utf-8", "utf8"):
        refuse(name, items)
    return Made("bytes", size_of(items[0]))


def _empty_array(machine: Any, name: str, items: Sequence[Any]) -> Made:
    if len(items) != 3 or list(items_of(items[1])) != [0]:
        refuse(name, items)
    return Made("numpy.ndarray")


def _dtype(machine: Any, name: str, items: Sequence[Any]) -> Made:
    if not items or not isinstance(items[0], str) or len(items[0]) > 20 or "," in items[0]:
        refuse(name, items)
    return Made("numpy.dtype")


def _number(machine: Any, name: str, items: Sequence[Any]) -> Made:
    if len(items) != 2 or items[1] is None:
        refuse(name, items)
    return Made("number")


def _size_of_tensor(machine: Any, name: str, items: Sequence[Any]) -> Made:
    return items[0] if items and items_of(items[0]) else Made("tuple")


NUMPY = "numpy.core.multiarray", "numpy._core.multiarray"
# What is harmless beside torch's own, by name: the object that is put in its place, and what a call of it makes, where it may be called.
HARMLESS: dict[str, tuple[Any, Callable[..., Any] | None]] = {
    "argparse.Namespace": (argparse.Namespace, _result("Namespace")),
    "types.SimpleNamespace": (types.SimpleNamespace, _result("SimpleNamespace")),
    "typing.Any": (RecordedCall, None),
    "collections.defaultdict": (_without_default, _result("OrderedDict")),
    "_codecs.encode": (codecs.encode, _encoded),  # how protocol 2 writes bytes
    "numpy.ndarray": (np.ndarray, None),
    "numpy.dtype": (np.dtype, _dtype),
    **{f"{module}._reconstruct": (_numpy_array, _empty_array) for module in NUMPY},
    **{f"{module}.scalar": (_numpy_scalar, _number) for module in NUMPY},
    **{f"numpy.dtypes.{name}": (getattr(np.dtypes, name), None) for name in np.dtypes.__all__},
    **{f"{module}.{name}": (PurePosixPath, _of_plain("path")) for module in PATHLIB for name in ("PosixPath", "PurePosixPath")},
    **{f"{module}.{name}": (PureWindowsPath, _of_plain("path")) for module in PATHLIB for name in ("WindowsPath", "PureWindowsPath")},
    **{f"{module}.{kind.__name__}": (kind, _empty) for module in ("builtins", "__builtin__") for kind in _plain_types},
}
INERT = {name: stand_in for name, (stand_in, _) in HARMLESS.items()}
CALLS: dict[str, Callable[..., Any]] = {
    **{f"torch._utils.{name}": _tensor for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor")},
    **{f"torch._utils._rebuild_parameter{more}": _first for more in ("", "_with_state")},
    "torch._utils._rebuild_sparse_tensor": _result("tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": _without_values,
    "torch._tensor._rebuild_from_type_v2": _of_another,
    "torch.Size": _size_of_tensor,
    "torch.device": _result("device"),
    "torch.serialization._get_layout": _of_plain("layout"),
    **{f"collections.{kind}": _of_plain(kind) for kind in ("OrderedDict", "Counter")},
    **{f"builtins.{kind}": _of_plain(kind) for kind in ("set", "bytearray")},
    "builtins.complex": _result("number"),
    **{name: call for name, (_, call) in HARMLESS.items() if call},
}
BUILT = {"OrderedDict", "Counter", "Namespace", "SimpleNamespace"}
