"""Checkpoints of a run: weights as the original writes them, and beside them all that an exact continuation needs.

    <run>/latest                                     the last whole one, written last of all
    <run>/<n>/mp_rank_00_model_states.pt             weights after n steps: {"module": {"model.diffusion_model.<name>": ...}}
    <run>/<n>/training/state.json                    step, position in the data, loss scaler, sizes of the files; written last
    <run>/<n>/training/states*.safetensors           float32 masters, moments and averages, each whole under its name
    <run>/<n>/training/random.pt                     random generators of every process
    <run>/<n>-ema/mp_rank_00_model_states.pt         averaged weights
    lora.safetensors in place of mp_rank_00_model_states.pt where only low-rank products are trained

States are kept whole and not as ZeRO cuts them, so that a run can go on with another number of processes or stage of ZeRO.
"""

import json
import math
import random
import re
import shutil
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from concat_id.distributed import from_first, rank, world_size
from concat_id.errors import UserError, warn
from concat_id.files.json_files import read_json, write_json
from concat_id.files.paths import MODEL_STATES, folder_written_whole, kind_of, write_text
from concat_id.training.engine import Engine, States
from concat_id.training.lora import low_rank_scale
from concat_id.weights.loading import SAT_PREFIX, load_tensors, write_shards, writing
from concat_id.weights.low_rank import save_low_rank

TRAINING, STATE, RANDOM = "training", "state.json", "random.pt"
VERSION = 1
STEP = re.compile("0|[1-9][0-9]{0,17}")  # the name of a checkpoint's folder


class CheckpointError(UserError):
    """A checkpoint that could not be written; the run and the checkpoints before it are as they were."""


class DivergedError(UserError):
    """Weights that are no numbers, with which no run can go on."""


def save_checkpoint(run: Path, step: int, engine: Engine, state: dict[str, Any], dtype: torch.dtype, keep: int) -> None:
    """Write the checkpoint of `step`, point `latest` at it and remove all but the last `keep`; all processes must call.

    `state` is JSON beside what is saved anyway; weights are written as `dtype`. The first process writes. Raises `CheckpointError` in
    all processes if it fails, `DivergedError` for weights that are no numbers.
    """
    generators = [None] * world_size()
    dist.all_gather_object(generators, random_state())
    scale = low_rank_scale(engine.network)
    frozen = engine.frozen_parameters() if scale is None else ()
    states = engine.full_states()
    failure = None
    if rank() == 0:
        state = state | {"version": VERSION, "step": step, "updates": engine.updates}
        state |= {"scaler": engine.scaler_state(), "processes": world_size()}
        try:
            _write(run, step, frozen, states, state, generators, dtype, scale)
            write_text(run / "latest", str(step))
            _remove_old(run, step, keep)
        except (UserError, OSError) as error:
            failure = DivergedError if isinstance(error, DivergedError) else CheckpointError, str(error)
    for _ in chain(frozen, states):  # whatever the first process leaves, so that nobody waits for it
        pass
    failure = from_first(failure)
    if failure:
        raise failure[0](f"checkpoint {step}: {failure[1]}")


def _write(
    run: Path, step: int, frozen: Iterable[tuple[str, Tensor]], states: Iterable[tuple[str, Tensor, States]],
    state: dict[str, Any], generators: list[Any], dtype: torch.dtype, scale: float | None,
) -> None:  # fmt: skip
    for leftover in (run / f"{step}-ema", run / str(step)):  # of an earlier attempt that was cut short, else `latest` would know it
        shutil.rmtree(leftover, ignore_errors=True)
    with folder_written_whole(run / str(step)) as folder:
        module, averaged = {name: tensor.to(dtype) for name, tensor in frozen}, {}

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for name, master, moments in states:
                if not math.isfinite(master.norm()):
                    raise DivergedError(f"found values of {name} that are no numbers, expected finite ones; try a smaller --lr")
                module[name] = master.to(dtype)
                if "ema" in moments:
                    averaged[name] = moments["ema"].to(dtype)
                yield from ((f"{name}|{key}", tensor) for key, tensor in {"fp32": master, **moments}.items())

        write_shards(folder / TRAINING, "states", tensors())
        _save_weights(folder, module, step, scale)
        with writing():
            torch.save(generators, folder / TRAINING / RANDOM)
        files = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
        write_json(folder / TRAINING / STATE, state | {"files": files})
        if averaged:
            with folder_written_whole(run / f"{step}-ema") as ema_folder:
                _save_weights(ema_folder, module | averaged, step, scale)


def _save_weights(folder: Path, weights: dict[str, Tensor], step: int, scale: float | None) -> None:
    with writing():
        if scale is None:
            module = {SAT_PREFIX + name: tensor for name, tensor in weights.items()}
            torch.save({"module": module, "iteration": step}, folder / MODEL_STATES)
        else:
            save_low_rank(folder, weights, scale)


def forget_validation(folder: Path) -> None:
    """Record in a checkpoint that the validation which was due is made; else continuing makes it again, which does no harm."""
    path = folder / TRAINING / STATE
    try:
        write_json(path, read_json(path, "a checkpoint's state") | {"validation_due": False})
    except UserError as error:
        warn(f"{error}; training goes on")


def _remove_old(run: Path, step: int, keep: int) -> None:
    """Keep the last ones up to `step`; later ones, of a run that went back, are the user's."""
    for old in [other for other in checkpoint_steps(run) if other <= step][:-keep]:
        shutil.rmtree(run / f"{old}-ema", ignore_errors=True)
        shutil.rmtree(run / str(old), ignore_errors=True)


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the checkpoints in a run's folder, in order."""
    return sorted(int(entry.name) for entry in run.iterdir() if STEP.fullmatch(entry.name) and entry.is_dir())


class SavedState:
    """A whole checkpoint of an earlier run, read when asked."""

    def __init__(self, folder: Path):
        self.folder, self.values = folder, _read_state(folder)
        self.step: int = self.values["step"]
        self._files: dict[str, Path] = {}
        for path in sorted((folder / TRAINING).glob("states*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def states(self, name: str) -> States:
        """Master and optimizer states of one parameter."""
        found = {key.rpartition("|")[2]: path for key, path in self._files.items() if key.rpartition("|")[0] == name}
        if not found:
            raise UserError(f"{self.folder}: holds nothing for {name}; continue with the configuration the run was started with")
        states = {}
        for key, path in found.items():
            with safe_open(path, framework="pt") as file:
                states[key] = file.get_tensor(f"{name}|{key}")
        return states

    def restore(self, engine: Engine) -> None:
        """Put everything back into the engine; random generators only where there are as many processes as before."""
        names = set(engine.state_names)

        def read(name: str) -> States:
            states = self.states(name)
            if "ema" in names and "ema" not in states:
                states["ema"] = states["fp32"]
            return {key: value for key, value in states.items() if key == "fp32" or key in names}

        engine.load_states(read, self.values["updates"])
        engine.load_scaler_state(self.values["scaler"])
        if "ema" in names and rank() == 0 and not any(key.endswith("|ema") for key in self._files):
            warn(f"{self.folder}: holds no averaged weights; the average starts anew")
        before = self.values["processes"]
        # timesteps and noise are drawn by a batch's number among those of a step
        same_parts = before * self.values.get("accumulation", 1) == world_size() * engine.settings.accumulation
        if before == world_size():
            load_random_state(load_tensors(self.folder / TRAINING / RANDOM)[rank()])
        elif rank() == 0 and not same_parts:
            kept = "weights, optimizer, average and the order of the data are kept"
            warn(f"{before} processes before, {world_size()} now: {kept}; timesteps and noise are drawn anew, so losses will differ")


def _read_state(folder: Path) -> dict[str, Any]:
    """Check that a checkpoint is whole. Raises `UserError` saying what is missing."""
    path = folder / TRAINING / STATE
    if not path.is_file():
        raise UserError(f"{folder}: holds weights only, expected {TRAINING}/{STATE} beside them; start a new run from them with --load")
    state = read_json(path, "what an exact continuation needs", "continue from another checkpoint")
    kinds = {"version": int, "step": int, "updates": int, "processes": int, "files": dict, "scaler": dict, "sampler": dict}
    wrong = next((key for key, kind in kinds.items() if not isinstance(state, dict) or not isinstance(state.get(key), kind)), None)
    if wrong or not isinstance(state["sampler"].get("samples"), int):
        raise UserError(f"{path}: {wrong or 'sampler.samples'}: missing or damaged; continue from another checkpoint")
    if state["version"] != VERSION:
        raise UserError(f"{path}: found version {state['version']}, expected {VERSION}; continue it with the release that wrote it")
    for name, size in state["files"].items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != size:
            state_of_it = "is missing" if found is None else f"has {found} bytes in place of {size}"
            raise UserError(f"{folder / name}: {state_of_it}; continue from another checkpoint")
    return state


def find_run(save: Path, name: str) -> Path:
    """The run called `name` under `save` whose last checkpoint is the newest; says so if one that began later has none."""
    form = re.compile(rf"{re.escape(name)}-(\d{{8}}-\d{{6}})(?:-(\d+))?")  # as preparation.py calls them
    began = {run: (found[1], int(found[2] or 1)) for run in save.glob(f"{name}-*") if (found := form.fullmatch(run.name))}
    runs = [run for run in began if (run / "latest").is_file()]
    if not runs:
        raise UserError(f"args.resume: found no run of {name!r} with a checkpoint in {save}; name its folder, --resume FOLDER")
    run, newest = max(runs, key=lambda run: (run / "latest").stat().st_mtime_ns), max(began, key=began.get)
    if newest not in runs and began[newest] > began[run] and rank() == 0:
        warn(f"{newest}: the newest run has no checkpoint; continuing {run}")
    return run


def folder_of_run(path: Path) -> Path:
    """The run that `path` is, or is a checkpoint of. Raises `UserError` for what is neither."""
    if not path.is_dir():
        raise UserError(f"args.resume: {path}: found {kind_of(path)}, expected the folder of a run; check the path")
    if not ((path / MODEL_STATES).is_file() or (path / TRAINING).is_dir()):
        return path
    if not STEP.fullmatch(path.name):  # a copy, or averaged weights, which are refused as weights only
        step = _read_state(path)["step"]
        raise UserError(f"args.resume: {path}: found a checkpoint of another name, expected that of its step; rename it to {step}")
    return path.resolve().parent


def open_checkpoint(run: Path) -> SavedState:
    """The last checkpoint of a run that is whole: what `latest` names, or with a warning one before it."""
    if folder_of_run(run) != run:
        return SavedState(run)
    steps = checkpoint_steps(run)
    latest = run / "latest"
    named = latest.read_text(encoding="utf-8", errors="replace").strip() if latest.is_file() else ""
    steps = [step for step in steps if not STEP.fullmatch(named) or step <= int(named)]  # a user may go back by changing `latest`
    if not steps:
        raise UserError(f"args.resume: {run}: found no finished checkpoint; start anew without --resume")
    problems = []
    for step in reversed(steps):
        try:
            saved = SavedState(run / str(step))
        except UserError as error:
            problems.append(error)
            continue
        for problem in problems if rank() == 0 else ():
            warn(f"{problem}: taking checkpoint {step}")
        return saved
    raise problems[0]


def random_state() -> dict[str, Any]:
    """The state of this process's global random generators, as plain data and tensors."""
    numpy_state = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": [numpy_state[0], torch.from_numpy(numpy_state[1].astype(np.int64)), *map(float, numpy_state[2:])],
        "torch": torch.get_rng_state(),
    }
    if _has_device_generator():
        state["device"] = torch.get_device_module().get_rng_state().cpu()
    return state


def load_random_state(state: dict[str, Any]) -> None:
    """Put the states of the global random generators back."""
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), int(position), int(has_gauss), gauss))
    torch.set_rng_state(state["torch"])
    if "device" in state and _has_device_generator():
        torch.get_device_module().set_rng_state(state["device"])


def _has_device_generator() -> bool:
    module = torch.get_device_module()
    return module.is_available() and hasattr(module, "get_rng_state")


def metric_lines_until(path: Path, step: int, due: bool) -> Iterator[str]:
    """Lines of a metrics file up to `step`, without a validation of it that is `due`; a line cut short is left out."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            values = json.loads(line)
            if values["step"] <= step - (due and "validation_loss" in values):
                yield line
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
