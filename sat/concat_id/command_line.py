"""The options of the entry scripts: `--base` files, and every key of `args:` to put over them."""

import argparse
import dataclasses
import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from concat_id.args_config import Args
from concat_id.parser import Parser

MEMORY_HELP = {  # CogVideoX-5B
    "high": "text encoder, transformer and autoencoder stay on the device, 21 GB",
    "balanced": "the text encoder (9.5 GB) leaves after the prompts; transformer (11.1 GB) and autoencoder (0.4 GB) stay, 11.5 GB",
    "low": "the text encoder runs on the CPU, the transformer passes through layer by layer (0.3 GB each), slowest",
}
GROUPS = {
    "input": "what to make, and where to put it",
    "model": "model and sampling",
    "placement": "memory, device and precision",
    "training": "training",
}
SHORTER = {"output_dir": "--output"}
WITHOUT_VALUE = {"resume": "latest"}  # what an option that is not a switch means when it stands alone


class OneSpelling(argparse.HelpFormatter):
    """Help that shows each option once, though dashes and underscores are both accepted."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        spellings = [item for item in action.option_strings if "-" not in item.lstrip("-")] or action.option_strings
        values = "" if action.nargs == 0 else self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(spellings)} {values}".rstrip()


def build_parser(description: str) -> Parser:
    """Make a parser with `--base` and one option for every key of `args:`; only what is given ends up in its result."""
    parser = Parser(description=description, formatter_class=OneSpelling, argument_default=argparse.SUPPRESS)
    parser.usage = "%(prog)s --base FILE [FILE ...] [--<key> VALUE ...]"
    parser.epilog = "Every option below --base is a key of the args: section of the YAML files and goes before what they say."
    parser.add_argument("--base", nargs="+", action="extend", required=True, metavar="FILE", help="YAML files, merged left to right")
    groups = {name: parser.add_argument_group(title) for name, title in GROUPS.items()}
    hints = get_type_hints(Args)
    for item in dataclasses.fields(Args):
        add_option(groups[item.metadata["group"]], item, hints[item.name])
    return parser


def add_option(group: Any, item: dataclasses.Field, hint: Any, memory: dict[str, str] = MEMORY_HELP) -> None:
    """Add the option of one field of `Args`; values stay text, which `load_config` types and checks. `memory` says what modes cost."""
    spellings = [f"--{item.name}", f"--{item.name.replace('_', '-')}"]
    spellings = [SHORTER[item.name], *spellings] if item.name in SHORTER else spellings
    kind = _without_none(hint)
    metavar = item.metadata.get("metavar") or _metavar(kind)
    settings: dict[str, Any] = {"dest": item.name, "help": _help(item, kind, memory), "metavar": metavar}
    if get_origin(kind) is tuple:
        sizes = get_args(kind)
        settings |= {"nargs": "+", "action": "extend"} if sizes[-1] is Ellipsis else {"nargs": len(sizes)}
    elif kind is bool or item.name in WITHOUT_VALUE:
        settings |= {"nargs": "?", "const": WITHOUT_VALUE.get(item.name, "true")}
    group.add_argument(*dict.fromkeys(spellings), **settings)


def read_command_line(description: str, argv: Sequence[str] | None = None) -> tuple[list[str], dict[str, Any]]:
    """Parse `argv` (the process's by default) into the `--base` paths and the keys of `args:` that were given."""
    given = vars(build_parser(description).parse_args(argv))
    return given.pop("base"), given


def _help(item: dataclasses.Field, kind: Any, memory: dict[str, str]) -> str:
    text = item.metadata["help"]
    if item.name == "memory":
        text += ": " + "; ".join(f"{mode} = {cost}" for mode, cost in memory.items())
        text += ". Sizes are those of weights in bf16, computed, not measured; activations come on top"
    if item.default not in (None, (), False):
        text += f" (default: {item.default})"
    return text.replace("%", "%%")


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    return {bool: "{true,false}", int: "N", float: "X"}.get(kind, "TEXT")


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(inner for inner in get_args(hint) if inner is not types.NoneType)
    return hint
