"""Frames of clips, read in a process of their own that is given up when it takes too long, and the list of clips that failed."""

import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from concat_id.data.decoding import NO_VIDEO, resize_and_crop
from concat_id.errors import UserError
from concat_id.startup import python_environment
from concat_id.video.transforms import load_image
from concat_id.video.writing import describe_video, video_line

START_SECONDS = 120.0  # a cold network disk may hold Python itself
ATTEMPTS = 3
SQUARE = "1:1"
Read = TypeVar("Read")


class UnreadableClipError(Exception):
    """A file that training goes on without: which, and why."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


class UnknownCodecError(UnreadableClipError):
    """A video whose codec decord lacks; ffmpeg may know it."""


@dataclass(frozen=True)
class Window:
    """Which frames of a clip: `num_frames` at `fps`, without `skip` source frames at both ends; `size` is (height, width).

    `position` in [0, 1] lies between the earliest start and the latest.
    """

    fps: float
    num_frames: int
    skip: int
    size: tuple[int, int]
    position: float = 0.5


@dataclass(frozen=True)
class Frames:
    """Frames (F, H, W, 3), uint8, the seconds at which the clip shows them, and how many at the end repeat the last one."""

    pixels: Tensor
    times: tuple[float, ...]
    held: int


class ClipReader:
    """Read clips through one decoding process, started by the first request and started anew after a hang or a crash.

    Survives fork and pickling: every process gets its own.
    """

    def __init__(self, timeout_s: float = 60.0):
        self.timeout_s = timeout_s
        self._process: _Process | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"timeout_s": self.timeout_s, "_process": None}

    def read(self, path: Path, window: Window) -> Frames:
        """Decode a window of a clip. Raises `UnreadableClipError`, after at most `timeout_s` seconds."""
        request = {"task": "window", "fps": window.fps, "num_frames": window.num_frames, "skip": window.skip}
        header, pixels = self._ask(path, request | {"size": window.size, "position": window.position})
        return Frames(torch.from_numpy(pixels), tuple(header["times"]), header["held"])

    def probe(self, path: Path, window: Window, whole: bool = False) -> dict[str, Any]:
        """Describe a clip: frames, seconds, fps, varies, height, width, how many frames of `window` it lacks (`held`), and the shape of its
        pixels, such as 4:3, which `read` does not heed (`sar`). Warns of HDR and of interlaced frames.
        """
        return self.measure(path, window, whole) | {"sar": told_of(path, r".*\bSAR (\d+:\d+)", self.timeout_s) or SQUARE}

    def measure(self, path: Path, window: Window, whole: bool = False) -> dict[str, Any]:
        """Describe a clip as `probe` does, but for the shape of its pixels, and without a warning."""
        request = {"task": "probe", "fps": window.fps, "num_frames": window.num_frames, "skip": window.skip, "whole": whole}
        return self._ask(path, request)[0]

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None and self._process.owner == os.getpid():
            self._process.kill()
        self._process = None

    def _ask(self, path: Path, request: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray | None]:
        for attempt in range(1, ATTEMPTS + 1):
            if self._process is not None and self._process.owner != os.getpid():
                self._process = None
            try:
                self._process = self._process or _Process()
                header, pixels = self._process.ask({**request, "path": str(path), "seconds": self.timeout_s + 1}, self.timeout_s)
            except TimeoutError as error:
                self.close()
                raise UnreadableClipError(path, f"not decoded within {self.timeout_s:g} s") from error
            except (EOFError, OSError) as error:
                started = self._process is not None
                self.close()
                if attempt < ATTEMPTS:  # it may be somebody else's doing
                    continue
                if started:
                    raise UnreadableClipError(path, "the decoder crashed") from error
                remedy = "try `-c 'import decord'`"
                raise UserError(f"{sys.executable}: the process that decodes clips does not start; {remedy}") from error
            except BaseException:  # Ctrl-C: the answer to this must not be taken for that to the next
                self.close()
                raise
            if "error" in header:
                if header["error"] == NO_VIDEO and (codec := self._codec(path)):
                    remedy = "which the reader of training clips does not know; convert it with `ffmpeg -i FILE NEW.mp4`"
                    raise UnknownCodecError(path, f"found {codec.upper()}, {remedy}")
                raise UnreadableClipError(path, header["error"])
            return header, pixels
        raise AssertionError

    def _codec(self, path: Path) -> str | None:
        """Return what ffmpeg calls the codec of a video, None where there is none, or ffmpeg cannot say."""
        try:
            return told_of(path, r"(\w+)", self.timeout_s)
        except UserError:
            return None


def told_of(path: Path, pattern: str, timeout_s: float) -> str | None:
    """Return what of ffmpeg's line about a video a `pattern` marks, None if there is none. Warns as `probe`; raises `UserError`."""
    told = re.search(pattern, video_line(describe_video(path, timeout_s)[0]))
    return told and told[1]


def read_image(path: Path, size: tuple[int, int]) -> Frames:
    """Read an image as a clip of one frame, cut to the middle as clips are. Raises `UnreadableClipError`."""
    pixels = resize_and_crop(np.asarray(readable(path)), size)
    return Frames(torch.from_numpy(pixels.copy())[None], (0.0,), 0)


def readable(path: Path, read: Callable[[Path], Read] = load_image) -> Read:
    """Read a file of a sample. Raises `UnreadableClipError` where `read` has something to tell the user."""
    try:
        return read(path)
    except UserError as error:
        raise UnreadableClipError(path, str(error).removeprefix(f"{path}: ")) from error


class _Process:
    """A running `concat_id.data.decoding` and the connection to it."""

    def __init__(self):
        environment = os.environ | python_environment() | {"OMP_NUM_THREADS": "1"}
        self.owner = os.getpid()
        self._connection, theirs = Pipe()
        with theirs:
            # Its own session, so that Ctrl-C reaches the trainer alone, which may want another batch before it saves.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "concat_id.data.decoding", str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        try:
            header, _ = self._receive(START_SECONDS)
        except (EOFError, OSError) as error:
            self.kill()
            raise EOFError from error
        if "error" in header:
            self.kill()
            raise UserError(f"{header['error']}; install it with `pip install -r requirements.txt`")

    def ask(self, request: dict[str, Any], seconds: float) -> tuple[dict[str, Any], np.ndarray | None]:
        """Send a request and return header and pixels of the answer. Raises `TimeoutError`, or `EOFError` or `OSError` after a crash."""
        self._connection.send(request)
        return self._receive(seconds)

    def kill(self) -> None:
        """End the process, without waiting for one that the kernel itself holds."""
        self._process.kill()
        self._connection.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.returncode = -9  # stuck on a dead network disk; nobody can reap it now

    def _receive(self, seconds: float) -> tuple[dict[str, Any], np.ndarray | None]:
        if not self._connection.poll(seconds):
            raise TimeoutError
        return self._connection.recv()


class BadFiles:
    """`bad_clips.jsonl`: what could not be read and why, shared by all processes of a run and by its later continuations.

    An entry counts as long as the file's size and time of change stay; delete its line to have the file tried again.
    Without a path, the list is kept in memory.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        self._known: dict[str, Any] = {}
        self._size = 0  # of the file, in bytes, when it was read

    def reason(self, file: Path) -> str | None:
        """Why a file was given up, None if it was not or has changed since."""
        self._refresh()
        entry = self._known.get(str(file))
        return entry["reason"] if entry is not None and entry["state"] == file_state(file) else None

    def add(self, file: Path, reason: str, source: str) -> None:
        """Note a file, once. A list that cannot be written is kept in memory."""
        if self.reason(file) is not None:
            return
        entry = {"file": str(file), "reason": reason, "source": source, "state": file_state(file)}
        self._known[str(file)] = entry
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab", buffering=0) as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)  # released when closed; appending alone is not atomic on network disks
                stream.write(json.dumps(entry).encode() + b"\n")
        except OSError:
            pass

    def _refresh(self) -> None:
        """Take in the lines that other processes have added."""
        try:
            if self.path is None or (size := self.path.stat().st_size) == self._size:
                return
            self._size, lines = size, self.path.read_bytes().splitlines()
        except OSError:
            return
        for line in lines:
            try:
                entry = json.loads(line)
                self._known[entry["file"]] = {"reason": entry["reason"], "state": entry["state"]}
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # a line cut off by a full disk, or not yet whole


def file_state(file: Path) -> list[int] | None:
    """Size and time of change of a file, None if it is not there; a list, as JSON gives it back."""
    try:
        state = file.stat()
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns]
