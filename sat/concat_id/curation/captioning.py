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

TOGETHER, BATCH = 64, 4  # videos whose clips share batches, and clips described at a time
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
    number, captioned = sum(not clip["caption"] for video in prepared for clip in video.record["clips"]), []
    with tqdm(total=number, unit="caption", dynamic_ncols=True, disable=not number) as progress:
        for start in range(0, len(prepared), TOGETHER):
            videos = [(video, video.record) for video in prepared[start : start + TOGETHER]]
            clips = [(video.folder, clip) for video, record in videos for clip in record["clips"] if not clip["caption"]]
            for first in range(0, len(clips), BATCH):
                _caption(clips[first : first + BATCH], captioner, instruction, settings)
                progress.update(len(clips[first : first + BATCH]))
            captioned += [PreparedVideo.of(video.folder, _with_words(record), video.recalled) for video, record in videos]
    return captioned


def _caption(clips: Sequence[tuple[Path, dict[str, Any]]], captioner: Any, instruction: str, settings: Settings) -> None:
    """Caption the clips of a batch, each with its video's folder, or put into a clip the `reason` why it has no caption."""
    asked = []
    for folder, clip in clips:
        file, cache = folder / clip["video_path"], folder.parent / ".captions" / f"{folder.name}.json"
        try:
            key = text_digest(f"{file_digest(file)} {settings.size} {captioner.digest} {instruction}")
            clip["caption"] = require((recall_json(cache) or {}).get(key, ""), WORDS, str(cache))
            if not clip["caption"]:
                asked.append((clip, cache, key, _frames(file, clip["end"] - clip["start"], settings)))
        except UserError as error:
            clip["reason"] = str(error)
    texts = captioner.describe([frames for *_, frames in asked], instruction) if asked else []
    for (clip, cache, key, _), text in zip(asked, texts, strict=True):
        clip["caption"] = text
        write_json(cache, (recall_json(cache) or {}) | {key: text})


def _with_words(record: dict[str, Any]) -> dict[str, Any]:
    """Discard the clips of a record that have no caption."""
    discarded = [{"start": clip["start"], "end": clip["end"],
                  "reason": f"no caption: {clip.get('reason', 'the captioner wrote no words')}"}
                 for clip in record["clips"] if not clip["caption"]]  # fmt: skip
    return record | {"clips": [clip for clip in record["clips"] if clip["caption"]], "discarded": record["discarded"] + discarded}


def _frames(file: Path, seconds: float, settings: Settings) -> list[Image.Image]:
    """Read evenly spaced frames of a clip, as far as training sees them."""
    frames = [np.asarray(load_image(file))] if is_image(file) else read_frames(file, f"fps={FRAMES / seconds:.6f}", settings.timeout_s)
    images = [visible_part(frame, settings.size) for frame in frames]
    for image in images:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return images[:FRAMES]
