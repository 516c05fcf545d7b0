"""Import what is used of a large library, and the rest of it once somebody asks for it."""

import functools
import importlib
import sys
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any


def import_lazily(*packages: str) -> None:
    """Let submodules of packages be imported without the packages' own `__init__`, which runs when a name that it defines is asked for.

    Outer packages come before inner ones. Those that are imported already, or not installed, stay as they are.
    """
    for name in packages:
        if name not in sys.modules and (spec := find_spec(name)):
            package = sys.modules[name] = module_from_spec(spec)
            package.__getattr__ = functools.partial(_content, package)
            if "." in name:
                outer, inner = name.rsplit(".", 1)
                setattr(sys.modules[outer], inner, package)


def _content(package: ModuleType, name: str) -> Any:
    """Return what a package whose `__init__` has not run has under a name: a submodule, or what `__init__` makes."""
    if name.startswith("__") and name not in ("__all__", "__version__"):  # whoever walks through all modules asks for such
        raise AttributeError(f"module {package.__name__!r} has no attribute {name!r}")
    if find_spec(f"{package.__name__}.{name}"):
        return importlib.import_module(f"{package.__name__}.{name}")
    del package.__getattr__
    package.__spec__.loader.exec_module(package)
    made = sys.modules[package.__name__]
    if made is not package:  # packages that are lazy themselves put another one in their place
        package.__getattr__ = functools.partial(getattr, made)
    return getattr(made, name)
