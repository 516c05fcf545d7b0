"""Tell what memory training needs, before machines are paid for: `python sat/plan_training.py --model cogvideox_5b`.

Nothing is loaded or allocated; the formula is in concat_id/training/memory_plan.py. Sizes are GiB on each GPU, leave 10 % more.
"""

import json

from concat_id.config.parser import read_whole
from concat_id.config.typed import shown
from concat_id.errors import UserError, run
from concat_id.startup import prepare_process

GIB = 2**30
COLUMNS = {
    "weights": "weights", "optimizer": "master, moments, average", "other": "VAE, buffers", "encoding": "encode clip",
    "network": "forward, backward", "update": "update", "peak": "peak", "host": "in RAM",
}  # fmt: skip


def main() -> None:
    """Print a table, or JSON."""
    prepare_process()
    from concat_id.config.command_line import build_parser, resolve_files

    parser = build_parser(__doc__, training=True)
    own = parser.add_argument_group("plan")
    own.add_argument("--gpus", nargs="+", default=["1", "4", "8"], metavar="N", help="numbers of GPUs (default: 1 4 8)")
    own.add_argument("--zero", nargs="+", default=[], metavar="STAGE", help="stages of ZeRO (default: that of the deepspeed section)")
    own.add_argument("--offload", action="store_true", default=False, help="optimizer in the machine's memory")
    own.add_argument("--people", default="1", metavar="N", help="people in a clip (default: 1)")
    own.add_argument("--tflops", default=None, metavar="X", help="TFLOP/s that one of your GPUs keeps up, to tell the time of a step")
    own.add_argument("--json", action="store_true", default=False, help="print JSON, in bytes")
    options = vars(parser.parse_args())
    own = {name: options.pop(name) for name in ("gpus", "zero", "offload", "people", "tflops", "json")}
    if "base" not in options:
        options.setdefault("model", "cogvideox_5b")

    from concat_id.config.loading import load_config

    config = load_config(resolve_files(options, training=True, to_run=False), options)
    limits = {"gpus": (1, 10**6), "zero": (0, 3)}
    gpus, stages = ([read_number(name, text, *limits[name]) for text in own[name]] for name in limits)
    people = read_number("people", own["people"], 1, config.model.transformer.max_refs)
    speed = read_number("tflops", own["tflops"], 1, 10**6) if own["tflops"] else None

    from concat_id.training.memory_plan import measure_sizes, plan

    sizes = measure_sizes(config, people)
    plans = [plan(config, sizes, count, stage, own["offload"]) for stage in stages or [None] for count in gpus]
    if own["json"]:
        print(json.dumps({"flops_per_clip": sizes.flops + sizes.encoding.flops, "plans": [item.as_dict() for item in plans]}, indent=2))
        return
    print_table(config, sizes, plans)
    print_operations(config, sizes, speed)


def read_number(name: str, text: str, low: int, high: int) -> int:
    """Read a whole number of the command line."""
    number = read_whole(text)
    if number is None or not low <= number <= high:
        raise UserError(f"command line: --{name}: found {shown(text)}, expected a whole number from {low} to {high}; see --help")
    return number


def print_table(config, sizes, plans) -> None:
    """One line per plan, in GiB."""
    kept = "recomputed" if config.model.transformer.checkpoint_activations else "kept"
    print(f"{sizes.trained / 1e9:.3f} B trained parameters, {config.args.dtype_name}, activations {kept}; GiB per GPU")
    print("GPUs  ZeRO  " + "  ".join(COLUMNS.values()))
    for item in plans:
        values = item.as_dict() | {
            "optimizer": item.master + item.moments + item.average, "other": item.autoencoder + item.buffers,
        }  # fmt: skip
        cells = (f"{values[name] / GIB:{len(title)}.1f}" for name, title in COLUMNS.items())
        print(f"{item.processes:4d}  {item.zero_stage:4d}  " + "  ".join(cells))


def print_operations(config, sizes, speed: int | None) -> None:
    """What a clip costs in operations, and in time if the user knows how fast a GPU is."""
    total = (sizes.flops + sizes.encoding.flops) / 1e12
    print(f"a clip: {total:.4g} TFLOP ({sizes.flops / 1e12:.4g} transformer, {sizes.encoding.flops / 1e12:.4g} encoding)", end="")
    print(f"; {total / speed:.3g} s at {speed} TFLOP/s" if speed else "; --tflops X tells the time")


if __name__ == "__main__":
    run(main)
