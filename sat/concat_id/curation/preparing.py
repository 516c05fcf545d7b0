"""One video to clips with reference pictures, in a folder that is whole or absent, and the manifest of all of them."""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from concat_id.config.cogvideox import FaceConfig
from concat_id.curation.frames import cut_clip, read_frames, visible_part
from concat_id.curation.people import Demands, DiscardError, Person, choose_people, follow, look, same_person_threshold
from concat_id.curation.references import Reference, choose_references, write_reference
from concat_id.curation.shots import SMALL, Window, changes, find_cuts, plan_windows
from concat_id.curation.sources import Source
from concat_id.data.clips import ClipReader, UnreadableClipError, file_state
from concat_id.data.clips import Window as TrainingWindow
from concat_id.data.manifest import VECTORS, read_clips
from concat_id.distributed import choose_device
from concat_id.errors import UserError, one_line
from concat_id.face.detection import CROP_SIZE, FaceDetector
from concat_id.face.models import load_face_models
from concat_id.face.recognition import FaceRecognizer, load_recognizer
from concat_id.face.reference import FaceParser
from concat_id.files import file_digest, folder_written_whole, kind_of, text_digest, written_whole
from concat_id.json_files import OBJECT, TEXT, list_of, recall_json, take, write_json
from concat_id.startup import prepare_process
from concat_id.transforms import load_image
from concat_id.workers import in_processes

VERSION = 2  # raise it when the same video would give other clips
RECORD = "video.json"


@dataclass(frozen=True)
class Settings:
    """What is asked for.

    `size` is (height, width) of the videos to train on; `rate` is sampled frames a second, `crop` a picture's side in pixels.
    """

    size: tuple[int, int] = (480, 720)
    num_frames: int = 49
    fps: float = 8.0
    skip: int = 3
    rate: float = 3.0
    max_clips: int | None = None
    references: int = 5
    crop: int = CROP_SIZE
    timeout_s: float = 600.0
    demands: Demands = field(default_factory=Demands)

    def clip_seconds(self, source_fps: float) -> float:
        """Length of the shortest clip that training fills without holding its last frame."""
        return (self.num_frames - 1) / self.fps + (2 * self.skip + 1) / source_fps


class FaceTools(NamedTuple):
    """The models that look at faces."""

    detector: FaceDetector
    recognizer: FaceRecognizer
    parser: FaceParser


class FaceModelNames(NamedTuple):
    """Folders of the models that look at faces, None for the usual ones, and the device that they run on."""

    detector: str | None = None
    recognizer: str | None = None
    device: str = "auto"


@cache
def load_tools(models: FaceModelNames) -> tuple[FaceTools, list[str]]:
    """Load the models, once; also return a line for each that stands in for another. Raises `UserError`."""
    device = choose_device(models.device)
    own = {"detector": models.detector, "fallback_detector": models.detector} if models.detector else {}
    faces = load_face_models(FaceConfig(**own), device)
    return FaceTools(faces.detector, load_recognizer(models.recognizer, device), faces.parser), faces.notices


class Prepared(NamedTuple):
    """What became of a video: its folder, its record, and whether an earlier run had made it."""

    folder: Path
    record: dict[str, Any]
    recalled: bool


class Preparation:
    """Prepares videos under `output`, each in a folder of its own that a later run takes over if nothing has changed."""

    def __init__(self, output: Path, settings: Settings, tools: FaceTools):
        self.output, self.settings, self.tools = output, settings, tools
        self.threshold = same_person_threshold(tools.recognizer.name)
        digests = [file_digest(model.file) for model in (tools.detector, tools.recognizer)]
        wanted = {name: value for name, value in asdict(settings).items() if name != "timeout_s"}
        self._identity = [VERSION, wanted, *digests, tools.parser.name]
        self._reader = ClipReader(settings.timeout_s)

    def prepare(self, source: Source) -> Prepared:
        """Make the folder of a video. Raises `UserError` if the video cannot be read; nothing is left behind then."""
        folder = self.output / source.name
        fingerprint = self._fingerprint(source)
        if (record := recall(folder, fingerprint)) is not None:
            return Prepared(folder, record, True)
        shutil.rmtree(folder, ignore_errors=True)
        with folder_written_whole(folder) as temporary:
            record = {"fingerprint": fingerprint, "source": str(source.path.absolute())} | self._make(source, temporary)
            record["files"] = {str(file.relative_to(temporary)): file.stat().st_size for file in temporary.rglob("*") if file.is_file()}
            write_json(temporary / RECORD, record)
        return Prepared(folder, record, False)

    def close(self) -> None:
        """End the process that reads videos."""
        self._reader.close()

    def _fingerprint(self, source: Source) -> str:
        own = [str(source.path.absolute()), file_state(source.path), source.caption, source.identities, source.split, source.recording]
        return text_digest(json.dumps([self._identity, own]))

    def _make(self, source: Source, folder: Path) -> dict[str, Any]:
        clips, vectors, discarded = [], {}, []
        facts = None if source.is_picture else self._probe(source.path)
        for window in [Window(0.0, 0.0, whole=True)] if facts is None else self._windows(source.path, facts, discarded):
            try:
                clip, own = self._make_clip(source, folder, window, facts, f"clip_{len(clips):03d}")
            except DiscardError as reason:
                discarded.append(_place(window) | {"reason": str(reason)})
                continue
            clips.append(clip)
            vectors |= own
        if vectors:
            with written_whole(folder / VECTORS) as temporary, open(temporary, "wb") as stream:
                np.savez(stream, files=np.array(list(vectors)), vectors=np.stack(list(vectors.values())).astype(np.float32))
        return {"clips": clips, "discarded": discarded}

    def _probe(self, path: Path) -> dict[str, Any]:
        try:
            window = TrainingWindow(self.settings.fps, self.settings.num_frames, self.settings.skip, self.settings.size)
            return self._reader.probe(path, window)
        except UnreadableClipError as error:
            raise UserError(f"{path}: cannot be read ({error.reason}); convert it or leave it out") from error

    def _windows(self, path: Path, facts: dict[str, Any], discarded: list[dict[str, Any]]) -> list[Window]:
        """Divide a video at its cuts; what is too short goes to `discarded`."""
        wanted = self.settings.clip_seconds(facts["fps"])
        filters = f"fps={facts['fps']:.6f},scale={SMALL[1]}:{SMALL[0]}:flags=area"
        frames = read_frames(path, filters, self.settings.timeout_s)
        cuts = [index / facts["fps"] for index in find_cuts(changes(frames))]
        windows, short = plan_windows(cuts, facts["seconds"], wanted, self.settings.max_clips)
        discarded += [_place(window) | {"reason": f"a shot of {window.seconds:.1f} s, expected {wanted:.1f}"} for window in short]
        return windows

    def _decode(self, path: Path, window: Window) -> list[np.ndarray]:
        filters = f"fps={max(self.settings.rate, 1 / window.seconds):.6f}"  # a frame of the shortest window
        return list(read_frames(path, filters, self.settings.timeout_s, window.start, window.seconds))

    def _make_clip(self, source: Source, folder: Path, window: Window, facts: dict[str, Any] | None,
                   name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:  # fmt: skip
        """Return a clip's entry and the vectors of its pictures by file name; `facts` is None for a picture. Raises `DiscardError`."""
        decoded = [np.asarray(load_image(source.path))] if facts is None else self._decode(source.path, window)
        frames = [visible_part(frame, self.settings.size) for frame in decoded]
        seen = look(frames, self.tools.detector, self.tools.recognizer)
        people = choose_people(follow(seen, self.threshold), len(frames), self.settings.demands, self.threshold)
        if source.identities is not None and len(source.identities) != len(people):
            raise DiscardError(f"{_count(len(people))}, but the list names {len(source.identities)}")
        chosen = choose_references(people, frames, self.settings.references)

        entries, vectors = [], {}
        for place, (person, references) in enumerate(zip(people, chosen, strict=True), 1):
            stem = f"{name}_person_{place}"
            (folder / stem).mkdir()
            for number, reference in enumerate(references):
                picture = f"{stem}/{number}.png"
                sighting, frame = person.sightings[reference.frame], frames[reference.frame]
                mask = folder / f"{stem}.masks" / f"{number}.png"
                write_reference(folder / picture, mask, frame, sighting, self.tools.detector, self.tools.parser, self.settings.crop)
                vectors[picture] = reference.vector
            identity = source.identities[place - 1] if source.identities else None
            entries.append(_entry(stem, identity, person, references, len(frames), frames[0].size, self.settings.rate))
        # Training reads frames without the container's rotation.
        if window.whole and (facts is None or decoded[0].shape[:2] == (facts["height"], facts["width"])):
            video = str(source.path.absolute())
        else:
            video = f"{name}.mp4"
            cut_clip(source.path, folder / video, window.start, window.seconds, self.settings.timeout_s)
        known = {"caption": source.caption, "split": source.split} | ({"recording": source.recording} if source.recording else {})
        return {"video_path": video, **known, **_place(window), "people": entries}, vectors


def recall(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the record of what was made for `fingerprint`, None unless it is all there; pictures may have been taken out by hand."""
    record = recall_json(folder / RECORD)
    try:
        if take(record, "fingerprint", TEXT, RECORD) != fingerprint:
            return None
        take(record, "source", TEXT, RECORD)
        take(record, "discarded", list_of(OBJECT), RECORD)
        sizes = take(record, "files", OBJECT, RECORD, optional=True) or {}  # older ones have none
        clips = read_clips(take(record, "clips", list_of(OBJECT), RECORD), folder, RECORD)
    except UserError:
        return None
    needed = [file for clip in clips for file in (clip.video, *(mask for person in clip.people for mask in person.masks))]
    changed = (name for name, size in sizes.items() if kind_of(folder / name) == "a file" and (folder / name).stat().st_size != size)
    return record if all(kind_of(file) == "a file" for file in needed) and not any(changed) else None


def prepare_all(
    output: Path, settings: Settings, models: FaceModelNames, sources: Sequence[Source], workers: int = 1
) -> tuple[list[Prepared], list[str]]:
    """Prepare videos in `workers` processes, telling what is discarded; return those that can be read and what is wrong with the others."""
    prepared, problems = [], []
    results = _results(output, settings, models, sources, workers)
    with tqdm(total=len(sources), unit="video", dynamic_ncols=True) as progress, results as made:
        for source, result in zip(sources, made, strict=True):
            progress.set_description(one_line(source.path.name[:30]))
            progress.update()
            if isinstance(result, str):
                problems.append(result)
                continue
            prepared.append(result)
            if not result.recalled and (result.record["discarded"] or not source.is_picture):
                progress.write(_summary(source, result.record))
    return prepared, problems


_preparation: Preparation | None = None  # of this process


def _start_worker(output: Path, settings: Settings, models: FaceModelNames) -> None:
    global _preparation
    prepare_process()
    _preparation = Preparation(output, settings, load_tools(models)[0])


def _prepare_one(source: Source) -> Prepared | str:
    try:
        return _preparation.prepare(source)
    except UserError as error:
        return str(error)


@contextmanager
def _results(
    output: Path, settings: Settings, models: FaceModelNames, sources: Sequence[Source], workers: int
) -> Iterator[Iterator[Prepared | str]]:
    if workers > 1:
        with closing(in_processes(_prepare_one, sources, workers, _start_worker, (output, settings, models))) as results:
            yield results
        return
    _start_worker(output, settings, models)
    try:
        yield map(_prepare_one, sources)
    finally:
        _preparation.close()


def _summary(source: Source, record: dict[str, Any]) -> str:
    lines = [one_line(f"{source.path}: {len(record['clips'])} clips")]
    lines += [f"    {entry['start']:.1f}-{entry['end']:.1f} s discarded: {entry['reason']}" for entry in record["discarded"]]
    return "\n".join(lines)


def collect(output: Path, prepared: Iterable[Prepared], recognizer: str) -> dict[str, Any]:
    """Write manifest.json, the clips of all videos with paths from `output`, and return it."""
    clips, discarded = [], []
    for folder, record, _ in prepared:
        for clip in record["clips"]:
            video = clip["video_path"] if Path(clip["video_path"]).is_absolute() else f"{folder.name}/{clip['video_path']}"
            people = [person | {"folder": f"{folder.name}/{person['folder']}"} for person in clip["people"]]
            identities = [person.get("identity") for person in people]
            clips.append(clip | {"video_path": video, "source": record["source"], "people": people}
                         | ({"identities": identities} if all(identities) else {}))  # fmt: skip
        discarded += [{"source": record["source"]} | entry for entry in record["discarded"]]
    manifest = {"recognizer": recognizer, "clips": clips, "discarded": discarded}
    write_json(output / "manifest.json", manifest)
    return manifest


def _entry(folder: str, identity: str | None, person: Person, references: list[Reference], num_frames: int,
           size: tuple[int, int], rate: float) -> dict[str, Any]:  # fmt: skip
    return {
        "folder": folder,
        "identity": identity,
        "position": round(person.position / size[0], 4),
        "box": [round(float(side), 4) for side in person.box / (*size, *size)],
        "presence": round(len(person.sightings) / num_frames, 3),
        "references": [{"seconds": round(reference.frame / rate, 2), "quality": round(reference.quality, 3)} for reference in references],
    }


def _place(window: Window) -> dict[str, float]:
    return {"start": round(window.start, 3), "end": round(window.end, 3)}


def _count(people: int) -> str:
    return "1 person" if people == 1 else f"{people} people"
