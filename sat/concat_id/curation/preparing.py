"""One video to clips with reference crops, in a folder that is whole or absent, and the manifest of all of them."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from concat_id.config.cogvideox import FaceConfig
from concat_id.curation.clip_people import Demands, DiscardError, choose_people, match_names
from concat_id.curation.engines import CurationStage, Lost, Result
from concat_id.curation.prepared_videos import PreparedVideo, recall
from concat_id.curation.reference_crops import choose_references, count_verdicts, write_reference
from concat_id.curation.shots import SMALL, Span, changes, find_cuts, plan_clips
from concat_id.curation.source_videos import RECORD, SourceVideo
from concat_id.curation.summary_page import write_summary
from concat_id.curation.video_parts import NoFrameError, cut_clip, is_seen_alike, problem_of, read_frames, visible_part
from concat_id.data.checking import people_in_words
from concat_id.data.clips import UnknownCodecError, UnreadableClipError, Window, file_state, told_of
from concat_id.data.manifest import VECTORS
from concat_id.data.manifest_files import write_manifest
from concat_id.distributed import choose_device
from concat_id.errors import UserError, one_line
from concat_id.face.detection import CROP_SIZE
from concat_id.face.parsing import SegformerParser
from concat_id.face.recognition import DEFAULT_THRESHOLD, FaceRecognizer, load_recognizer
from concat_id.face.reference import FaceModels, load_face_models, require_parser
from concat_id.face.tracking import FoundFace, Track, build_tracks, embed_faces, find_faces
from concat_id.files.json_files import write_json
from concat_id.files.paths import file_digest, folder_written_whole, own_name, text_digest
from concat_id.video.transforms import load_image
from concat_id.video.writing import write_image
from concat_id.weights.loading import folder_digest

VERSION = 5  # raise it when the same video would give other clips
NEWER = {".avi": [6], ".flv": [6]}  # of such videos alone
EPSILON = 1e-3  # frames
SLACK = 2  # frames more where rates vary, as none may be shown where a clip ends


@dataclass(frozen=True)
class Settings:
    """What is asked for.

    `size` is (height, width) of the videos to train on; `rate` is sampled frames a second, `crop` a reference's side in pixels,
    `same_person` the cosine from which two faces are one person's.
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
    same_person: float = DEFAULT_THRESHOLD

    @property
    def window(self) -> Window:
        """What training reads of a clip."""
        return Window(self.fps, self.num_frames, self.skip, self.size)

    def clip_seconds(self, source_fps: float) -> float:
        """Length of the shortest clip that training fills without holding its last frame."""
        return (self.num_frames - 1) / self.fps + (2 * self.skip + 1) / source_fps


class FaceModelNames(NamedTuple):
    """Folders of the models that look at faces, None for the usual ones, and the device that they run on."""

    detector: str | None = None
    recognizer: str | None = None
    parser: str | None = None
    device: str = "auto"


def load_faces(models: FaceModelNames, needs_parser: bool) -> FaceModels:
    """Load detector and parser. Raises `UserError`, also where an oval would stand in for a parser that is needed."""
    own = {"detector": models.detector, "fallback_detector": models.detector} if models.detector else {}
    config = FaceConfig(**own | ({"parser": models.parser} if models.parser else {}))
    if needs_parser:
        require_parser(config)
    return load_face_models(config, choose_device(models.device))


@cache
def load_tools(models: FaceModelNames) -> tuple[FaceModels, FaceRecognizer]:
    """Load the models that look at faces, once. Raises `UserError`."""
    return load_faces(models, models.parser is not None), load_recognizer(models.recognizer, choose_device(models.device))


class Look(NamedTuple):
    """What is seen of a part of a video: sampled frames, the faces in each, and whether the file itself is the clip.

    `turned` is a photograph that had to be set upright, with a note that says so.
    """

    frames: list[Image.Image]
    found: list[list[FoundFace]]
    is_whole: bool
    turned: tuple[Image.Image, str] | None = None


class Preparation(CurationStage):
    """Prepares videos by `Settings`, each in a folder of its own that a later run takes over if nothing has changed."""

    def setup(self) -> None:
        """Load the models. Raises `UserError`."""
        super().setup()
        self.faces, self.recognizer = load_tools(self.models)
        digests = [file_digest(model.file) for model in (self.faces.detector, self.recognizer)]
        wanted = {name: value for name, value in asdict(self.settings).items() if name != "timeout_s"}
        parser = self.faces.parser
        self._identity = [VERSION, wanted, *digests, folder_digest(parser.folder) if isinstance(parser, SegformerParser) else parser.name]

    def process(self, source: SourceVideo) -> PreparedVideo:
        """Make the folder of a video. Raises `UserError` if the video cannot be read; nothing is left behind then."""
        folder = self.output / own_name(source.path)
        fingerprint = self._fingerprint(source)
        if (record := recall(folder, fingerprint)) is not None:
            record["clips"] = [clip | source.told for clip in record["clips"]]
            return PreparedVideo.of(folder, record, True)
        shutil.rmtree(folder, ignore_errors=True)
        with folder_written_whole(folder) as temporary:
            record = {"fingerprint": fingerprint, "source": str(source.path.absolute())} | self._make(source, temporary)
            record["files"] = {str(file.relative_to(temporary)): file.stat().st_size for file in temporary.rglob("*") if file.is_file()}
            write_json(temporary / RECORD, record)
        return PreparedVideo.of(folder, record, False)

    def _fingerprint(self, source: SourceVideo) -> str:
        newer = NEWER.get(source.path.suffix.lower(), [])
        own = [str(source.path.absolute()), file_state(source.path), source.identities, *newer]
        return text_digest(json.dumps([self._identity, own]))

    def _make(self, source: SourceVideo, folder: Path) -> dict[str, Any]:
        clips, vectors, discarded, first = [], {}, [], None
        facts = None if source.is_image else self._probe(source.path)
        for span in [Span(0.0, 0.0, whole=True)] if facts is None else self._spans(source.path, facts, discarded):
            try:
                clip, own, middles = self._make_clip(source, folder, span, facts, f"clip_{len(clips):03d}", first)
            except (DiscardError, NoFrameError) as reason:
                discarded.append(_place(span) | {"reason": str(reason)})
                continue
            clips.append(clip)
            vectors |= own
            first = middles if first is None else first
        if vectors:
            np.savez(folder / VECTORS, files=np.array(list(vectors)), vectors=np.stack(list(vectors.values())).astype(np.float32))
        return {"clips": clips, "discarded": discarded}

    def _probe(self, path: Path) -> dict[str, Any]:
        try:
            return self._reader.probe(path, self.settings.window)
        except UnreadableClipError as error:
            is_new = isinstance(error, UnknownCodecError)
            if is_new and (rate := told_of(path, r"([1-9][\d.]*) fps", self.settings.timeout_s)):
                return {"fps": float(rate), "varies": False, "height": 0, "width": 0}  # so that no clip is the file itself
            raise UserError(f"{path}: cannot be read ({error.reason}); convert it or leave it out") from error

    def _spans(self, path: Path, facts: dict[str, Any], discarded: list[dict[str, Any]]) -> list[Span]:
        """Divide a video at its cuts; what is too short goes to `discarded`."""
        fps = facts["fps"]
        wanted = self.settings.clip_seconds(fps) + facts["varies"] * SLACK / fps
        filters = f"fps={fps:.6f}:start_time=0,scale={SMALL[1]}:{SMALL[0]}:flags=area,setsar=1"
        frames = read_frames(path, filters, self.settings.timeout_s)
        change = changes(frames)
        spans, short = plan_clips(find_cuts(change), len(change), ceil(wanted * fps - EPSILON), fps, self.settings.max_clips)
        discarded += [_place(span) | {"reason": f"a shot of {span.seconds:.1f} s, expected {wanted:.1f}"} for span in short]
        return spans

    def _look_at_video(self, path: Path, span: Span, facts: dict[str, Any]) -> Look:
        filters = f"fps={max(self.settings.rate, 1 / span.seconds):.6f}"  # a frame of the shortest span
        decoded = list(read_frames(path, filters, self.settings.timeout_s, *span.part))
        frames = [visible_part(frame, self.settings.size) for frame in decoded]
        # Training reads frames without the shape of their pixels.
        is_whole = span.whole and decoded[0].shape[:2] == (facts["height"], facts["width"]) and not facts["held"]
        is_whole = is_whole and is_seen_alike(path, self._reader, self.settings.size, facts["fps"], self.settings.timeout_s)
        return Look(frames, find_faces(frames, self.faces.detector, self.recognizer), is_whole)

    def _look_at_photo(self, path: Path) -> Look:
        """Find the faces of a photograph as inference does, set upright if it lies, and keep those in the part that training sees."""
        photo, faces, note = self.faces.detector.search(load_image(path))
        frame = visible_part(np.asarray(photo), self.settings.size)
        left, top = (photo.width - frame.width) // 2, (photo.height - frame.height) // 2
        moved = [face.shifted(-left, -top) for face in faces]
        seen = [face for face in moved if (face.keypoints >= 0).all() and (face.keypoints < frame.size).all()]
        found = embed_faces([(frame, face) for face in seen], self.recognizer)
        return Look([frame], [found], note is None, (photo, note) if note else None)

    def _make_clip(self, source: SourceVideo, folder: Path, span: Span, facts: dict[str, Any] | None,
                   name: str, first: np.ndarray | None) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:  # fmt: skip
        """Return a clip's entry, the vectors of its crops by file name, and their mean for each person (N, D); `first` is that of the first
        clip, None for itself, `facts` is None for a photograph. Raises `DiscardError`.
        """
        look = self._look_at_photo(source.path) if facts is None else self._look_at_video(source.path, span, facts)
        (frames, found, is_whole, turned), threshold = look, self.settings.same_person
        people = choose_people(build_tracks(found, threshold), len(frames), self.settings.demands, threshold)
        if source.identities is not None and len(source.identities) != len(people):
            raise DiscardError(f"{people_in_words(len(people))}, but the list names {len(source.identities)}")
        chosen = choose_references(people, self.settings.references)
        middles = np.stack([np.mean([reference.vector for reference in references], axis=0) for references in chosen])
        names = [None] * len(people)
        if source.identities:
            names = match_names(source.identities, middles, middles if first is None else first, threshold)
        video = str(source.path.absolute()) if is_whole else f"{name}.png" if turned else f"{name}.mp4"
        if turned:
            write_image(folder / video, turned[0])
        elif not is_whole:
            cut_clip(source.path, folder / video, *span.part, self.settings.timeout_s)
            if problem := problem_of(folder / video, self._reader, self.settings.window):
                (folder / video).unlink()
                raise DiscardError(problem)

        entries, vectors = [], {}
        for place, (person, identity, references) in enumerate(zip(people, names, chosen, strict=True), 1):
            stem, kept = f"{name}_person_{place}", []
            (folder / stem).mkdir()
            for number, reference in enumerate(references):
                crop, mask = f"{stem}/{number}.png", folder / f"{stem}.masks" / f"{number}.png"
                face, frame = person.faces[reference.frame].face, frames[reference.frame]
                verdict = write_reference(folder / crop, mask, frame, face, self.faces.detector, self.faces.parser, self.settings.crop)
                seconds, quality = round(reference.frame / self.settings.rate, 2), round(reference.quality, 3)
                kept.append({"seconds": seconds, "quality": quality, "verdict": verdict.record()})
                vectors[crop] = reference.vector
            seen = _seen(person, len(frames), frames[0].size)
            entries.append({"folder": stem, "identity": identity, **seen, "references": kept})
        known = source.told | ({"note": turned[1]} if turned else {})
        return {"video_path": video, **known, **_place(span), "people": entries}, vectors, middles


def gather(
    sources: Sequence[Any], results: Iterable[Result], told: Callable[[Any, Any], str | None] = lambda source, result: None
) -> tuple[dict[int, Any], list[str]]:
    """Take the results of an engine, telling what `told` says of each; return what was made, by number, and what is wrong with the others.

    Both are in the order of `sources`, whatever that of `results` is.
    """
    made, problems = {}, {}
    with tqdm(total=len(sources), unit="video", dynamic_ncols=True) as progress:
        for number, result in results:
            source = sources[number]
            progress.set_description(one_line(source.path.name[:30]))
            progress.update()
            if isinstance(result, Lost):
                result = f"{source.path}: {result.reason}, twice; the same command tries it again, else leave it out"
            if isinstance(result, str):
                problems[number] = result
                continue
            made[number] = result
            if lines := told(source, result):
                progress.write(lines)
    return dict(sorted(made.items())), [problems[number] for number in sorted(problems)]


class ManifestClips:
    """The clips of all videos as entries of a manifest, with paths from its folder and without verdicts, made when asked for."""

    def __init__(self, prepared: Sequence[PreparedVideo]):
        self._prepared, self._number = prepared, sum(len(video.record["clips"]) for video in prepared)

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield them in the order of the videos."""
        for folder, record in ((video.folder, video.record) for video in self._prepared):
            for clip in record["clips"]:
                video = clip["video_path"] if Path(clip["video_path"]).is_absolute() else f"{folder.name}/{clip['video_path']}"
                people = [person | {"folder": f"{folder.name}/{person['folder']}", "references": _without_verdicts(person)}
                          for person in clip["people"]]  # fmt: skip
                identities = [person.get("identity") for person in people]
                yield (clip | {"video_path": video, "source": record["source"], "people": people}
                       | ({"identities": identities} if all(identities) else {}))  # fmt: skip


def conclude(
    output: Path, prepared: Sequence[PreparedVideo], failures: Sequence[str], recognizer: FaceRecognizer, threshold: float,
    shard_mb: float | None = None,
) -> list[str]:  # fmt: skip
    """Write the manifest of all videos, in shards if it is large, and summary.html; say in a line or two what they hold.

    Returns all that went wrong.
    """
    clips, file = ManifestClips(prepared), output / "manifest.json"
    discarded = [{"source": record["source"]} | entry for record in (video.record for video in prepared) for entry in record["discarded"]]
    own = {} if recognizer.threshold is None else {"threshold": recognizer.threshold}
    manifest = {"recognizer": recognizer.name, **own, "clips": clips, "discarded": discarded}
    write_manifest(output, manifest, shard_mb)
    verdicts = count_verdicts((video.folder, video.record) for video in prepared)
    write_summary(output / "summary.html", manifest, prepared, verdicts, threshold)
    told = f"{one_line(file)}: {len(clips)} clips of {len(prepared)} videos, {len(discarded)} discarded, "
    print(f"{told}{len(failures)} that cannot be used")
    if verdicts:
        print(f"reference crops: {verdicts}")
    if others := {record.parent for record in output.glob(f"[!.]*/{RECORD}")} - {video.folder for video in prepared}:
        print(one_line(f"{output}: {len(others)} more prepared folders are not listed; name all videos in one command, or remove them"))
    reason = "found no clip in any video, expected one or more; its `discarded` says why, change the options"
    return [*failures, *([] if clips else [f"{file}: {reason}"])]


def _seen(person: Track, num_frames: int, size: tuple[int, int]) -> dict[str, Any]:
    """Say where in frames of `size` (width, height) a person is, as shares of it, and in which share of them."""
    return {
        "position": round(person.position / size[0], 4),
        "box": [round(float(side), 4) for side in person.box / (*size, *size)],
        "presence": round(len(person.faces) / num_frames, 3),
    }


def _without_verdicts(person: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: value for key, value in reference.items() if key != "verdict"} for reference in person.get("references") or ()]


def _place(span: Span) -> dict[str, float]:
    return {"start": round(span.start, 3), "end": round(span.end, 3)}
