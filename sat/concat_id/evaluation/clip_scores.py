"""What CLIP makes of a video: the prompt, steadiness, and the distance of its faces from the photo."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from concat_id.evaluation.face_tracks import Reference, Track
from concat_id.models.clip import ClipEncoder
from concat_id.models.viclip import ViClipEncoder


def clip_scores(
    clip: ClipEncoder, frames: np.ndarray, prompt: str, references: Sequence[Reference], people: Sequence[Track]
) -> tuple[dict[str, Any], list[str]]:
    """Score frames (F, H, W, 3), RGB, with one batch of images; returns remarks as well.

    `clip_text`: mean cosine of frames and prompt, None without a prompt. `clip_consistency`: mean cosine of successive sampled frames.
    `clip_distance`: mean of 1 - cosine of the aligned crops, 112x112, of a reference and of its person's faces; None without faces.
    """
    crops = [
        [reference.found.crop, *(found.crop for found in track.faces.values())]
        for reference, track in zip(references, people, strict=True)
    ]
    vectors = clip.encode_images([*map(Image.fromarray, frames), *(crop for many in crops for crop in many)])
    whole, rest = vectors[: len(frames)], vectors[len(frames) :]
    distances = []
    for many in crops:
        own, rest = rest[: len(many)], rest[len(many) :]
        distances += (1 - own[1:] @ own[0]).tolist()
    scores: dict[str, Any] = {
        "clip_text": None,
        "clip_consistency": float((whole[1:] * whole[:-1]).sum(axis=1).mean()) if len(whole) > 1 else None,
        "clip_distance": float(np.mean(distances)) if distances else None,
    }
    notes = []
    if prompt:
        text, chunks = clip.encode_text(prompt)
        scores["clip_text"] = float((whole @ text).mean())
        if chunks > 1:
            notes.append(f"the prompt exceeds CLIP's 77 tokens and is read in {chunks} chunks")
    return scores, notes


def viclip_scores(viclip: ViClipEncoder, frames: np.ndarray, prompt: str) -> tuple[dict[str, Any], list[str]]:
    """Score frames (F, H, W, 3), RGB: `viclip`, the cosine of video and prompt, None without a prompt; returns remarks as well."""
    if not prompt:
        return {"viclip": None}, []
    text, chunks = viclip.encode_text(prompt)
    notes = [f"the prompt exceeds what ViCLIP reads at once and is read in {chunks} chunks"] if chunks > 1 else []
    return {"viclip": float(viclip.encode_video(frames) @ text)}, notes
