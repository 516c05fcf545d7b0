"""From a sample to its scores: everything is decoded, detected and embedded once, and the result is kept by content."""

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from concat_id.config import FaceConfig
from concat_id.errors import UserError, one_line, warn
from concat_id.evaluation.faces import Reference, assign, read_reference
from concat_id.evaluation.frames import Video, read_video
from concat_id.evaluation.identity import identity_scores, published_similarity
from concat_id.evaluation.layouts import Sample
from concat_id.evaluation.motion import motion_scores
from concat_id.evaluation.people import people_scores
from concat_id.evaluation.text import clip_scores, viclip_scores
from concat_id.face.detection import Face, FaceDetector
from concat_id.face.loading import choose_folders
from concat_id.face.recognition import FaceRecognizer, load_recognizer, same_person
from concat_id.face.tracking import FoundFace, Track, build_tracks, find_faces
from concat_id.files import file_digest, resolve_path, safe_name, text_digest
from concat_id.json_files import recall_json, write_json
from concat_id.models.clip import ClipEncoder
from concat_id.models.viclip import ViClipEncoder
from concat_id.weights import content_digest

VERSION = 3  # raise it when the same video would be scored differently
COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#e11d48")
THUMBNAIL = 132  # pixels of a frame's height in the report
Obedience = Callable[[list[Image.Image], list[list[Face]], str], dict[str, bool | None]]


@dataclass
class Instruments:
    """Everything that measures, loaded once. `not_computed` says for each metric without weights what is needed."""

    detector: FaceDetector
    recognizer: FaceRecognizer
    threshold: float
    num_frames: int = 16
    clip: ClipEncoder | None = None
    viclip: ViClipEncoder | None = None
    obedience: Obedience | None = None
    not_computed: dict[str, str] = field(default_factory=dict)
    _references: dict[Path, Reference] = field(default_factory=dict)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Name everything but the sample that a result depends on."""
        return {
            "version": VERSION,
            "detector": file_digest(self.detector.file),
            "recognizer": file_digest(self.recognizer.file),
            "clip": None if self.clip is None else content_digest(self.clip.folder),
            "viclip": None if self.viclip is None else content_digest(self.viclip.file),
            "threshold": self.threshold,
            "frames": self.num_frames,
            "obedience": self.obedience is not None,
        }

    def reference(self, path: Path) -> Reference:
        """Find the face of a reference, once for all videos. Raises `UserError`."""
        if path not in self._references:
            self._references[path] = read_reference(path, self.detector, self.recognizer)
        return self._references[path]


def load_instruments(device: torch.device | str, *, detector: str | None, recognizer: str | None, clip: str, viclip: str, num_frames: int,
                     threshold: float | None, obedience: Obedience | None) -> Instruments:  # fmt: skip
    """Load what there is; metrics whose weights are missing are told instead of guessed. Raises `UserError` for faces, which all need."""
    folders = choose_folders(FaceConfig() if detector is None else FaceConfig(detector=detector, fallback_detector=detector))
    found = load_recognizer(recognizer, device)
    encoders = {"clip": None, "viclip": None}
    not_computed = {}
    if resolve_path(clip).exists():
        encoders["clip"] = ClipEncoder(resolve_path(clip), device)
    else:
        needed = f"put a CLIP model (such as openai/clip-vit-base-patch32 in the Hugging Face layout) into {clip}, or name it by --clip"
        not_computed |= dict.fromkeys(("clip_text", "clip_consistency", "clip_distance"), needed)
    if resolve_path(viclip).exists():
        encoders["viclip"] = ViClipEncoder(resolve_path(viclip), device)
    else:
        needed = "ViCLIP-L_InternVid-FLT-10M.pth and CLIP's vocab.json and merges.txt"
        not_computed["viclip"] = f"put {needed} into {viclip}, or name their folder by --viclip"
    if obedience is None:
        not_computed["obedience"] = "give --obedience"
    chosen = same_person(found.name, found.threshold, threshold)
    if threshold is None and found.threshold is None:
        warn(f"{one_line(chosen)}; set --threshold to change it")
    detector = FaceDetector(folders.detector, device)
    return Instruments(detector, found, chosen.threshold, num_frames, **encoders, obedience=obedience, not_computed=not_computed)


def result_file(sample: Sample, run: str, output: Path) -> Path:
    """Say where a sample's result is kept."""
    tail = text_digest(f"{sample.name}\n{sample.video}")[:8]
    return output / "videos" / safe_name(run) / f"{safe_name(sample.name)}-{tail}.json"


def measure_or_recall(sample: Sample, file: Path, instruments: Instruments, overwrite: bool) -> tuple[dict[str, Any], bool]:
    """Return a sample's result without its pictures, and whether it was there already. Raises `UserError` for bad input."""
    if not sample.references:
        raise UserError(f"{sample.video}: found no reference picture, expected one beside it or in its info.json; add it")
    try:
        digests = {"video": file_digest(sample.video), "references": [file_digest(path) for path in sample.references]}
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}), expected a file of {sample.video.parent}") from error
    key = text_digest(json.dumps([digests, sample.prompt, instruments.identity], sort_keys=True))
    known = None if overwrite else _recall(file)
    if known is not None and known.get("key") == key:
        del known["pictures"]
        return known, True
    result = {"key": key, "digests": digests, **measure(sample, instruments)}
    write_json(file, result | {"seal": _seal(result)})
    del result["pictures"]
    return result, False


def _seal(result: dict[str, Any]) -> str:
    return text_digest(json.dumps(result, sort_keys=True))


def _recall(file: Path) -> dict[str, Any] | None:
    """Read a result with its pictures; None unless it is as it was written."""
    result = recall_json(file) or {}
    return result if result.pop("seal", None) == _seal(result) else None


def read_pictures(result: dict[str, Any]) -> dict[str, list[str]]:
    """Read the pictures of a result, which stay on disk because benchmarks have thousands; none if it has been measured anew."""
    known = _recall(Path(result["file"]))
    return known["pictures"] if known is not None and known.get("key") == result["key"] else {"references": [], "frames": []}


def measure(sample: Sample, instruments: Instruments) -> dict[str, Any]:
    """Compute all scores of a sample. Raises `UserError` for a video or a reference that cannot be used."""
    references = [instruments.reference(path) for path in sample.references]
    video = read_video(sample.video, instruments.num_frames)
    images = [Image.fromarray(frame) for frame in video.frames]
    found = find_faces(images, instruments.detector, instruments.recognizer)
    tracks = build_tracks(found, instruments.threshold)
    count = len(video.frames)
    people = assign(references, tracks, count, instruments.threshold)
    scores, details = identity_scores(references, people, count)
    scores["similarity_as_published"] = published_similarity(references, found)
    scores |= people_scores(references, people, tracks, count, instruments.threshold)
    scores |= motion_scores(video.small, video.fps)
    notes = [f"{reference.path}: {note}" for reference in references for note in reference.notes]
    if not any(found):
        notes.append(f"found no face in any of {count} frames, which scores 0")
    if instruments.clip is not None:
        more, remarks = clip_scores(instruments.clip, video.frames, sample.prompt, references, people)
        scores, notes = scores | more, notes + remarks
    if instruments.viclip is not None:
        more, remarks = viclip_scores(instruments.viclip, video.frames, sample.prompt)
        scores, notes = scores | more, notes + remarks
    if instruments.obedience is not None and sample.prompt:
        faces = [[one.face for one in many] for many in found]
        told = instruments.obedience(images, faces, sample.prompt)
        judged = {name: None if value is None else bool(value) for name, value in told.items()}
        known = [value for value in judged.values() if value is not None]
        scores["obedience"] = float(np.mean(known)) if known else None
        details["attributes"] = judged
    return {
        "name": sample.name,
        "video": str(sample.video),
        "prompt": sample.prompt,
        "references": [{"image": str(item.path), "vector": [round(float(value), 6) for value in item.found.vector]} for item in references],
        "frames": {"indices": video.indices, "of": video.count, "fps": video.fps, "size": list(video.frames.shape[1:3])},
        "faces_found": [len(many) for many in found],
        "scores": scores,
        **details,
        "notes": notes,
        "pictures": _pictures(references, video, people),
    }


def _pictures(references: Sequence[Reference], video: Video, people: Sequence[Track]) -> dict[str, list[str]]:
    """Draw small versions of references and frames, the assigned faces framed in the reference's colour, as data URLs."""
    drawn = []
    for number, frame in enumerate(video.frames):
        faces = {index: track.faces[number] for index, track in enumerate(people) if number in track.faces}
        drawn.append(_data_url(_framed(frame, faces)))
    return {"references": [_data_url(item.found.crop) for item in references], "frames": drawn}


def _framed(frame: np.ndarray, faces: dict[int, FoundFace]) -> Image.Image:
    image = Image.fromarray(frame)
    scale = THUMBNAIL / image.height
    image = image.resize((max(1, round(image.width * scale)), THUMBNAIL), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for index, found in faces.items():
        x0, y0, x1, y1 = (float(value) * scale for value in found.face.box)
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=COLOURS[index % len(COLOURS)], width=2)
    return image


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
