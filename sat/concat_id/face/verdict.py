"""What a photo is worth as a reference: good, usable or poor, with reasons and advice, from what preparing it finds anyway.

The limits were set on real photographs and their degradations; tests/bench/bench_verdicts.py counts who is judged rightly.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from concat_id.face.detection import TEMPLATE, TEMPLATE_SIZE, Face, alignment, moved
from concat_id.face.parsing import BACKGROUND, CLASSES, HAIR, SKIN, EllipseParser, face_axes

LEVELS = GOOD, USABLE, POOR = "good", "usable", "poor"

LOOK = 112  # pixels of the crop that light and sharpness are measured in
SMALLEST_LOOK = 48  # of a face that has fewer pixels than that
INNER = (0.25, 0.3, 0.75, 0.9)  # left, top, right, bottom of the part of a crop that shows a face and nothing else, whatever its pose
GAMMA = 2.2  # from a pixel to the light that it stands for
CHEEK = 0.75  # half the width that light is measured over, in distances of the eyes

# A nose stands out by about half the distance of the eyes. The detector sees it a bit above the middle of eyes and mouth.
NOSE_DEPTH, NOSE_HEIGHT, FACE_LENGTH = 0.5, 0.555, 1.155  # depth and length in distances of the eyes, height in lengths
CLIPPED = 250  # of 255, from which a channel has lost what was there
RIVAL = 0.5  # width of another face, relative to the largest, from which it is not clear who is meant
GLASSES = CLASSES.index("glasses")
FACE_PARTS = tuple(index for index, name in enumerate(CLASSES) if name.split()[-1] in ("skin", "nose", "mouth", "eye", "brow", "lip"))
OVAL = (BACKGROUND, SKIN, HAIR)  # all that the oval knows
DARK_GLASSES = 0.5  # of the skin's brightness


class Reason(NamedTuple):
    """Something about a photo: its kind, how far it lowers the verdict (`good`: not at all), what was found, and what to do."""

    kind: str
    level: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return "; ".join(filter(None, [self.found, self.advice]))


NO_FACE = Reason("no face", POOR, "found no face, the whole image is used", "take a photo with one clear, large face")


@dataclass(frozen=True)
class PhotoVerdict:
    """All reasons, worst first, and the measurements that they come from.

    Pixels of `width`; degrees of `yaw` (positive: the nose points to the image's right), `pitch` (down) and `roll`; `sharpness` without
    unit, 0.3 or more of a sharp face; and as shares in [0, 1] `brightness` of the face's bright parts, `balance` of its darker side to
    its brighter one, what is `clipped`, `outside` the photo, and `covered`. What could not be measured is not there.
    """

    reasons: tuple[Reason, ...] = ()
    measurements: dict[str, float] = field(default_factory=dict)

    @property
    def level(self) -> str:
        """The lowest of all reasons."""
        return max((reason.level for reason in self.reasons), key=LEVELS.index, default=GOOD)

    @property
    def worth(self) -> tuple:
        """What the better one of two photos of a person has more of: verdict, fewer reasons, frontal in steps of 10 degrees, then size."""
        yaw, width = self.measurements.get("yaw", 90.0), self.measurements.get("width", 0.0)
        return -LEVELS.index(self.level), -len(self.reasons), -round(abs(yaw) / 10), width

    @property
    def notes(self) -> list[str]:
        """One line for each reason."""
        return [str(reason) for reason in self.reasons]

    def __str__(self) -> str:
        return ": ".join(filter(None, [self.level, " / ".join(self.notes)]))

    def joined(self, *more: Reason) -> "PhotoVerdict":
        """The same with more reasons."""
        reasons = sorted([*more, *self.reasons], key=lambda reason: -LEVELS.index(reason.level))
        return PhotoVerdict(tuple(reasons), self.measurements)

    def record(self) -> dict[str, Any]:
        """What JSON files hold of it."""
        measurements = {name: round(value, 3) for name, value in self.measurements.items()}
        return {"level": self.level, "reasons": [reason._asdict() for reason in self.reasons], "measurements": measurements}


class Limit(NamedTuple):
    """Beyond which value of a measurement a photo is but usable, and beyond which poor; lower values are worse if `poor` is lower."""

    kind: str
    measurement: str
    usable: float
    poor: float
    found: str
    advice: str

    def judge(self, value: float) -> Reason | None:
        """The reason that a value gives, if any."""
        sign = 1 if self.poor > self.usable else -1
        if sign * abs(value) <= sign * self.usable:
            return None
        level = POOR if sign * abs(value) > sign * self.poor else USABLE
        return Reason(self.kind, level, self.found.format(abs(value)), self.advice)


LIMITS = (
    # 80 pixels are what a recogniser's crop shows of a face; of 48 a crop of 448 is mostly invented by interpolation.
    Limit("small", "width", 80, 48, "the face is only {:.0f} pixels wide", "take a photo where it is larger"),
    Limit("blurred", "sharpness", 0.3, 0.16, "the face is blurred (sharpness {:.2f}, expected 0.30)", "take a sharper photo"),
    Limit("turned", "yaw", 28, 50, "the face is turned aside by about {:.0f} degrees", "take a photo from the front"),
    Limit("nodding", "pitch", 25, 40, "the face looks up or down by about {:.0f} degrees", "take a photo at eye level"),
    Limit("dark", "brightness", 0.345, 0.235, "the face is dark (brightness {:.0%})", "take a photo in more light"),
    Limit("overexposed", "clipped", 0.1, 0.45, "{:.0%} of the face is overexposed", "take a photo in softer light"),
    Limit("half shadow", "balance", 0.33, 0.12, "half of the face is in shadow ({:.0%} of the other's light)", "turn it to the light"),
    Limit("cut off", "outside", 0.06, 0.15, "the face is cut off by the photo's edge ({:.0%} of it)", "take a photo with the whole head"),
    Limit("covered", "covered", 0.15, 0.4, "{:.0%} of the face is covered", "take a photo without a mask, dark glasses or a hand"),
)  # fmt: skip


def judge(
    image: Image.Image, faces: Sequence[Face], face: Face, crop: Image.Image, keypoints: np.ndarray, labels: np.ndarray | None
) -> PhotoVerdict:
    """Judge the `face` of an upright photo with `faces` by its crop, the key points (5, 2) and the classes (H, W) in it, if known."""
    left_eye, right_eye = face.keypoints[:2]
    measurements = {
        "width": float(int(face.side)),
        "sharpness": face_sharpness(crop, face.side),
        "yaw": float(np.degrees(np.arctan(nose_shift(keypoints) / NOSE_DEPTH))),
        "pitch": _pitch(keypoints),
        "roll": float(np.degrees(np.arctan2(*(right_eye - left_eye)[::-1]))),
        **_measure_crop(image, face, crop, keypoints, labels),
    }
    found = [limit.judge(measurements[limit.measurement]) for limit in LIMITS if limit.measurement in measurements]
    if len(faces) > 1:
        rivals = sum(other.side >= RIVAL * face.side for other in faces) - 1
        advice = "cut the photo to the one that is meant" if rivals > 0 else ""
        found.append(Reason("several faces", USABLE if rivals > 0 else GOOD, f"found {len(faces)} faces, the largest is used", advice))
    return PhotoVerdict((), measurements).joined(*filter(None, found))


def sharpness(crop: Image.Image) -> float:
    """Energy of the second derivative relative to the contrast, so that dark crops are not taken for blurred ones."""
    grey = np.asarray(crop.convert("L")).astype(np.float64)
    second = grey[1:-1, :-2] + grey[1:-1, 2:] + grey[:-2, 1:-1] + grey[2:, 1:-1] - 4 * grey[1:-1, 1:-1]
    return float(second.std() / max(grey.std(), 1e-6))


def face_sharpness(crop: Image.Image, width: float) -> float:
    """Sharpness of the inner face at the resolution that the photo has of it, `width` pixels, so that small is not blurred."""
    side = int(np.clip(width, SMALLEST_LOOK, LOOK))
    return sharpness(crop.resize((side, side), Image.Resampling.BOX).crop(tuple(round(side * part) for part in INNER)))


def nose_shift(keypoints: np.ndarray) -> float:
    """Tell from five key points (5, 2) how far the nose is beside where `TEMPLATE` has it, in distances of the eyes."""
    upright = moved(keypoints, alignment(keypoints, TEMPLATE_SIZE))
    eyes = max(float(np.linalg.norm(upright[1] - upright[0])), 1e-6)
    shift = (upright[2, 0] - upright[[0, 1, 3, 4], 0].mean()) - (TEMPLATE[2, 0] - TEMPLATE[[0, 1, 3, 4], 0].mean())
    return float(shift / eyes)


def _pitch(keypoints: np.ndarray) -> float:
    eyes, down, _, length = face_axes(keypoints)
    height = (keypoints[2] - eyes) @ down / max(length, 1e-6)
    return float(np.degrees(np.arctan((height - NOSE_HEIGHT) * FACE_LENGTH / NOSE_DEPTH)))


def _measure_crop(
    image: Image.Image, face: Face, crop: Image.Image, keypoints: np.ndarray, labels: np.ndarray | None
) -> dict[str, float]:
    """Measure at `LOOK` pixels what lies beyond the photo's edge, how the face is lit, and what hides it."""
    points, small = keypoints * LOOK / crop.width, crop.resize((LOOK, LOOK), Image.Resampling.BOX)
    pixels = np.asarray(small).astype(np.float64)
    grey, oval = pixels @ [0.299, 0.587, 0.114], EllipseParser().parse(small, points)
    there = ((np.arange(LOOK) + 0.5) * crop.width / LOOK).astype(int)
    classes = oval if labels is None else labels[np.ix_(there, there)]
    measured = {"outside": _share_outside(image, face, oval != BACKGROUND), **_light(pixels, grey, np.isin(classes, FACE_PARTS), points)}
    if not np.isin(classes, OVAL).all():
        measured["covered"] = _share_covered(grey, classes, points)
    return measured


def _share_outside(image: Image.Image, face: Face, head: np.ndarray) -> float:
    """Share of a head's pixels in the crop that lie beyond the edge of the photo."""
    matrix = alignment(face.keypoints, LOOK)
    places = (np.argwhere(head)[:, ::-1] - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    return float(1 - ((places >= 0) & (places < image.size)).all(axis=1).mean())


def _light(pixels: np.ndarray, grey: np.ndarray, face: np.ndarray, keypoints: np.ndarray) -> dict[str, float]:
    """Measure the light on a face, nothing where one side of it is hidden."""
    eyes, _, across, _ = face_axes(keypoints)
    y, x = np.mgrid[:LOOK, :LOOK]
    aside = ((np.stack([x, y], axis=-1) - eyes) @ across) / max(float(np.linalg.norm(keypoints[1] - keypoints[0])), 1e-6)
    face = face & (abs(aside) < CHEEK)
    sides = [(grey[part] / 255) ** GAMMA for part in (face & (aside < -0.1), face & (aside > 0.1)) if part.any()]
    if len(sides) < 2:
        return {}
    darker, brighter = sorted(float(np.median(side)) for side in sides)
    return {
        "brightness": float(np.percentile(grey[face], 95)) / 255,  # the median would be the colour of the skin
        "balance": darker / max(brighter, 1e-6),
        "clipped": float((np.sort(pixels[face], axis=-1)[:, 1] >= CLIPPED).mean()),  # two channels: red alone is a warm light
    }


def _share_covered(grey: np.ndarray, classes: np.ndarray, keypoints: np.ndarray) -> float:
    """Share of the area between eyes and mouth that is no part of the face; glasses are, unless they are dark."""
    area = Image.new("1", classes.shape[::-1])
    ImageDraw.Draw(area).polygon([tuple(keypoints[index]) for index in (0, 1, 4, 3)], fill=1, outline=1)
    inside, seen, glasses = np.asarray(area), np.isin(classes, FACE_PARTS), classes == GLASSES
    if glasses.any() and seen.any() and np.median(grey[glasses]) >= DARK_GLASSES * np.median(grey[seen]):
        seen = seen | glasses
    return float(1 - seen[inside].mean())
