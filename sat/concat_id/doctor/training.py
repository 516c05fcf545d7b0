"""Tell what training needs before machines are paid for: `python sat/doctor.py --training [--model NAME | --base FILE ...]`.

Checks the lists and prints a table of the memory of each GPU, in GiB, with the operations of a clip. Nothing is loaded or allocated; the
formula is in concat_id/training/memory_plan.py, leave 10 % more. The exit code is 1 if the lists have problems.
"""

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from concat_id.config.command_line import build_parser, resolve_files
from concat_id.config.loading import COMMAND_LINE, load_config
from concat_id.config.parser import number_within
from concat_id.config.presets import files_of
from concat_id.config.schema import BACKBONES, Config
from concat_id.data.checking import check_lists
from concat_id.data.clips import Window
from concat_id.data.records import inspect_records
from concat_id.doctor.findings import GIB, NOTE, OK, PROBLEM, Finding, Findings, from_error, gib
from concat_id.doctor.machine import Capacity
from concat_id.errors import UserError, counted, shortened

GPUS = (1, 4, 8)  # unless others are asked for
MOST_CLIPS = 50  # that are opened
USABLE = 0.9  # of a GPU's memory, beside the context and what the allocator loses
PER_CLIP = 5.0  # seconds
ALL_MEMORY = "python sat/doctor.py --training --model {} --zero 3 --offload"
COLUMNS = {
    "weights": "weights", "optimizer": "master, moments, average", "other": "VAE, buffers", "encoding": "encode clip",
    "network": "forward, backward", "update": "update", "peak": "peak", "host": "in RAM",
}  # fmt: skip


def plan_training(measure: Callable[[Config, int], Any], plan: Callable[..., Any]) -> int:
    """Check the lists of the command line's training and print the memory that `measure` and `plan` tell of; returns the exit code."""
    options = vars(_build_parser().parse_args())
    own = {name: options.pop(name) for name in ("training", "gpus", "zero", "offload", "people", "tflops", "json")}
    files = resolve_files(options, training=True, to_run=False)
    config = load_config(files, options, kinds=BACKBONES)
    gpus = [number_within(f"{COMMAND_LINE}: --gpus", text, 1) for text in own["gpus"]]
    stages = [number_within(f"{COMMAND_LINE}: --zero", text, 0, 3) for text in own["zero"]]
    people = number_within(f"{COMMAND_LINE}: --people", own["people"], 1, config.model.transformer.max_refs)
    speed = number_within(f"{COMMAND_LINE}: --tflops", own["tflops"], 1) if own["tflops"] else None
    report = Findings(own["json"])
    report.add("Training data", examine_lists(config, files))
    sizes = measure(config, people)
    plans = [plan(config, sizes, count, stage, own["offload"]) for stage in stages or [None] for count in gpus]
    if own["json"]:
        told = {"lists": report.sections[0]["findings"], "flops_per_clip": sum(sizes.flops)}
        print(json.dumps(told | {"plans": [item.as_dict() for item in plans]}, indent=2))
    else:
        print("\n".join([*_table(config, sizes, plans), _operations(sizes, speed)]))
    return int(report.failed)


def _build_parser() -> Any:
    """The options of training, and before them those of the plan."""
    parser = build_parser(__doc__, training=True)
    parser.usage = "%(prog)s --training [--model NAME | --base FILE [FILE ...]] [--gpus N [N ...]] [--zero STAGE [STAGE ...]]\n"
    parser.usage += "                 [--offload] [--people N] [--tflops X] [--json] [--<key> VALUE ...]"
    parser.add_argument("--training", action="store_true", help="plan a training run rather than look at this machine")
    parser.add_argument("--gpus", nargs="+", default=list(map(str, GPUS)), metavar="N", help="numbers of GPUs (default: 1 4 8)")
    parser.add_argument("--zero", nargs="+", default=[], metavar="STAGE", help="stages of ZeRO (default: that of the deepspeed section)")
    parser.add_argument("--offload", action="store_true", default=False, help="optimizer in the machine's memory")
    parser.add_argument("--people", default="1", metavar="N", help="people in a clip (default: 1)")
    parser.add_argument("--tflops", default=None, metavar="X", help="TFLOP/s that one of your GPUs keeps up, to tell the time of a clip")
    parser.add_argument("--json", action="store_true", default=False, help="print JSON, in bytes")
    return parser


def _table(config: Config, sizes: Any, plans: Sequence[Any]) -> Iterator[str]:
    """One line per plan, in GiB."""
    kept = "recomputed" if config.model.transformer.checkpoint_activations else "kept"
    yield f"{sizes.trained / 1e9:.3f} B trained parameters, {config.args.dtype_name}, activations {kept}; GiB per GPU"
    yield "GPUs  ZeRO  " + "  ".join(COLUMNS.values())
    for item in plans:
        joined = {"optimizer": item.master + item.moments + item.average, "other": item.autoencoder + item.buffers}
        values = item.as_dict() | joined
        cells = (f"{values[name] / GIB:{len(title)}.1f}" for name, title in COLUMNS.items())
        yield f"{item.processes:4d}  {item.zero_stage:4d}  " + "  ".join(cells)


def _operations(sizes: Any, speed: int | None) -> str:
    """What a clip costs in operations, and in time if the user knows how fast a GPU is."""
    transformer, encoding = (flops / 1e12 for flops in sizes.flops)
    total = transformer + encoding
    told = f"a clip: {total:.4g} TFLOP ({transformer:.4g} transformer, {encoding:.4g} encoding)"
    return told + (f"; {total / speed:.3g} s at {speed} TFLOP/s" if speed else "; --tflops X tells the time")


def examine_lists(config: Config, files: Sequence[str]) -> Iterator[Finding]:
    """Check the configured lists; of long ones the entries without their clips."""
    lists = [*config.training.train_data, *config.training.valid_data]
    by_option = any(config.origins.source(f"args.{name}") == COMMAND_LINE for name in ("train_data", "valid_data"))
    command = f"python sat/check_dataset.py {shlex.join([*(lists if by_option else ()), '--base', *files])}"
    if not lists:
        yield Finding(NOTE, "lists", "none configured", "--train_data LIST --valid_data LIST, see docs/data.md")
        return
    try:
        records, problems, notes = inspect_records(lists)
        if not problems and len(records) <= MOST_CLIPS:
            data = config.data
            window = Window(data.fps, data.max_num_frames, data.skip_frms_num, tuple(data.video_size))
            report = check_lists(lists, window, config.model.transformer.max_refs, timeout_s=PER_CLIP)
            problems, notes = report.problems, report.notes
    except UserError as error:
        yield from_error("lists", error)
        return
    looked = "all opened" if len(records) <= MOST_CLIPS else "clips not opened"
    found = f"{len(records)} entries, {looked}; {counted(problem=len(problems), note=len(notes))}"
    found += f", the first: {shortened(problems[0])}" if problems else ""
    yield Finding(PROBLEM if problems else OK, "lists", found, command if problems or notes or looked != "all opened" else "")


def examine_training(name: str, capacity: Capacity, measure: Callable[[Config], Any], plan: Callable[..., Any]) -> Iterator[Finding]:
    """Look at the lists of a model's training, and at the memory that `measure` and `plan` tell of."""
    files = files_of(name, training=True)
    config = load_config(files, {"device": "auto" if capacity.gpu else "cpu"})
    yield from examine_lists(config, files)
    sizes = measure(config)
    for count in GPUS:
        planned = plan(config, sizes, count)
        fits = planned.peak <= USABLE * capacity.device
        host = f", and {gib(planned.host)} GiB of memory each" if planned.host else ""
        found = f"about {gib(planned.peak)} GiB on each{host}: {'fits' if fits else 'does not fit'} {gib(capacity.device)} GiB"
        advice = "" if fits or count < GPUS[-1] else ALL_MEMORY.format(name)
        numbers = {"gpus": count, "bytes": planned.peak, "fits": fits}
        yield Finding(OK if fits else NOTE, f"{count} GPU{'s' * (count > 1)}", found, advice, numbers)
