"""The process that decodes clips, `python -m concat_id.data.decoding`: it can be killed when a clip hangs, which a thread cannot.

It takes requests from the connection whose number it is given, and answers with a header and pixels, if there are any. It does not
import torch, so that it starts quickly.
"""

import re
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from PIL import Image

from concat_id.files.formats import CONTAINERS, LEAVE_OUT, container_of

READABLE = ("mov", "matroska", "avi", "flv", "asf")  # containers in which decord finds every frame
FAR = 300  # frames that are rather decoded than jumped over
FASTEST = 240.0  # frames a second to be believed without time stamps: H.264 copied into AVI is said to have 600
UNKNOWN = 1e9  # seconds, beyond which decord has no time of a frame, as of AVI with B-frames
NO_VIDEO = "no video in it"  # or of a codec that decord lacks
PLAIN = {  # for decord's words
    "cannot find video stream": NO_VIDEO,
    "av_read_frame failed|Error reading": "it is damaged or was cut short; make or copy it again",
}
EPSILON = 1e-4  # seconds; time stamps come in single precision


def choose_frames(times: np.ndarray, fps: float, num_frames: int, skip: int, position: float) -> tuple[np.ndarray, int]:
    """Choose the frames nearest in time to `num_frames` moments 1/`fps` apart; return their indices and how many hold the last one.

    `skip` frames of the source are left out at both ends, as long as one remains. `position` in [0, 1] places the window
    between the earliest and the latest start possible.
    """
    skip = min(skip, (len(times) - 1) // 2)
    usable = times[skip : len(times) - skip]
    room = max(usable[-1] - usable[0] - (num_frames - 1) / fps, 0.0)
    wanted = usable[0] + position * room + np.arange(num_frames) / fps
    if len(usable) == 1:
        return np.full(num_frames, skip), num_frames - 1
    right = np.searchsorted(usable, wanted).clip(1, len(usable) - 1)
    indices = np.where(wanted - usable[right - 1] <= usable[right] - wanted + EPSILON, right - 1, right)
    end = usable[-1] + (usable[-1] - usable[-2]) / 2 + EPSILON
    return indices + skip, int((wanted > end).sum())


class OpenClip:
    """A video file under decord: the times in seconds at which its frames are shown, and its frames.

    Raises `UserError` or `ValueError` for what is no video that it reads; decord itself would follow playlists to other files.
    """

    def __init__(self, path: str):
        import decord

        if (container := container_of(path)) not in READABLE:
            names = ", ".join(CONTAINERS[name][0] for name in READABLE)
            raise ValueError(f"found {CONTAINERS[container][0]}, expected {names}; convert it with `ffmpeg -i FILE NEW.mp4`")
        decord.logging.set_level(decord.logging.QUIET)
        with open(path, "rb") as file:  # decord cannot write every name
            self._reader = decord.VideoReader(f"/proc/self/fd/{file.fileno()}", decord.cpu(0), num_threads=1)
        self.average_fps = float(self._reader.get_avg_fps())
        times = self._reader.get_frame_timestamp(range(len(self._reader)))[:, 0].astype(np.float64)
        rises = (np.diff(times) >= 0).all() and (len(times) == 1 or times[-1] > times[0])
        is_timed = rises and np.abs(times).max() < UNKNOWN
        if not is_timed:
            if self.average_fps > FASTEST:
                raise ValueError("found no time stamps; convert it with `ffmpeg -i FILE NEW.mp4`")
            times = np.arange(len(times)) / self.average_fps
        # A clip cut without encoding anew starts at a key frame before the cut; what is before time 0 is not shown.
        hidden = int((times < -EPSILON).sum()) if times[-1] > 0 else 0
        self.times = times[hidden:]
        self._has_jumps = is_timed and not hidden

    def frames(self, indices: np.ndarray):
        """Yield frames (H, W, 3), uint8, of ascending indices into `times`; once.

        One after the other from the start of the clip: decord's jumps to key frames, which skipping frames and batches use as well,
        miss by some frames in open groups of images (x265's default) and where frames are hidden, and by many without times. Even
        `skip_frames` between two key frames, which spares a window some 10 % of its time, gives other frames of damaged files. Far
        into a long clip there is one jump, so distances between frames stay right.
        """
        at = 0  # counts without the hidden frames, which the decoder never hands out
        if indices[0] > FAR and self._has_jumps:
            at = int(indices[0])
            self._reader.seek_accurate(at)
        for index in map(int, indices):
            try:
                while at <= index:
                    frame = self._reader.next()
                    at += 1
            except StopIteration:
                raise ValueError(f"ends after {at} of {len(self.times)} frames") from None
            pixels = frame.asnumpy()
            if pixels.shape[2] != 3:  # decord takes the padding of some narrow frames' rows, such as of 48 pixels, for a channel
                height, width = pixels.shape[:2]
                pixels = pixels.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)
            yield pixels


def resize_and_crop(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cut the largest centred part with the aspect ratio of `size` (height, width) from a frame, and scale it without aliasing."""
    height, width = size
    scale = min(frame.shape[0] / height, frame.shape[1] / width)
    top, left = (frame.shape[0] - height * scale) / 2, (frame.shape[1] - width * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC, box=box))


def read_window(request: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """Decode the frames of a window; the header says how many frames hold the last one, and at what times all were shown."""
    clip = OpenClip(request["path"])
    arguments = {name: request[name] for name in ("fps", "num_frames", "skip", "position")}
    indices, held = choose_frames(clip.times, **arguments)
    unique, inverse = np.unique(indices, return_inverse=True)
    pixels = np.stack([resize_and_crop(frame, request["size"]) for frame in clip.frames(unique)])
    return {"held": held, "times": clip.times[indices].tolist()}, pixels[inverse]


def probe(request: dict[str, Any]) -> tuple[dict[str, Any], None]:
    """Describe a clip after decoding its first and its last frame, or all of them if `whole`."""
    clip = OpenClip(request["path"])
    count = len(clip.times)
    chosen = [np.arange(count)] if request["whole"] else [np.array([0]), np.array([count - 1])]
    shapes = {frame.shape[:2] for indices in chosen for frame in OpenClip(request["path"]).frames(indices)}
    gaps = np.diff(clip.times)
    varies = bool(count > 2 and gaps.max() - gaps.min() > 0.5 * np.median(gaps) + 2e-3)
    seconds = float(clip.times[-1] - clip.times[0] + (np.median(gaps) if count > 1 else 0))
    fps = count / seconds if seconds > 0 else clip.average_fps
    height, width = max(shapes)
    header = {"frames": count, "seconds": seconds, "fps": fps, "varies": varies, "height": height, "width": width}
    window = {name: request[name] for name in ("fps", "num_frames", "skip")}
    return header | {"held": choose_frames(clip.times, **window, position=0.5)[1]}, None


def answer(request: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray | None]:
    """Do what a request asks; whatever a decoder raises becomes the header's `error`, one line."""
    try:
        return {"window": read_window, "probe": probe}[request["task"]](request)
    except Exception as error:  # decoders raise whatever they like
        return {"error": complaint_of(error).removeprefix(f"{request['path']}: ")}, None


def complaint_of(error: Exception) -> str:
    """The first line of a decoder's complaint, without the time, the places in its source and the file's name."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if plain := next((plain for words, plain in PLAIN.items() if re.search(words, line)), None):
        return plain
    line = re.sub(r"^\[[\d:]+\] *|\S+\.(cc|cpp|c|h):\d+: *|\[/proc/[^]]*\] *", "", line)
    line = re.sub(r"^(.*Check failed: .*?)?(ERROR *|$)", "", line)
    return re.sub(r"(file)?/proc/self/fd/\d+[.]*", "the file", line).removesuffix(LEAVE_OUT)[:200] or "it is damaged"


def serve(connection: Connection) -> None:
    """Answer requests until the other end is closed, and die in the middle of one that takes longer than its `seconds`."""
    try:
        import decord  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return connection.send(({"error": f"decord cannot be imported ({complaint_of(error)})"}, None))
    connection.send(({}, None))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # kills, even inside a decoder, and even after the parent is gone
    with suppress(EOFError):
        while True:
            request = connection.recv()
            signal.setitimer(signal.ITIMER_REAL, request["seconds"])
            connection.send(answer(request))
            signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
