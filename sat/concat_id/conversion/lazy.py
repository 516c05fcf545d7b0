"""Tensors that are read or made when they are asked for and not kept, so that a model need not fit into memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from concat_id.errors import UserError, reason_of
from concat_id.files.paths import require_file
from concat_id.weights.loading import UNREADABLE, check_named, load_files, load_tensors


class LazyTensors(Mapping[str, Tensor]):
    """Names and how their tensors are made, anew at every look-up."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]):
        self.makers = dict(makers)

    def __getitem__(self, name: str) -> Tensor:
        """Make the tensor; raises `UserError` where what it is made of does not fit."""
        make = self.makers[name]
        try:
            return make()
        except UNREADABLE as error:
            raise UserError(f"{name}: cannot be made ({reason_of(error)}); copy all files of one checkpoint together") from error

    def __contains__(self, name: object) -> bool:
        """Tell whether there is such a tensor, without making it."""
        return name in self.makers

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self.makers)

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self.makers)


def changed(tensors: Mapping[str, Tensor], changes: Mapping[str, Callable[[Tensor], Tensor]]) -> LazyTensors:
    """Pass some of `tensors` through functions of theirs whenever they are asked for."""

    def make(name: str) -> Tensor:
        return changes[name](tensors[name]) if name in changes else tensors[name]

    return LazyTensors({name: partial(make, name) for name in tensors})


def lazy_files(paths: Iterable[Path], trust: bool = False) -> Mapping[str, Tensor]:
    """Tensors of the files of one state dict; safetensors are opened for each and closed again, so that no page stays in memory."""
    paths = list(paths)
    for path in paths:
        require_file(path, "weights", "download them again")
    if any(path.suffix != ".safetensors" for path in paths):
        return load_files(paths, trust)
    makers: dict[str, Callable[[], Tensor]] = {}
    for path in paths:
        own = {name: partial(_read, path, name) for name in _names(path)}
        check_named(own, str(path), makers)
        makers |= own
    return LazyTensors(makers)


def _names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except UNREADABLE:
        return list(load_tensors(path))  # which tells what is wrong


def _read(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)
    except UNREADABLE as error:
        raise UserError(f"{path}: {name} cannot be read ({reason_of(error)}); convert again when it is whole") from error
