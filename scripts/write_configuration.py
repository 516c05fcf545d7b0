"""Write docs/configuration.md from the schema: `python scripts/write_configuration.py`."""

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "sat"))

from concat_id.config.args import DataConfig, SamplingArgs, TrainingArgs  # noqa: E402
from concat_id.config.cogvideox import LoraConfig  # noqa: E402
from concat_id.config.released_args import ACCEPTED_ARGS  # noqa: E402
from concat_id.config.schema import MODELS  # noqa: E402
from concat_id.config.typed import without_none  # noqa: E402

PAGE = ROOT / "docs" / "configuration.md"
OPENING = """# Configuration

```bash
python sat/sample_video.py --model mini --prompt "A woman laughs" --image me.jpg   # the model's own files
python sat/sample_video.py --base configs/cogvideox_5b.yaml my.yaml --seed 7       # your files, merged left to right
```

`--model NAME` stands for two files of `configs/`: the model's and the run's. `--base` takes files in their place; a later file wins over an
earlier one, key by key, and the command line over all. An unknown key is an error that names the nearest known one. Options are spelled as
the keys of `args:`, with underscores or dashes. Paths are looked for beside the file that names them, then in the working folder, then in
the project's. `${section.key}` refers to another key.

Files written for the original load unchanged: their `model:` section in `target:`/`params:` form is read into the keys below, and
`data: {target, params}` into `data:`. Keys that the original has and nothing here reads are listed [at the end](#keys-without-effect);
some of them may only say what happens anyway.

This page is written by `python scripts/write_configuration.py`.
"""
SECTIONS = {
    "`args:` for sampling": (SamplingArgs, "Read by `sat/sample_video.py` and the inference launchers. Training reads the keys marked *."),
    "`args:` for training": (TrainingArgs, "Read by `sat/train_video.py` and the fine-tuning launchers, beside the keys marked * above."),
    "`data:`": (DataConfig, "Training clips."),
}
DEEPSPEED = """## `deepspeed:`

Passed on to DeepSpeed, whose documentation lists its keys. An optimizer of type AdamW (or the original's `sat.ops.FusedEmaAdam`) becomes
torch's AdamW with a moving average of the weights, whose decay is `args.ema_decay`, else the optimizer's `ema_decay`; a scheduler is
refused, as `lr_decay_style` and `warmup_iters` say that.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page's text."""
    parts, known = [OPENING], set()
    parts += [f"## {title}\n\n{text}\n\n{table(section)}" for title, (section, text) in SECTIONS.items()]
    parts += [f"## `model:` of kind {name}\n\n{tables(section, known)}" for name, section in MODELS.items()]
    lora = f"{sentence(LoraConfig)} Of Wan, `targets` are such as `network.blocks.*.attn1.to_q`."
    parts.append(f"### `lora:` of cogvideox and wan\n\n{lora}\n\n{table(LoraConfig)}")
    accepted = [f"| `{name}` | {entry.reason} |" for name, entry in ACCEPTED_ARGS.items()]
    parts += [DEEPSPEED, "\n".join(["## Keys without effect\n", "| key of `args:` | why |", "|---|---|", *accepted]) + "\n"]
    return "\n".join(parts)


def tables(model: type, known: set[type]) -> str:
    """Return the tables of a model's sections, its own keys first, and of those that are `known` from other models a word."""
    hints, parts = get_type_hints(model), [table(model)]
    for item in dataclasses.fields(model):
        if dataclasses.is_dataclass(hints[item.name]):
            section = hints[item.name]
            text = f"As [above](#{item.name}).\n" if section in known else f"{sentence(section)}\n\n{table(section)}"
            parts.append(f"### `{item.name}:`\n\n{text}")
            known.add(section)
    return "\n".join(parts)


def sentence(section: type) -> str:
    """Return the first line of a section's docstring."""
    return (section.__doc__ or "").strip().splitlines()[0]


def table(section: type) -> str:
    """Return a section's own keys as a table."""
    hints, rows = get_type_hints(section), ["| key | value | default | what it says |", "|---|---|---|---|"]
    for item in dataclasses.fields(section):
        if not dataclasses.is_dataclass(hints[item.name]):
            mark = " *" if item.metadata.get("shared") else ""
            rows.append(f"| `{item.name}`{mark} | {kind(hints[item.name], item.metadata)} | {default(item)} | {item.metadata['text']} |")
    return "\n".join(rows) + "\n"


def kind(hint: Any, metadata: Any) -> str:
    """Name a type and its bounds."""
    hint = without_none(hint)
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        return f"list of {kind(inner[0], metadata)}" if inner[-1] is Ellipsis else f"{len(inner)} x {kind(inner[0], metadata)}"
    if dataclasses.is_dataclass(hint):
        return "[keys below](#lora-of-cogvideox-and-wan)"
    if "auto" in str(metadata.get("metavar")):
        return metadata["metavar"].strip("{}").replace(",", ", ")
    named = {int: "integer", float: "number", bool: "true, false", str: "path" if metadata.get("path") else "text"}[hint]
    low, high = metadata.get("low"), metadata.get("high")
    bounds = "" if low is None else f" from {low}" if high is None or high > 10**4 else f" {low}" if low == high else f" {low} to {high}"
    return named + bounds


def default(item: dataclasses.Field) -> str:
    """Write a default as YAML does."""
    value = item.default
    if value is dataclasses.MISSING:
        return "required"
    if value is None or value == ():
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else list(value) if isinstance(value, tuple) else value}`"


if __name__ == "__main__":
    main()
