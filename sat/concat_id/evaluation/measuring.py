"""From a sample to its scores: everything is decoded, detected and embedded once, and the result is kept by content."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from concat_id.config.cogvideox import FaceConfig
from concat_id.errors import UserError, one_line, warn
from concat_id.evaluation.clip_scores import clip_scores, viclip_scores
from concat_id.evaluation.face_tracks import FacelessError, Reference, assign, padded, read_reference
from concat_id.evaluation.fine_grained import PartEncoder, fine_grained_scores
from concat_id.evaluation.identity import identity_scores, published_similarity
from concat_id.evaluation.layouts import GeneratedVideo
from concat_id.evaluation.motion import motion_scores
from concat_id.evaluation.multi_person import multi_person_scores
from concat_id.evaluation.sampled_video import read_video
from concat_id.evaluation.user_metrics import MetricInput, UserMetric
from concat_id.face.detection import FaceDetector
from concat_id.face.parsing import SegformerParser
from concat_id.face.recognition import FaceRecognizer, load_recognizer, same_person
from concat_id.face.reference import choose_folders
from concat_id.face.tracking import FoundFace, Track, build_tracks, find_faces
from concat_id.files.json_files import recall_json, write_json
from concat_id.files.paths import file_digest, kind_of, resolve_path, safe_name, text_digest
from concat_id.models.clip import ClipEncoder
from concat_id.models.viclip import ViClipEncoder
from concat_id.video.writing import data_url
from concat_id.weights.loading import content_digest

VERSION = 11  # raise it when the same video would be scored differently
COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#e11d48")
CLIP, VICLIP = "models/clip-vit-base-patch32", "models/viclip"
CLIP_NEEDS = "the files of a CLIP model (such as openai/clip-vit-base-patch32 in the Hugging Face layout)"
PARSER_NEEDS = "the files of a Segformer that parses faces (jonathandinu/face-parsing)"
VICLIP_NEEDS = "ViCLIP-L_InternVid-FLT-10M.pth and CLIP's vocab.json and merges.txt"
THUMBNAIL = 132  # pixels of a frame's height in the report


@dataclass
class Instruments:
    """Everything that measures, loaded once. `not_computed` says for each metric without weights what is needed."""

    detector: FaceDetector
    recognizer: FaceRecognizer
    threshold: float
    num_frames: int = 16
    clip: ClipEncoder | None = None
    viclip: ViClipEncoder | None = None
    parts: PartEncoder | None = None
    metrics: Sequence[UserMetric] = ()
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
            "parser": None if self.parts is None else content_digest(self.parts.parser.folder),
            "threshold": self.threshold,
            "frames": self.num_frames,
            "metrics": [metric.digest for metric in self.metrics],
        }

    def reference(self, path: Path) -> Reference:
        """Find the face of a reference, once for all videos. Raises `UserError`."""
        if path not in self._references:
            self._references[path] = read_reference(path, self.detector, self.recognizer, self.parts)
        return self._references[path]

    def references(self, paths: Sequence[Path]) -> tuple[list[Reference], list[str]]:
        """Find the faces of several, and leave out what shows none, such as clothes, with a note. Raises `UserError` if none is left."""
        found, faceless = [], []
        for path in paths:
            try:
                found.append(self.reference(path))
            except FacelessError as error:
                faceless.append(error)
        if not found:
            raise faceless[0]
        return found, [f"{str(error).partition(';')[0]}, which is left out" for error in faceless]


def load_instruments(device: torch.device | str, *, detector: str | None = None, recognizer: str | None = None, clip: str = CLIP,
                     viclip: str | None = VICLIP, num_frames: int = 16, threshold: float | None = None, parser: str | None = None,
                     metrics: Sequence[UserMetric] = ()) -> Instruments:  # fmt: skip
    """Load what there is; metrics whose weights are missing are told instead of guessed. Without a `parser` nobody asks for FGIS.

    Raises `UserError` for faces, which all need.
    """
    folders = choose_folders(FaceConfig() if detector is None else FaceConfig(detector=detector, fallback_detector=detector))
    found = load_recognizer(recognizer, device)
    encoders, not_computed = {}, {}
    for option, folder, load, scores, needed in (
        ("clip", clip, ClipEncoder, ("clip_text", "clip_consistency", "clip_distance", "fgis"), CLIP_NEEDS),
        ("viclip", viclip, ViClipEncoder, ("viclip",), VICLIP_NEEDS),
        ("parser", parser, SegformerParser, ("fgis",), PARSER_NEEDS),
    ):
        if folder is None:
            continue
        path = resolve_path(folder)
        if (kind := kind_of(path)) == "a folder":
            encoders[option] = load(path, device)
        else:
            reason = f"put {needed} into {folder}, or name their folder by --{option}"
            if folder not in (CLIP, VICLIP, FaceConfig().parser):
                warn(f"--{option}: {folder}: {kind}, so {', '.join(scores)} will not be computed")
            not_computed |= {score: f"{not_computed[score]}; {reason}" if score in not_computed else reason for score in scores}
    chosen = same_person(found.name, found.threshold, threshold)
    if threshold is None and found.threshold is None:
        warn(f"{one_line(chosen)}; set --threshold to change it")
    detector, faces = FaceDetector(folders.detector, device), encoders.pop("parser", None)
    parts = PartEncoder(detector, faces, encoders["clip"]) if faces and "clip" in encoders else None
    return Instruments(detector, found, chosen.threshold, num_frames, **encoders, parts=parts, metrics=metrics, not_computed=not_computed)


def result_file(sample: GeneratedVideo, run: str, output: Path) -> Path:
    """Say where a sample's result is kept."""
    tail = text_digest(f"{sample.name}\n{sample.video}")[:8]
    return output / "videos" / safe_name(run) / f"{safe_name(sample.name)}-{tail}.json"


def measure_or_recall(sample: GeneratedVideo, file: Path, instruments: Instruments, overwrite: bool) -> tuple[dict[str, Any], bool]:
    """Return a sample's result without its thumbnails, and whether it was there already. Raises `UserError` for bad input."""
    if not sample.references:
        raise UserError(f"{sample.video}: found no reference image, expected one beside it or in its info.json; add it")
    digests = {"video": file_digest(sample.video), "references": [file_digest(path) for path in sample.references]}
    key = text_digest(json.dumps([digests, sample.prompt, instruments.identity], sort_keys=True))
    known = None if overwrite else _recall(file)
    if known is not None and known.get("key") == key and not known["failures"]:
        del known["thumbnails"]
        return known, True
    measured = measure(sample, instruments)
    of_image = dict(zip(map(str, sample.references), digests["references"], strict=True))
    for reference in measured["references"]:
        reference["digest"] = of_image[reference["image"]]
    result = {"key": key, "digests": digests, **measured}
    write_json(file, result | {"seal": _seal(result)})
    del result["thumbnails"]
    return result, False


def _seal(result: dict[str, Any]) -> str:
    return text_digest(json.dumps(result, sort_keys=True))


def _recall(file: Path) -> dict[str, Any] | None:
    """Read a result with its thumbnails; None unless it is as it was written."""
    result = recall_json(file) or {}
    return result if result.pop("seal", None) == _seal(result) else None


def read_thumbnails(result: dict[str, Any]) -> dict[str, list[str]]:
    """Read a result's data URLs, `references` (R) and `frames` (F), which stay on disk; none if it has been measured anew."""
    known = _recall(Path(result["file"]))
    return known["thumbnails"] if known is not None and known.get("key") == result["key"] else {"references": [], "frames": []}


def measure(sample: GeneratedVideo, instruments: Instruments) -> dict[str, Any]:
    """Compute all scores of a sample of R references with a face from F frames. Raises `UserError` for a video or references of no use.

    Of the result, which is kept as JSON, these are not plain: `scores` by column (None: cannot be said), `curves` and `copies` (R, F),
    similarity and copy-paste index by frame (None: no face), `interval`, 95 % bounds of the similarity over frames, `per_reference` (R,),
    similarity, `vectors` (R, D), the people's mean face vectors (None: no face), `faces_found` (F,), counts, `frames.indices` (F,) in the
    video of `frames.of` frames, `frames.size` (height, width) in pixels, `failures`, one line for each user's metric that failed.
    """
    references, faceless = instruments.references(sample.references)
    video = read_video(sample.video, instruments.num_frames)
    faces = find_faces([Image.fromarray(frame) for frame in video.frames], instruments.detector, instruments.recognizer)
    tracks = build_tracks(faces, instruments.threshold)
    people, others = assign(references, tracks, instruments.threshold)
    scores, details = identity_scores(references, people, len(faces))
    if len(references) == 1:
        seen = [many or find_faces([padded(Image.fromarray(frame))], instruments.detector, instruments.recognizer)[0]
                for many, frame in zip(faces, video.frames, strict=True)]  # fmt: skip
        scores["similarity_as_published"] = published_similarity(references[0], seen)
    scores |= multi_person_scores(references, people, others, len(faces), instruments.threshold)
    scores |= motion_scores(video.small, video.small_fps)
    notes = faceless + [f"{reference.path}: {note}" for reference in references for note in reference.notes]
    notes += [f"{video.count} of {video.announced} frames can be decoded, the rest is damaged"] if video.count < video.announced else []
    if video.count == 1:
        notes.append("a single image; motion, consistency of frames and ViCLIP are left out")
    elif scores["temporal_consistency"] is None:
        notes.append("its frames are of one colour; temporal consistency and flicker are left out")
    if not any(faces):
        notes.append(f"found no face in {'the image' if len(faces) == 1 else f'any of {len(faces)} frames'}, which scores 0")
    if instruments.clip is not None:
        more, remarks = clip_scores(instruments.clip, video.frames, sample.prompt, references, people)
        scores, notes = scores | more, notes + remarks
    if instruments.viclip is not None and video.count > 1:
        more, remarks = viclip_scores(instruments.viclip, video.frames, sample.prompt)
        scores, notes = scores | more, notes + remarks
    if instruments.parts is not None:
        scores |= fine_grained_scores(video.frames, [reference.parts for reference in references], people, instruments.parts)
    failures = []
    given = MetricInput(sample.video, sample.prompt, video.frames, video.indices, video.fps, references, faces, people)
    given.frames.flags.writeable = False
    for metric in instruments.metrics:
        try:
            scores |= metric.scores(given, scores)
        except UserError as error:
            failures.append(str(error))
    odd = [name for name, value in scores.items() if value is not None and not math.isfinite(value)]
    scores |= dict.fromkeys(odd)  # JSON has no such numbers, and one would spoil every mean
    notes += [f"{', '.join(odd)}: not a finite number, which damaged weights can cause; left out"] if odd else []
    return {
        "name": sample.name,
        "video": str(sample.video),
        "prompt": sample.prompt,
        "references": [{"image": str(item.path), "vector": [round(float(value), 6) for value in item.found.vector]} for item in references],
        "frames": {"indices": video.indices, "of": video.count, "fps": video.fps, "size": list(video.frames.shape[1:3])},
        "faces_found": [len(many) for many in faces],
        "scores": scores,
        **details,
        "notes": notes,
        "failures": failures,
        "thumbnails": _thumbnails(references, video.frames, people),
    }


def _thumbnails(references: Sequence[Reference], frames: np.ndarray, people: Sequence[Track]) -> dict[str, list[str]]:
    """Draw small versions of references and frames (F, H, W, 3), the assigned faces framed in the reference's colour, as data URLs."""
    drawn = []
    for number, frame in enumerate(frames):
        faces = {index: track.faces[number] for index, track in enumerate(people) if number in track.faces}
        drawn.append(data_url(_framed(frame, faces)))
    return {"references": [data_url(item.found.crop) for item in references], "frames": drawn}


def _framed(frame: np.ndarray, faces: dict[int, FoundFace]) -> Image.Image:
    image = Image.fromarray(frame)
    scale = THUMBNAIL / image.height
    image = image.resize((max(1, round(image.width * scale)), THUMBNAIL), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for index, found in faces.items():
        x0, y0, x1, y1 = (float(value) * scale for value in found.face.box)
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=COLOURS[index % len(COLOURS)], width=2)
    return image
