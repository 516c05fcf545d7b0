"""FGIS, fine-grained identity similarity: how alike the parts of two faces are. Source: ConsistentID (arXiv 2404.16771)."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from concat_id.face.detection import Face, FaceDetector
from concat_id.face.parsing import SegformerParser
from concat_id.face.tracking import Track
from concat_id.models.clip import ClipEncoder
from concat_id.video.face_parts import PARTS, part_images, part_masks

Parts = Mapping[str, np.ndarray]  # vectors (D,) by part
FGIS = ("fgis", *(f"fgis_{part}" for part in PARTS))  # columns: the whole, then each part


class PartEncoder:
    """Turn the parts of a face into CLIP vectors; `clip` is shared with the other scores.

    An oval cannot stand in for the Segformer, as it tells no parts from one another.
    """

    def __init__(self, detector: FaceDetector, parser: SegformerParser, clip: ClipEncoder):
        self.detector, self.parser, self.clip = detector, parser, clip

    def encode(self, image: Image.Image, face: Face) -> Parts:
        """Return the vector (D,), of length 1, of each part that is seen, in the order of `PARTS`.

        Parts are cut from the aligned crop, 448x448, rather than from the whole image: faces in frames are small, and so the parser and
        CLIP see them as large as the photo's.
        """
        crop, keypoints = self.detector.align(image, face)
        masks = part_masks(self.parser.parse(crop, keypoints))
        return dict(zip(masks, self.clip.encode_images(part_images(crop, masks)), strict=True)) if masks else {}


def fine_grained_scores(
    frames: np.ndarray, references: Sequence[Parts], people: Sequence[Track], encoder: PartEncoder
) -> dict[str, float | None]:
    """Score frames (F, H, W, 3), RGB: the cosine of each part that a reference and a face taken for that person both show.

    `fgis`: mean over the parts of a face, then over a person's frames, then over people; `fgis_<part>`: the same of one part. Frames
    without the face, or without a part in common, are left out; None if none remain. The averages are chosen here, as the released
    code has no FGIS: the paper's numbers cannot be compared with these.
    """
    found = [
        _average([compare_parts(parts, encoder.encode(Image.fromarray(frames[number]), seen.face)) for number, seen in track.faces.items()])
        for parts, track in zip(references, people, strict=True)
    ]
    return dict.fromkeys(FGIS) | _average(found)


def compare_parts(one: Parts, other: Parts) -> dict[str, float]:
    """Return the cosine of each part that both faces have, by column, and the mean of these as `fgis`; {} without any."""
    cosines = {f"fgis_{part}": float(vector @ other[part]) for part, vector in one.items() if part in other}
    return {"fgis": float(np.mean([*cosines.values()]))} | cosines if cosines else {}


def _average(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average each column over the rows that have it."""
    columns = {name: [row[name] for row in rows if name in row] for name in FGIS}
    return {name: float(np.mean(values)) for name, values in columns.items() if values}
