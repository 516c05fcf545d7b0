"""What DeepSpeed reads of its section: it passes over most keys that it does not know, and finds wrong types when it needs the value."""

from collections.abc import Iterator, KeysView
from typing import Any

from deepspeed import DeepSpeedConfig
from deepspeed.runtime.config import TRAIN_MICRO_BATCH_SIZE_PER_GPU
from deepspeed.runtime.config_utils import DeepSpeedConfigModel
from pydantic import ValidationError

from concat_id.config.typed import Origins, convert, mismatch, shown, unknown_key
from concat_id.errors import UserError, reason_of

PASSED_OVER = ("deepspeed.aio.thread_count",)  # of earlier releases, in many files
INTEGERS = ("steps_per_print", "number_checkpoints")  # whose defaults, None, do not say it


class _Asked(dict):
    """A section that notes in `known` what keys it is asked for, with their default values."""

    def __init__(self, section: dict[str, Any]):
        super().__init__({name: _Asked(value) if isinstance(value, dict) else value for name, value in section.items()})
        self.known: dict[str, Any] = {}

    def get(self, name: str, default: Any = None) -> Any:
        """Note the key and its default."""
        self.known[name] = default
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.known.setdefault(name, None)
        return super().__contains__(name)

    def __getitem__(self, name: str) -> Any:
        self.known.setdefault(name, None)
        return super().__getitem__(name)

    def __iter__(self) -> Iterator[str]:  # so that `**section` asks for every key
        return super().__iter__()

    def keys(self) -> KeysView[str]:
        """Keys whose `in` is noted as well."""
        return KeysView(self)


def check_deepspeed(given: dict[str, Any], origins: Origins) -> None:
    """Raise `UserError` for the first key of the `deepspeed:` section that DeepSpeed does not know, or whose value it cannot take."""
    stage = given["zero_optimization"]["stage"]  # some values are for some stages alone
    for name, value in given.items():
        section = _Asked({TRAIN_MICRO_BATCH_SIZE_PER_GPU: 1, "zero_optimization": {"stage": stage}, name: value})
        try:
            DeepSpeedConfig(section)
        except ValidationError as error:
            raise _invalid(name, value, error, origins) from error
        except Exception as error:  # whatever its readers make of a wrong value
            if isinstance(error, AttributeError | TypeError) and not isinstance(value, dict):
                raise mismatch(f"deepspeed.{name}", value, "another kind of value", origins) from error
            raise UserError(f"{origins.place(f'deepspeed.{name}')}: {reason_of(error)}; correct it") from error
        _check(section, "deepspeed", origins)


def _check(section: _Asked, key: str, origins: Origins) -> None:
    for name, value in section.items():
        if f"{key}.{name}" in PASSED_OVER:
            continue
        if name not in section.known:
            raise unknown_key(f"{key}.{name}", section.known, origins)
        default = section.known[name]
        if value is None and default is None:
            continue
        if isinstance(value, _Asked):
            if value.known:  # else it was read as a whole, by a class that refuses what it does not know
                _check(value, f"{key}.{name}", origins)
        elif name in INTEGERS or isinstance(default, bool | int | float | str):
            hint = int if name in INTEGERS else type(default) if isinstance(default, bool | str) else float
            convert(value, hint, f"{key}.{name}", origins)
            if isinstance(value, str) and not isinstance(default, str):
                raise mismatch(f"{key}.{name}", value, "it without quotes", origins)
            if name in INTEGERS and value < 1:
                raise mismatch(f"{key}.{name}", value, "1 or more", origins)


def _invalid(name: str, value: Any, error: ValidationError, origins: Origins) -> UserError:
    """Name the key that a class of DeepSpeed's refuses; it says where only from the section on that is of this class."""
    first, key = error.errors()[0], "deepspeed"
    value = {name: value}
    way = _way_to(first["loc"][0], value) if first["loc"] else None
    path = [name] if way is None else [*way, *first["loc"]]
    for part in path:
        if not isinstance(value, dict) or part not in value:
            break
        if part == path[-1] and first["type"] == "extra_forbidden":
            names, place = set(_names(DeepSpeedConfigModel)), f"{key}.{part}"
            if part in names:
                return UserError(f"{origins.place(place)}: found here, expected in another section; move or remove it")
            return unknown_key(place, names, origins)
        key, value = f"{key}.{part}", value[part]
    expected = first["msg"].removeprefix("Value error, ").replace("Input should be ", "expected ")
    return UserError(f"{origins.place(key)}: found {shown(value)}, {expected}; correct it")


def _way_to(part: Any, section: Any) -> list[str] | None:
    """The names of the sections around the outermost key called `part`."""
    if not isinstance(section, dict):
        return None
    ways = ((name, _way_to(part, inner)) for name, inner in section.items())
    return [] if part in section else next(([name, *way] for name, way in ways if way is not None), None)


def _names(model: type) -> Iterator[str]:
    """The keys of a class of sections, and of all that are made from it."""
    yield from (field.alias or name for name, field in model.model_fields.items())
    for kind in model.__subclasses__():
        yield from _names(kind)
