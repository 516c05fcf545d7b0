"""Names that are imported where they are used, in place of a library that is imported because one of its modules is."""

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any


@contextmanager
def replaced(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """Inside the block imports find other modules; those in whose place there is None fail."""
    kept = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in kept.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def deferred(*modules: str) -> AbstractContextManager[None]:
    """Inside the block, names that are imported from these modules are stand-ins, which import them when they are called or looked into."""
    return replaced({name: _Deferred(name) for name in modules if find_spec(name.partition(".")[0])})


class _Deferred(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Later(self.__name__, name)


class _Later:
    """A function or class of a module."""

    def __init__(self, module: str, name: str):
        self._find = lambda: getattr(importlib.import_module(module), name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._find()(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._find(), name)

    def __or__(self, other: Any) -> Any:  # in annotations
        return Any
