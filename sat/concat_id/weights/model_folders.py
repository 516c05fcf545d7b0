"""Models in Hugging Face's layout: settings of the right types, networks no larger than their weights, tokenizers of a reasonable size."""

import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from concat_id.errors import UserError, one_line, reason_of
from concat_id.files.json_files import read_json
from concat_id.files.paths import kind_of
from concat_id.weights.folders import some, weight_files
from concat_id.weights.loading import UNREADABLE, check_floats, load_files

LARGEST = 10**6  # of numbers in settings; vocabularies have 256,384 pieces
ADVICE = {"model_max_length", "max_length", "max_len"}  # numbers that nothing is made by; the first is 10 ** 30 where there is no limit
MOST_EXTRA_TOKENS = 1000
COUNTS = ("position_ids", "num_batches_tracked")
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "preprocessor_config.json")


def read_settings(file: Path, expected: str, remedy: str = "download it again", like: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Read config.json or its like, whose numbers are finite and no larger than those of any model of today.

    Where `like` is given, values have the types of its parameters' defaults. Raises `UserError` that names the key.
    """
    settings = read_json(file, expected, remedy)
    if not isinstance(settings, dict):
        raise UserError(f"{file}: found a {type(settings).__name__}, expected {expected}; {remedy}")
    parameters = inspect.signature(like).parameters if like else {}
    for key, value in settings.items():
        for number in _numbers(value, key):
            if not abs(number) <= LARGEST:
                raise UserError(f"{file}: {key}: found {number!s:.40}, expected a number of at most {LARGEST:,}; {remedy}")
        default = parameters[key].default if key in parameters else None
        if not _fits(value, default):
            raise UserError(f"{file}: {key}: found {one_line(f'{value!r:.40}')}, expected the like of {default!r:.60}; {remedy}")
    return settings


def read_diffusers(folder: Path, kind: type, instead: str, remedy: str, trust: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read settings and weights of diffusers' network of the class `kind`; `instead` is the file that would do as well as the folder.

    Raises `UserError`, which ends with `remedy` where the folder is another one.
    """
    file = folder / "config.json"
    if kind_of(file) == "no such file":
        raise UserError(f"{folder}: found no config.json, expected a diffusers folder or {instead}; {remedy}")
    settings = read_settings(file, "a diffusers configuration", like=kind.__init__)
    found = settings.get("_class_name")
    if found != kind.__name__:
        raise UserError(f"{file}: describes {one_line(found)[:80]}, expected {kind.__name__}; {remedy}")
    return settings, load_files(weight_files(folder, ("diffusion_pytorch_model",)), trust)


def check_tokenizer(folder: Path) -> None:
    """Raise `UserError` for a tokenizer's settings that nothing could be made of in reasonable time."""
    for name in TOKENIZER_SETTINGS:
        if kind_of(folder / name) != "no such file":
            settings = read_settings(folder / name, "settings of a tokenizer")
            extra = settings.get("extra_ids", 0)
            if not isinstance(extra, int) or not 0 <= extra <= MOST_EXTRA_TOKENS:
                raise UserError(f"{folder / name}: extra_ids: found {extra!r:.40}, expected at most {MOST_EXTRA_TOKENS}; download it again")


def load_pretrained(folder: Path) -> dict[str, Tensor]:
    """Read the weights of a folder for a network of transformers; numbers that are none of its weights may be whole."""
    weights = load_files(weight_files(folder))
    check_floats({name: tensor for name, tensor in weights.items() if not name.endswith(COUNTS)}, str(folder))
    return weights


@contextmanager
def built_from(file: Path, what: str, tensors: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block networks may have at most twice as many parameters as there are `tensors`.

    What the libraries raise for settings that make no such network becomes `UserError` about `file`.
    """
    left = 2 * len(tensors) + 50

    builder = threading.get_ident()

    def count(*_: Any) -> None:
        nonlocal left
        left -= threading.get_ident() == builder
        if left < 0:
            raise OverflowError(f"it makes more layers than the weights have, whose {len(tensors)} tensors are beside it")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # strict dataclasses and others have classes of their own for this
        if not isinstance(error, UNREADABLE) and not type(error).__module__.startswith(("huggingface_hub", "tokenizers")):
            raise
        if "can't start new thread" in str(error):
            raise UserError(f"{file}: not read: found too many threads and processes of yours, expected fewer; raise ulimit -u") from error
        raise UserError(f"{file}: describes no {what} ({one_line(reason_of(error, 150))}); download it again") from error
    finally:
        hook.remove()


def network_of(
    kind: Any, settings: dict[str, Any], weights: dict[str, Tensor], file: Path, what: str, dtype: torch.dtype = torch.float32
) -> Any:
    """Make a frozen network of a class of transformers, of the settings in `file` and the weights beside it. Raises `UserError`."""
    with built_from(file, what, weights):
        network, found = kind.from_pretrained(
            None, config=kind.config_class.from_dict(settings), state_dict=weights, dtype=dtype, output_loading_info=True
        )
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{file.parent}: found no {missing[0]} in the weights, expected a whole {what}; download it again")
    if left := sorted(name for name in found["unexpected_keys"] if not name.endswith(COUNTS)):
        raise UserError(f"{file.parent}: found {some(left)}, expected a {what} of the sizes in {file.name}; download both again")
    return network.eval().requires_grad_(False)


@contextmanager
def made_on(device: torch.device | str) -> Iterator[None]:
    """Inside the block networks are made on a device, without drawing numbers on the meta device, which has none."""
    with torch.device(device), _NoDraws() if torch.device(device).type == "meta" else nullcontext():
        yield


class _NoDraws(TorchFunctionMode):
    """Turn `torch.nn.init` off. On the meta device its random numbers would import half of PyTorch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return kwargs["tensor"] if getattr(func, "__module__", "") == "torch.nn.init" else func(*args, **kwargs)


def _numbers(value: Any, key: str) -> Iterator[float]:
    """Numbers in a value at any depth, but for those that are advice."""
    if isinstance(value, dict):
        for inner, part in value.items():
            yield from _numbers(part, inner)
    elif isinstance(value, list):
        for part in value:
            yield from _numbers(part, key)
    elif isinstance(value, int | float) and not isinstance(value, bool) and (key not in ADVICE or not math.isfinite(value)):
        yield value


def _fits(value: Any, default: Any) -> bool:
    """Tell whether a value is of the type of a parameter's default, as far as that tells one."""
    if default is None or default is inspect.Parameter.empty:
        return True
    if isinstance(default, tuple | list):
        return isinstance(value, list) and len(value) <= 100 and all(_fits(part, default[0] if default else None) for part in value)
    kind = int | float if isinstance(default, float) else type(default)
    return isinstance(value, kind) and isinstance(value, bool) == isinstance(default, bool)
