"""The process that makes the page's videos. It keeps the model loaded, and is ended to stop, which frees the device at once."""

import io
import multiprocessing
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from concat_id.config.loading import load_config
from concat_id.config.presets import choose
from concat_id.config.schema import Config
from concat_id.errors import UserError, reason_of

SOURCE = "your request"
PREVIEWS = 6  # of a video
PREVIEW_HEIGHT = 240  # pixels
SILENCE = 0.5  # seconds after which `make` yields although nothing has happened


@dataclass(frozen=True)
class VideoRequest:
    """A video to make: `settings` are keys of `args:`, photos lists of every person's, left to right."""

    model: str
    task: str
    prompt: str
    photos: tuple[list[str], ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def config(self) -> Config:
        """The configuration to make it with. Raises `UserError`."""
        return load_config(choose(self.model, self.task), self.settings)


class Event(NamedTuple):
    """What becomes of a request.

    "waiting" (for so many), "loading", "notes" (sentences), "step" (done, of), "preview" (JPEG), "made" (folder), "failed" (sentence),
    "stopped".
    """

    kind: str
    value: Any = None


@dataclass(eq=False)
class _Job:
    """A request that is being made or waits."""

    owner: Any
    stopped: bool = False


class Worker:
    """Makes one request at a time in a process of its own, in the order in which they come."""

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None
        self._killed: multiprocessing.process.BaseProcess | None = None  # the last that was ended on purpose
        self._jobs: list[_Job] = []  # the first is being made

    def make(self, request: VideoRequest, owner: Any = None) -> Iterator[Event | None]:
        """Make a request for `owner`; yields what happens, the last of it "made", "failed" or "stopped", and None in silence.

        A caller that stops listening ends the process, or gives up its place.
        """
        job = _Job(owner)
        self._jobs.append(job)
        try:
            while not job.stopped and (before := self._jobs.index(job)):
                yield Event("waiting", before)
                time.sleep(SILENCE)
            yield from self._made(request, job)
        finally:
            self._jobs.remove(job)

    def _made(self, request: VideoRequest, job: _Job) -> Iterator[Event | None]:
        if job.stopped:
            yield Event("stopped")
            return
        process, connection = self._started()
        finished = False
        try:
            connection.send(request)
            while not finished and not job.stopped:
                event = connection.recv() if connection.poll(SILENCE) else None
                finished = event is not None and event.kind in ("made", "failed")
                yield event
            if not finished:
                yield Event("stopped")
        except (EOFError, OSError):
            process.join(5)
            finished = True
            told = f"the process that makes videos ended with exit code {process.exitcode}; the console has the details"
            if process.exitcode == -signal.SIGKILL:
                told = "the process that makes videos was killed, as the system does where memory is full; take fewer frames"
            yield Event("stopped") if process is self._killed else Event("failed", told)
        finally:
            if not finished:
                self._kill(process)

    def stop(self, owner: Any) -> bool:
        """End what is being made or waits for `owner`; its `make` says "stopped". Tells whether there was anything."""
        jobs = [job for job in self._jobs if job.owner == owner]
        for job in jobs:
            job.stopped = True
        if jobs and jobs[0] in self._jobs[:1] and self._process is not None:
            self._kill(self._process)
        return bool(jobs)

    def close(self) -> None:
        """End the process; an idle one ends by itself, which leaves nothing for Python to warn of."""
        if self._process is not None:
            if not self._jobs:
                self._connection.close()
                self._process.join(5)
            self._kill(self._process)
            self._process.join(5)

    def _kill(self, process: multiprocessing.process.BaseProcess) -> None:
        if process is self._process:
            self._killed = process
        process.kill()

    def _started(self) -> tuple[multiprocessing.process.BaseProcess, Connection]:
        """The process and the connection to it, new ones where the last process has ended or is ending."""
        if self._process is None or self._process is self._killed or not self._process.is_alive():
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        return self._process, self._connection


def serve(connection: Connection) -> None:
    """Make the requests that come, until there are no more."""
    from concat_id.startup import prepare_process

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's
    prepare_process()
    kept: list = []  # digests of the last pipeline's weights, and the pipeline
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the server has gone
        while True:
            _answer(connection, kept)


def _answer(connection: Connection, kept: list) -> None:
    request = connection.recv()
    connection.send(Event("loading"))
    try:
        event = Event("made", str(_make(request, connection, kept)))
    except UserError as error:
        event = Event("failed", str(error).removeprefix(f"{SOURCE}: "))
    except BrokenPipeError:
        raise
    except (OSError, MemoryError) as error:
        event = Event("failed", f"{reason_of(error)}; see whether the disk or the memory is full")
    except Exception:
        traceback.print_exc()
        event = Event("failed", "something went wrong that should not; the console has the details")
    connection.send(event)


def _make(request: VideoRequest, connection: Connection, kept: list) -> Path:
    """Make a video as sat/sample_video.py does; returns its folder."""
    from concat_id.distributed import choose_device
    from concat_id.evaluation.ranking import TakeJudge
    from concat_id.sampling.jobs import finished_folders, make_job
    from concat_id.sampling.pipeline import make_pipeline
    from concat_id.sampling.run import embed_prompts, make_videos, prepare_jobs, result_settings, warn_of_the_unknown
    from concat_id.sampling.takes import rank_takes

    config = request.config()
    output, device = Path(config.args.output_dir), choose_device(config.args.device)
    job = make_job(0, request.prompt.strip(), request.photos, SOURCE, config.model.transformer.max_refs)
    settings = result_settings(config)
    pipeline = make_pipeline(config, device, cache_dir=output / ".prompt_embeddings")
    if kept[:1] == [settings["weights"]]:  # files may have been replaced
        pipeline.adopt(kept[1])
    prepared, problems = prepare_jobs([job], pipeline, settings)
    if prepared:  # a refused photo leaves what is loaded
        kept[:] = settings["weights"], pipeline
    notes = warn_of_the_unknown([job], config) + embed_prompts(prepared, pipeline)
    connection.send(Event("notes", [note.removeprefix(f"{SOURCE}: ") for note in notes]))
    _, failures = make_videos(prepared, pipeline, settings, partial(_show, connection, pipeline))
    for problem in [*problems.values(), *failures]:
        raise UserError(problem)
    folder = finished_folders(output).get(job.fingerprint(settings))
    if folder is None:
        raise UserError("another process is making this video; wait for it, or change the seed")
    with suppress(UserError):  # without a face on the photo there is no likeness, but a video
        rank_takes(folder, TakeJudge())
    return folder


def _show(connection: Connection, pipeline: Any, done: int, of: int, estimate: Any) -> None:
    """Send what is done, and now and then the first frame of the estimate."""
    from PIL import Image

    connection.send(Event("step", (done, of)))
    every = max(1, pipeline.config.model.sampler.num_inference_steps // PREVIEWS)
    if not done or done % every:
        return
    with suppress(UserError):  # an estimate of no use ends the video by itself
        frame = Image.fromarray(pipeline.decode(estimate[:, :1])[0])
        frame.thumbnail((4 * PREVIEW_HEIGHT, PREVIEW_HEIGHT))
        written = io.BytesIO()
        frame.save(written, "JPEG", quality=85)
        connection.send(Event("preview", written.getvalue()))
