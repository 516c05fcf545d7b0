"""A stage of curation over many sources, by processes of this machine or by actors of a Ray cluster, with equal results.

The folders that a stage makes are the only checkpoint: a source that a process or a machine took with it is begun again.
"""

import errno
import faulthandler
import io
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stderr
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from concat_id.errors import UserError, reason_of, shortened, silence, tell, warn
from concat_id.startup import OFFLINE, QUIET, prepare_process, python_environment
from concat_id.workers import in_processes

HANGING = 20  # times the limit for reading a video: what takes that long as a whole hangs
MOST_BLOCKS = 10_000  # that Ray holds at a time; of more sources, several make a block
QUIET_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}
PROBE = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False)"
# Without the cluster's head Ray ends this process, past Python.
LAST_WORDS = "read -r line || echo 'error: the head of the Ray cluster, or this process, was ended; the same command goes on from here' >&2"


class CurationStage:
    """A step of curation over videos, which every process sets up for itself; it can be pickled until then.

    It takes so many `gpus` (shares of one are below 1), and after `seconds` a source must hang.
    `process` makes the folder of a source under `output`, whole or not at all, and returns its record. It raises `UserError`, as `setup`.
    """

    process: Callable[[Any], Any]

    def __init__(self, output: Path, settings: Any, models: Any, gpus: float):
        self.output, self.settings, self.models = output, settings, models
        self.gpus, self.seconds = gpus, HANGING * settings.timeout_s

    def setup(self) -> None:
        """Make ready what the stage takes along to no other process."""
        from concat_id.data.clips import ClipReader  # takes a second, and scripts look at their options first

        self._reader = ClipReader(self.settings.timeout_s)

    def close(self) -> None:
        """End the process that reads videos."""
        self._reader.close()


class Lost(NamedTuple):
    """Why two processes could not finish a source."""

    reason: str


Result = tuple[int, Any]  # which source, and its record, a problem as str, or `Lost`
_stage: CurationStage  # of this process


def _begin(stage: CurationStage) -> None:
    global _stage
    prepare_process()
    stage.setup()
    _stage = stage


def _continue(source: Any, stops: bool = False) -> Any:
    """Return a record or a problem. If it `stops`, a full disk raises `UserError`: it fails all that follow."""
    try:
        return _stage.process(source)
    except UserError as error:
        if stops and getattr(error.__cause__, "errno", None) == errno.ENOSPC:
            raise
        return str(error)


def local_engine(stage: CurationStage, sources: Sequence[Any], workers: int) -> Iterator[Result]:
    """Yield the results in the order of the sources, of this process or of several."""
    if workers > 1:
        with closing(in_processes(partial(_continue, stops=True), sources, workers, _begin, (stage,))) as results:
            yield from enumerate(results)
    else:
        _begin(stage)
        with closing(stage):
            yield from enumerate(_continue(source, stops=True) for source in sources)


def ray_engine(stage: CurationStage, sources: Sequence[Any], address: str | None, actors: int | None) -> Iterator[Result]:
    """Yield the results as they come, of actors of the cluster at `address` ("auto", HOST:PORT), or of a Ray of this machine's own.

    What an actor or a node took with it is tried once more, after all others. Raises `UserError` where no Ray answers or no actor fits.
    """
    with _cluster(address, actors) as ray:
        actors = _fitting(ray.cluster_resources(), stage.gpus, actors)
        lost = {number: Lost("the process that worked on it ended, or hung") for number in range(len(sources))}
        for attempt in range(2):
            if attempt and lost:
                warn(f"{len(lost)} of {len(sources)} were lost with a process or a machine of the cluster; each is tried once more")
            for number, result, told in _results(ray, stage, {number: sources[number] for number in lost}, actors) if lost else ():
                for line in told:
                    tell(line)
                lost[number] = result
                if not isinstance(result, Lost):
                    yield number, lost.pop(number)
        yield from lost.items()


class Actor:
    """A stage as Ray Data takes it: rows of bytes to rows of bytes."""

    def __init__(self, stage: CurationStage):
        _begin(stage)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Process the one source of a batch; if it hangs, the process ends."""
        number, source = pickle.loads(batch["row"][0])
        with redirect_stderr(io.StringIO()) as printed:
            faulthandler.dump_traceback_later(_stage.seconds, exit=True, file=2)
            try:
                result = _continue(source)
            except Exception as error:  # a list of a million has all kinds
                result = Lost(f"{type(error).__name__}: {reason_of(error)}")
            faulthandler.cancel_dump_traceback_later()
        told = [line for line in printed.getvalue().splitlines() if line.startswith("warning: ")]
        return {"row": [pickle.dumps((number, result, told))]}


def _results(ray: Any, stage: CurationStage, sources: dict[int, Any], actors: int) -> Iterator[tuple[int, Any, list[str]]]:
    """Yield number, result and warnings of the sources that come back."""
    rows = [{"row": pickle.dumps(item)} for item in sources.items()]
    made = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS)).map_batches(
        Actor, fn_constructor_args=(stage,), batch_size=1, num_cpus=1, num_gpus=stage.gpus,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(rows)), max_tasks_in_flight_per_actor=1),
        ray_remote_args_fn=lambda: {"max_restarts": -1, "max_task_retries": 0},
    )  # fmt: skip
    try:
        yield from (pickle.loads(row["row"]) for row in made.iter_rows())
    except ray.exceptions.RayError as error:
        told = [line for line in str(error).splitlines() if "Error" in line] or [str(error)]
        raise UserError(f"Ray gave up ({shortened(told[-1])}); mend it, the same command goes on from here") from error


def _fitting(cluster: dict[str, float], gpus: float, actors: int | None) -> int:
    """Return how many actors to ask for. Raises `UserError` where not a single one could ever start."""
    room = min(int(cluster.get(name, 0) / value) for name, value in (("CPU", 1), ("GPU", gpus)) if value)
    if room == 0:
        found = " and ".join(f"{cluster.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
        raise UserError(f"--engine ray: found {found} in the cluster, an actor needs 1 and {gpus:g}; start nodes "
                        "that have them, or ask for less (--gpus_per_actor)")  # fmt: skip
    if (actors or 0) > room:
        tell(f"the Ray cluster has room for {room} of {actors} actors; the others start when nodes join")
    return actors or room


@contextmanager
def _cluster(address: str | None, actors: int | None) -> Iterator[Any]:
    """Connect to a cluster, or start one that only this machine can reach, in a folder of its own; yield Ray."""
    if find_spec("ray") is None:
        raise UserError("--engine ray: found no package ray, which it needs; run bash scripts/setup.sh ray")
    os.environ |= QUIET_RAY if address else QUIET_RAY | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # 0: bound to 127.0.0.1
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="`ray_remote_args_fn` is deprecated")  # nothing else takes max_restarts
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.max_errored_blocks, context.max_consecutive_actor_init_deaths = False, -1, 5
    actor = {"env_vars": OFFLINE | QUIET | python_environment()}  # the project lies at the same path on every machine
    options = {"logging_level": logging.CRITICAL, "log_to_driver": False, "runtime_env": actor}
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        if address is None:
            options |= {"num_cpus": actors, "object_store_memory": 2**28, "include_dashboard": False, "_temp_dir": folder}
        try:
            if address:  # from where nobody answers, Ray itself does not return for minutes
                subprocess.run([sys.executable, "-c", PROBE, address], capture_output=True, check=True, timeout=25)
            with silence():
                connection = ray.init(address=address or "local", **options)
        except (OSError, RuntimeError, ValueError, subprocess.SubprocessError, ray.exceptions.RayError) as error:
            told = "no answer" if isinstance(error, subprocess.TimeoutExpired) else str(error)
            told = error.stderr.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else told
            reason = shortened((told.strip() or type(error).__name__).splitlines()[-1])
            raise UserError(f"--ray_address {address or '(none)'}: no Ray can be used there ({reason}), expected auto or HOST:PORT; "
                            "a cluster that has a token needs RAY_AUTH_MODE=token") from error  # fmt: skip
        with connection, subprocess.Popen(["sh", "-c", LAST_WORDS], stdin=subprocess.PIPE, start_new_session=True) as witness:
            try:
                yield ray
            finally:
                witness.stdin.write(b"\n")
