"""Captions for the clips that have none, by an image-text model that looks at frames of each."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from concat_id.curation.preparing import PreparedVideo, Settings
from concat_id.curation.video_parts import read_frames, visible_part
from concat_id.distributed import choose_device
from concat_id.errors import UserError
from concat_id.files.formats import is_image
from concat_id.files.json_files import WORDS, recall_json, write_json
from concat_id.files.paths import file_digest, read_text, text_digest
from concat_id.video.transforms import load_image

if TYPE_CHECKING:
    from concat_id.models.captioner import Captioner

BATCH = 4  # clips described at a time
FRAMES = 6  # of a clip
LARGEST_SIDE = 672  # pixels of a frame
INSTRUCTION = (
    "These images are frames of one video, in order. Describe the video in one or two sentences: what the people do, the clothes they "
    "wear, the place and the light. Say nothing about faces, hair, age or who anybody is, and do not mention images or frames."
)

Captioning = Callable[[Sequence[PreparedVideo]], list[PreparedVideo]]


class _Job(NamedTuple):
    """A clip without a caption: its video's folder, its number there, its file, and its length in seconds."""

    folder: Path
    number: int
    file: Path
    seconds: float


def captioning(folder: Path | None, prompt: Path | None, device: str, settings: Settings) -> Captioning:
    """Check model and instruction; return what gives clips their captions, nothing where there is no model. Raises `UserError`."""
    if folder is None:
        return list
    from concat_id.models.captioner import Captioner  # takes seconds

    instruction = INSTRUCTION if prompt is None else read_text(prompt, "what to ask of the captioner").strip()
    if not instruction:
        raise UserError(f"--caption_prompt: {prompt}: found no words, expected what to ask of the captioner; write it there")
    return partial(caption_clips, captioner=Captioner(folder, choose_device(device)), instruction=instruction, settings=settings)


def caption_clips(prepared: Sequence[PreparedVideo], captioner: "Captioner", instruction: str, settings: Settings) -> list[PreparedVideo]:
    """Return the videos with a caption for every clip; a clip that cannot be described is discarded, with the reason.

    What is written is kept in .captions/ beside the folders, by content of clip and weights and by instruction, and not asked for again.
    """
    jobs = [_Job(folder, number, folder / clip["video_path"], clip["end"] - clip["start"])
            for folder, record, _ in prepared for number, clip in enumerate(record["clips"]) if not clip["caption"]]  # fmt: skip
    captions: dict[tuple[Path, int], str | UserError] = {}
    with tqdm(total=len(jobs), unit="caption", dynamic_ncols=True, disable=not jobs) as progress:
        for start in range(0, len(jobs), BATCH):
            batch = jobs[start : start + BATCH]
            results = _captions(batch, captioner, instruction, settings)
            captions |= {(job.folder, job.number): result for job, result in zip(batch, results, strict=True)}
            progress.update(len(batch))
    return [_with_captions(video, captions) for video in prepared]


def _captions(jobs: Sequence[_Job], captioner: "Captioner", instruction: str, settings: Settings) -> list[str | UserError]:
    """Recall the captions of some clips or have them written."""
    results: list[str | UserError] = [""] * len(jobs)
    asked = []
    for place, job in enumerate(jobs):
        try:
            key = text_digest(f"{file_digest(job.file)} {settings.size} {captioner.digest} {instruction}")
            known = (recall_json(_cache(job)) or {}).get(key)
            if WORDS.fits(known) and known:
                results[place] = known
            else:
                asked.append((place, key, _frames(job, settings)))
        except UserError as error:
            results[place] = error
    texts = captioner.describe([frames for *_, frames in asked], instruction) if asked else []
    for (place, key, _), text in zip(asked, texts, strict=True):
        results[place] = text or UserError("the captioner wrote no words")
        if text:
            write_json(_cache(jobs[place]), (recall_json(_cache(jobs[place])) or {}) | {key: text})
    return results


def _cache(job: _Job) -> Path:
    return job.folder.parent / ".captions" / f"{job.folder.name}.json"


def _frames(job: _Job, settings: Settings) -> list[Image.Image]:
    """Read evenly spaced frames, as far as training sees them."""
    if is_image(job.file):
        frames = [np.asarray(load_image(job.file))]
    else:
        frames = list(read_frames(job.file, f"fps={FRAMES / job.seconds:.6f}", settings.timeout_s, 0.0, job.seconds))[:FRAMES]
    images = [visible_part(frame, settings.size) for frame in frames]
    for image in images:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return images


def _with_captions(video: PreparedVideo, captions: dict[tuple[Path, int], str | UserError]) -> PreparedVideo:
    clips, discarded = [], list(video.record["discarded"])
    for number, clip in enumerate(video.record["clips"]):
        if isinstance(caption := captions.get((video.folder, number), clip["caption"]), UserError):
            discarded.append({"start": clip["start"], "end": clip["end"], "reason": f"no caption: {caption}"})
        else:
            clips.append(clip | {"caption": caption})
    return video._replace(record=video.record | {"clips": clips, "discarded": discarded})
