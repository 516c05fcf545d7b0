"""Captions for the clips that have none, by an image-text model that looks at frames of each."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from concat_id.curation.prepared_videos import PreparedVideo
from concat_id.curation.preparing import Settings
from concat_id.curation.video_parts import read_frames, visible_part
from concat_id.distributed import choose_device
from concat_id.errors import UserError
from concat_id.files.formats import is_image
from concat_id.files.json_files import WORDS, recall_json, require, write_json
from concat_id.files.paths import file_digest, read_text, text_digest
from concat_id.video.transforms import load_image

BATCH = 4  # clips described at a time
FRAMES = 6  # of a clip
LARGEST_SIDE = 672  # pixels of a frame
INSTRUCTION = (
    "These images are frames of one video, in order. Describe the video in one or two sentences: what the people do, the clothes they "
    "wear, the place and the light. Say nothing about faces, hair, age or who anybody is, and do not mention images or frames."
)


def captioning(folder: Path | None, prompt: Path | None, device: str, settings: Settings) -> Callable[[Sequence[PreparedVideo]], Any]:
    """Check model and instruction; return what gives clips their captions, nothing where there is no model. Raises `UserError`."""
    if folder is None:
        return lambda prepared: prepared
    from concat_id.models.captioner import Captioner  # takes seconds

    instruction = INSTRUCTION if prompt is None else read_text(prompt, "what to ask of the captioner").strip()
    if not instruction:
        raise UserError(f"--caption_prompt: {prompt}: found no words, expected what to ask of the captioner; write it there")
    return partial(caption_clips, captioner=Captioner(folder, choose_device(device)), instruction=instruction, settings=settings)


def caption_clips(prepared: Sequence[PreparedVideo], captioner: Any, instruction: str, settings: Settings) -> list[PreparedVideo]:
    """Put captions into the records of videos, where there are none; a clip that cannot be described is discarded, with the reason.

    What is written is kept in .captions/ beside the folders, by content of clip and weights and by instruction, and not asked for again.
    """
    wanted = [sum(not clip["caption"] for clip in video.record["clips"]) for video in prepared]
    captioned, waiting, pending = [], [], 0
    with tqdm(total=sum(wanted), unit="caption", dynamic_ncols=True, disable=not any(wanted)) as progress:
        for number, video in enumerate(prepared):
            waiting.append((video, video.record if wanted[number] else None))
            pending += wanted[number]
            if pending < BATCH and number + 1 < len(prepared):
                continue
            clips = [(video.folder, clip) for video, record in waiting if record for clip in record["clips"] if not clip["caption"]]
            reasons: dict[int, str] = {}
            for start in range(0, len(clips), BATCH):
                reasons |= _caption(clips[start : start + BATCH], captioner, instruction, settings)
                progress.update(len(clips[start : start + BATCH]))
            for video, record in waiting:
                captioned.append(PreparedVideo.of(video.folder, _with_words(record, reasons), video.recalled) if record else video)
            waiting, pending = [], 0
    return captioned


def _caption(clips: Sequence[tuple[Path, dict[str, Any]]], captioner: Any, instruction: str, settings: Settings) -> dict[int, str]:
    """Caption the clips of a batch, each with its video's folder; return why some have no caption, by `id`."""
    asked, reasons = [], {}
    for folder, clip in clips:
        file, cache = folder / clip["video_path"], folder.parent / ".captions" / f"{folder.name}.json"
        try:
            key = text_digest(f"{file_digest(file)} {settings.size} {captioner.digest} {instruction}")
            clip["caption"] = require((recall_json(cache) or {}).get(key, ""), WORDS, str(cache))
            if not clip["caption"]:
                asked.append((clip, cache, key, _frames(file, clip["end"] - clip["start"], settings)))
        except UserError as error:
            reasons[id(clip)] = str(error)
    texts = captioner.describe([frames for *_, frames in asked], instruction) if asked else []
    for (clip, cache, key, _), text in zip(asked, texts, strict=True):
        clip["caption"] = text
        write_json(cache, (recall_json(cache) or {}) | {key: text})
    return reasons


def _with_words(record: dict[str, Any], reasons: dict[int, str]) -> dict[str, Any]:
    """Discard the clips of a record that have no caption."""
    silent = [clip for clip in record["clips"] if not clip["caption"]]
    discarded = [{"start": clip["start"], "end": clip["end"],
                  "reason": f"no caption: {reasons.get(id(clip), 'the captioner wrote no words')}"} for clip in silent]  # fmt: skip
    return record | {"clips": [clip for clip in record["clips"] if clip["caption"]], "discarded": record["discarded"] + discarded}


def _frames(file: Path, seconds: float, settings: Settings) -> list[Image.Image]:
    """Read evenly spaced frames of a clip, as far as training sees them."""
    frames = [np.asarray(load_image(file))] if is_image(file) else read_frames(file, f"fps={FRAMES / seconds:.6f}", settings.timeout_s)
    images = [visible_part(frame, settings.size) for frame in frames]
    for image in images:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return images[:FRAMES]
