"""Tell what this machine can run, what is missing, what to type next: `python sat/doctor.py [--model NAME] [--digests] [--fix] [--json]`.

Looks at the machine, the software, every weight file, the memory and the time that videos take, and makes a tiny one. No model is
loaded in whole, nothing is downloaded. The exit code is 1 if what was asked for (without --model the demonstration model) cannot run.
With --training: what a training run needs of each GPU, before machines are paid for, and whether its lists are whole.
"""

from concat_id.startup import prepare_process, run  # isort: split

import sys

from concat_id.bootstrap import has_libraries
from concat_id.config.neighbours import NEIGHBOURS
from concat_id.config.parser import Namespace, Parser
from concat_id.config.presets import PRESETS, UNTRAINED, check_name
from concat_id.doctor.findings import Findings
from concat_id.errors import UserError


def read_arguments() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--model", metavar="NAME", help=f"look at one model closely: {', '.join(PRESETS)}")
    parser.add_argument("--digests", action="store_true", help="read weight files in whole, and compare them with what was downloaded")
    parser.add_argument("--fix", action="store_true", help="mend what needs no download: misplaced folders, the face detector")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--training", action="store_true", help="plan a training run instead: see `--training --help`")
    parser.elsewhere = dict.fromkeys(("base", "task", "gpus", "zero", "offload", "people", "tflops"), "sat/doctor.py --training")
    arguments = parser.parse_args()
    check_name("mini" if arguments.model is None else arguments.model)
    return arguments


def main() -> int:
    """Look at one thing after the other; 1 if the model cannot run."""
    prepare_process()
    if "--training" in sys.argv[1:]:
        return examine_plan()
    arguments = read_arguments()
    asked = arguments.model or "mini"
    from concat_id.doctor.machine import Capacity, look_around, look_for_gpus
    from concat_id.doctor.software import look_at_packages

    is_ready, report = has_libraries(), Findings(arguments.json)
    capacity, gpus = look_for_gpus() if is_ready else (Capacity(0, 0), [])
    report.add("Machine", [*look_around(), *gpus])
    report.add("Software", look_at_packages(("", "neighbours") if asked == "consisid" else ("",)))
    if is_ready:
        examine(report, arguments, asked, capacity)
    return report.finish(asked)


def examine(report: Findings, arguments: Namespace, asked: str, capacity) -> None:
    """Look at the models: at one closely, or at all of them."""
    from concat_id.distributed import choose_device
    from concat_id.doctor import costs, trial
    from concat_id.doctor.weight_files import examine_downloads, examine_faces, examine_model

    names = [arguments.model] if arguments.model else list(PRESETS)
    device = choose_device("auto" if capacity.gpu else "cpu")
    configs = {name: costs.config_for(name, device) for name in names}
    if arguments.fix:
        report.add("Mended", trial.repair(list(configs.values())))
    weights = {name: examine_model(name, name == arguments.model, arguments.digests) for name in names}
    report.add("Weights", [*sum(weights.values(), []), *examine_downloads()], decisive=weights[asked])
    report.add("Faces", examine_faces(configs[asked], arguments.digests))
    trained = {name: config for name, config in configs.items() if name not in NEIGHBOURS and (name == asked or name not in UNTRAINED)}
    modes = costs.memory_modes(configs[asked], capacity) if arguments.model in trained else []
    report.add("Memory", [*(costs.best_mode(name, config, capacity, name == asked) for name, config in trained.items()), *modes])
    if arguments.model and PRESETS[asked].training:
        from concat_id.doctor.training import examine_training
        from concat_id.training.memory_plan import measure_sizes, plan

        report.add("Training", examine_training(asked, capacity, measure_sizes, plan), decisive=())
    report.add("Denoising a video, reckoned", [costs.time_of_video(*each, device) for each in trained.items()])
    report.add("A tiny video", video := [trial.make_tiny_video()], decisive=video if asked == "mini" else ())


def examine_plan() -> int:
    """Plan the training that the command line describes; 1 if its lists have problems."""
    if not has_libraries():
        raise UserError("--training: the libraries are not installed; bash scripts/setup.sh")
    from concat_id.doctor.training import plan_training
    from concat_id.training.memory_plan import measure_sizes, plan

    return plan_training(measure_sizes, plan)


if __name__ == "__main__":
    run(main)
