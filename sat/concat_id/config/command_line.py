"""The options of sampling and training: a model or `--base` files, and the keys of `args:` to put over them."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from concat_id.config.args import GGUF, SamplingArgs, TrainingArgs
from concat_id.config.parser import Parser
from concat_id.config.presets import FETCH, PRESETS, TASKS, UNTRAINED, choose, files_of
from concat_id.config.released_args import ACCEPTED_ARGS
from concat_id.config.schema import fields_of_args
from concat_id.config.typed import without_none
from concat_id.errors import warn
from concat_id.files.paths import PROJECT_ROOT

MEMORY_HELP = {  # CogVideoX-5B
    "high": "text encoder, transformer and autoencoder stay on the device, 21 GB",
    "balanced": "the text encoder (9.5 GB) leaves after the prompts; transformer (11.1 GB) and autoencoder (0.4 GB) stay, 11.5 GB",
    "low": "the text encoder runs on the CPU, the transformer passes through layer by layer (0.3 GB each), slowest",
}
SAMPLING_GROUPS = {"input": "what to make, and where to put it", "model": "model and sampling", "placement": "memory, device and precision",
                   "acceleration": "acceleration through libraries"}  # fmt: skip
EPILOG = """\
Options below "configuration:" are keys of the args: section of the YAML files and go before what
they say; a default given here holds where no file says another. All keys: docs/configuration.md"""
BANNER = "This is the 96x144 demonstration model: it shows how Concat-ID works, not how good it looks. The 480x720 one:\n    " + FETCH
SHORTER = {"output_dir": "--output"}
WITHOUT_VALUE = {"resume": "latest"}  # what an option that is not a switch means when it stands alone


def build_parser(description: str, training: bool = False, task: str = TASKS[0], base: str | None = None) -> Parser:
    """Make the parser of sampling or of training, for `task` where none is given; only what is given ends up in its result.

    A script for one system has a file `base` in place of the models to choose from.
    """
    parser = Parser(description=description, argument_default=argparse.SUPPRESS)
    parser.usage = f"%(prog)s [{'' if base else '--model NAME | '}--base FILE [FILE ...]] [--<key> VALUE ...]"
    parser.epilog = EPILOG
    other = "sat/sample_video.py" if training else "sat/train_video.py"
    parser.elsewhere = dict.fromkeys(fields_of_args(), other)
    files = parser.add_argument_group("configuration")
    default = "mini" if training else "cogvideox_5b where its weights are in models/, else mini"
    names = [name for name, preset in PRESETS.items() if preset.training or not training]
    if not base:
        files.add_argument("--model", metavar="NAME", help=f"{', '.join(names)} (default: {default})")
        files.add_argument("--task", choices=TASKS, help=f"which of the model's files to take (default: {task})")
    text = f"YAML files, merged left to right (default: {base})" if base else "YAML files in place of the model's, merged left to right"
    files.add_argument("--base", nargs="+", action="extend", metavar="FILE", help=text)
    if training:
        add_options(parser.add_argument_group("training"), TrainingArgs)
        add_options(parser.add_argument_group("model, validation videos, device and precision"), SamplingArgs, shared=True)
    for group, title in {} if training else SAMPLING_GROUPS.items():
        add_options(parser.add_argument_group(title), SamplingArgs, group)
    for name in ACCEPTED_ARGS:  # of the original's scripts, and of launchers such as deepspeed's
        several = {"nargs": "*"} if name in ("train_data_weights", "test_data") else {"nargs": "?", "const": True}
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS, **several)
    return parser


def add_options(parser: Any, section: type, group: str | None = None, shared: bool = False) -> None:
    """Add the options of a section's fields: all, those of one group, or the shared ones."""
    hints = get_type_hints(section)
    for item in dataclasses.fields(section):
        if group in (None, item.metadata.get("group")) and (not shared or item.metadata.get("shared")):
            add_option(parser, item, hints[item.name])


def add_option(group: Any, item: dataclasses.Field, hint: Any, memory: dict[str, str] = MEMORY_HELP) -> None:
    """Add the option of one key; values stay text, which `load_config` types and checks. `memory` says what modes cost."""
    spellings = [SHORTER[item.name]] if item.name in SHORTER else []
    kind = without_none(hint)
    settings: dict[str, Any] = {"dest": item.name, "help": _help(item, memory), "metavar": item.metadata.get("metavar") or _metavar(kind)}
    if get_origin(kind) is tuple:
        sizes = get_args(kind)
        settings |= {"nargs": "+", "action": "extend"} if sizes[-1] is Ellipsis else {"nargs": len(sizes)}
    elif kind is bool or item.name in WITHOUT_VALUE:
        settings |= {"nargs": "?", "const": WITHOUT_VALUE.get(item.name, "true")}
    group.add_argument(*spellings, f"--{item.name}", **settings)


def read_command_line(
    description: str, training: bool = False, argv: Sequence[str] | None = None, base: str | None = None
) -> tuple[list[str], dict[str, Any]]:
    """Parse `argv` (the process's by default) into YAML files, those of --base or of the model, and the keys of `args:` that were given.

    `base` is the file of a script for one system, where none is given.
    Raises `UserError` for a model whose weights are not there.
    """
    given = vars(build_parser(description, training, base=base).parse_args(argv))
    if base:
        given.setdefault("base", [str(PROJECT_ROOT / base)])
    named, model = "base" in given, given.get("model")
    files = resolve_files(given, training)
    if not named and not training and os.environ.get("RANK", "0") == "0":
        if model is None and files[0] == files_of("mini")[0]:
            print(BANNER, file=sys.stderr, flush=True)
        elif model in UNTRAINED and "load" not in given:
            warn(f"--model {model}: its weights are random and untrained; it shows that everything runs, its videos are noise")
    return files, given


def resolve_files(given: dict[str, Any], training: bool = False, to_run: bool = True) -> list[str]:
    """Take --model, --task and --base out of what was parsed, and return the YAML files that they mean."""
    names = {name: given.pop(name, None) for name in ("model", "task", "base")}
    return choose(**names, training=training, own_weights="load" in given or given.get("quantize", "").startswith(GGUF), to_run=to_run)


def _help(item: dataclasses.Field, memory: dict[str, str]) -> str:
    text = item.metadata["text"]
    if item.name == "memory":
        text += ": " + "; ".join(f"{mode} = {cost}" for mode, cost in memory.items())
        text += ". Sizes are those of weights in bf16, computed, not measured; activations come on top"
    if item.default not in (None, (), False) and item.name != "mode":
        text += f" (default: {item.default})"
    return text.replace("%", "%%")


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    return {bool: "{true,false}", int: "N", float: "X"}.get(kind, "TEXT")
