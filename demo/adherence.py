"""Prompt adherence, a metric for `sat/evaluate_identity.py --metric demo/adherence.py`: what a video shows of its prompt.

For prompts in the words of the demonstration model's synthetic world. Everything is measured from pixels and the detector's key points.
The thresholds were chosen on rendered clips, where the truth is known; `demo/bench/bench_adherence.py` measures on other people how often
the verdict is right.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from skimage.color import rgb2lab

from concat_id.evaluation.user_metrics import MetricInput
from concat_id.face.detection import Face, alignment, warp

DESCRIPTIONS = {"adherence": "↑ Share of the attributes named by the prompt, as far as they can be judged, that are shown."}

# Colours by name in CIELAB, as they come out on walls and clothes in the light of rendered clips: medians.
COLOURS = {
    "red": (44, 58, 38), "blue": (31, 27, -54), "green": (48, -41, 31), "yellow": (80, 0, 73), "white": (92, 0, 3), "black": (14, 0, -2),
    "orange": (63, 37, 60), "purple": (35, 44, -43), "pink": (70, 42, -2), "gray": (56, 0, -2), "brown": (33, 13, 19),
}  # fmt: skip
LIGHTNESS = 0.6  # what a difference in lightness counts against one in colour: light varies
SAYS_COLOUR = "|".join(COLOURS)

CROP = 112  # pixels of an upright face; rows and columns below are in this crop
MOUTH = slice(82, 110), slice(40, 73)
CHEEKS = slice(66, 80), slice(30, 82)
EYES = (slice(46, 58), slice(32, 45)), (slice(46, 58), slice(67, 80))
UNDER_EYES = (slice(60, 70), slice(30, 46)), (slice(60, 70), slice(66, 82))
RIMS = (slice(56, 74), slice(30, 46)), (slice(56, 74), slice(66, 82))
BRIDGE = slice(42, 58), slice(50, 62)
HAT_ROWS, HAT_COLUMNS = 16, slice(34, 78)  # the first rows that are in the image

# Midway between the shots that have it and those that have not, which lie well apart.
TURNED = 0.12  # distances from eyes to mouth that the nose is off the eyes' middle at the end: turned 0.25 +- 0.08, ahead 0 +- 0.07
NODS = 0.08  # spread of the steps of the eyes' height, in the same unit; without a nod 0.03 +- 0.02
# Linear scores above 0: logistic regression on 121 clips.
SMILE = {"width": 30.5, "wider": 13.5, "nose": 2.9, "nose_moved": 3.6, "dark_range": -22.0}, -28.9
MOUTH_MOVES = {"dark_spread": 151.0}, -1.83
SUNGLASSES = {"eyes": -6.73, "eyes_spread": -14.0, "under": -4.75, "edges": 7.64, "bridge": 4.12}, 5.40
GLASSES = {"under": -6.54, "edges": 25.4}, 1.95

MARGIN = 0.5  # widths of a face beside it that hair and hats may take up
MIN_BACKGROUND = 0.04  # of the image; where two people leave less, look closer to them
FACES = 0.5  # share of the frames that must show everybody for a verdict


@dataclass
class Wish:
    """What a prompt says of one person; None: nothing."""

    clothes: str | None = None
    hat: str | None = None
    glasses: str | None = None
    turn: str | None = None
    nod: bool | None = None
    smile: bool | None = None
    mouth: bool | None = None


@dataclass
class Attributes:
    """What a prompt says, the people from left to right."""

    background: str | None
    people: list[Wish]


def read_prompt(prompt: str) -> Attributes:
    """Find what can be judged in a prompt."""
    text = f" {prompt.lower()} "
    behind = re.search(rf"(?:in front of|against|before) (?:an? )?(?:\w+ )?({SAYS_COLOUR}) (?:wall|background|curtain|room)", text)
    behind = behind or re.search(rf"room with an? ({SAYS_COLOUR}) wall", text)
    if behind:
        text = text.replace(behind[0], " ")
    starts = [found.start() for found in re.finditer(r"\ban? (?:young )?(?:man|woman|person)\b", text)]
    parts = [text[start:end] for start, end in zip(starts, [*starts[1:], None], strict=False)]
    return Attributes(behind[1] if behind else None, [_read_person(part) for part in parts])


def _read_person(text: str) -> Wish:
    clothes = re.search(rf"\b(?:in|wearing) (?:an? )?({SAYS_COLOUR})\b(?! (?:cap|beanie|hat))", text)
    hat = re.search(rf"\b({SAYS_COLOUR}) (?:cap|beanie|hat)\b", text)
    glasses = re.search(r"\b(sunglasses|glasses)\b", text)
    turn = re.search(r"\b(?:turn|look)(?:s|ing)?(?: the head)?(?: to the)? (left|right|ahead)\b", text)
    return Wish(
        clothes=clothes and clothes[1],
        hat=hat and hat[1],
        glasses=glasses and glasses[1],
        turn=turn[1] if turn else "ahead" if re.search(r"\blook(?:s|ing)? at the camera", text) else None,
        nod=True if re.search(r"\bnod", text) else None,
        smile=True if re.search(r"\bsmil", text) else None,
        mouth=True if re.search(r"\b(?:talk|speak|surpris)", text) else None,
    )


class PersonTrack:
    """One person through a video: frames (N, H, W, 3) that show everybody, key points (N, 5, 2), boxes (N, 4), upright crops."""

    def __init__(self, frames: np.ndarray, faces: Sequence[Face]):
        """Cut the faces out."""
        self.frames = frames
        self.keypoints = np.stack([face.keypoints for face in faces])
        self.boxes = np.stack([face.box for face in faces])
        crops = [warp(Image.fromarray(frame), alignment(face.keypoints, CROP), CROP) for frame, face in zip(frames, faces, strict=True)]
        self.crops = np.stack([np.asarray(crop) for crop in crops])
        self.lightness = self.crops @ np.array([0.299, 0.587, 0.114])
        self.skin = np.median(self.lightness[:, *CHEEKS], axis=(1, 2)) + 1

        self.left, self.right, self.nose = self.keypoints[:, 0], self.keypoints[:, 1], self.keypoints[:, 2]
        self.eyes, self.mouth = (self.left + self.right) / 2, self.keypoints[:, 3:].mean(axis=1)
        self.length = np.linalg.norm(self.mouth - self.eyes, axis=1)

    def yaw(self) -> np.ndarray:
        """How far the nose is from the middle of the eyes (N,), in distances from eyes to mouth; positive to the image's right."""
        across = (self.right - self.left) / np.linalg.norm(self.right - self.left, axis=1, keepdims=True)
        return ((self.nose - self.eyes) * across).sum(axis=1) / self.length

    def bobbing(self) -> float:
        """Spread of the steps by which the eyes go up and down, in distances from eyes to mouth."""
        return float(np.std(np.diff(self.eyes[:, 1] / self.length.mean())))

    def mouth_features(self) -> dict[str, float]:
        """Width of the mouth, its distance from the nose, what changed of them, and how much of it is how dark and when."""
        width = np.linalg.norm(self.keypoints[:, 4] - self.keypoints[:, 3], axis=1) / np.linalg.norm(self.right - self.left, axis=1)
        nose = np.linalg.norm(self.nose - self.mouth, axis=1) / np.linalg.norm(self.nose - self.eyes, axis=1)
        dark = (self.lightness[:, *MOUTH] < 0.45 * self.skin[:, None, None]).mean(axis=(1, 2))
        first, second = slice(0, max(1, len(width) // 4)), slice(len(width) // 2, None)
        return {
            "width": float(np.median(width[second])),
            "wider": float(np.median(width[second]) - np.median(width[first])),
            "nose": float(np.median(nose[second])),
            "nose_moved": float(np.median(nose[second]) - np.median(nose[first])),
            "dark_range": float(np.ptp(dark)),
            "dark_spread": float(dark.std()),
        }

    def eye_features(self) -> dict[str, float]:
        """Lightness of and around the eyes against the cheeks', over the video: lenses are dark and even, rims draw edges."""
        light = self.lightness / self.skin[:, None, None]
        return {
            "eyes": float(np.median([np.median(light[:, *part], axis=(1, 2)) for part in EYES])),
            "eyes_spread": float(np.median([light[:, *part].std(axis=(1, 2)) for part in EYES])),
            "under": float(np.median([light[:, *part].min(axis=1).mean(axis=1) for part in UNDER_EYES])),
            "edges": float(np.median([np.abs(np.diff(light[:, *part], axis=1)).max(axis=1).mean(axis=1) for part in RIMS])),
            "bridge": float(np.median(light[:, *BRIDGE].min(axis=1).mean(axis=1))),
        }


def score(features: dict[str, float], model: tuple[dict[str, float], float]) -> float:
    """Weigh features."""
    weights, constant = model
    return sum(weight * features[name] for name, weight in weights.items()) + constant


def colour_of(pixels: np.ndarray) -> str | None:
    """Name the colour that most pixels (N, 3) are nearest to; None of no pixels."""
    if not len(pixels):
        return None
    scale = np.array([LIGHTNESS, 1, 1])
    distances = np.square((rgb2lab(pixels[:, None] / 255.0) - np.array(list(COLOURS.values()))) * scale).sum(axis=-1)
    return list(COLOURS)[int(np.bincount(distances.argmin(axis=1), minlength=len(COLOURS)).argmax())]


def background_colour(tracks: list[PersonTrack]) -> str | None:
    """Name the colour beside the heads, in the middle of the video."""
    middle = len(tracks[0].frames) // 2
    frame = tracks[0].frames[middle]
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]]
    margins = []  # how far a pixel is from the heads, in their widths
    for track in tracks:
        left, top, right, bottom = track.boxes[middle]
        away = np.maximum(left - x, x - right) / (right - left)
        margins.append(np.where(y < bottom - 0.1 * (bottom - top), away, -1))
    margin = np.min(margins, axis=0)
    enough = np.sort(margin, axis=None)[-int(MIN_BACKGROUND * margin.size)]
    return colour_of(frame[margin >= max(min(MARGIN, enough), 0)])


def clothes_colour(track: PersonTrack) -> str | None:
    """Name the colour of the shoulders, in the middle of the video."""
    middle = len(track.frames) // 2
    frame, (left, top, right, bottom) = track.frames[middle], track.boxes[middle]
    width, height = right - left, bottom - top
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]]
    below = y >= min(bottom + 0.45 * height, frame.shape[0] * 0.958)
    sides = ((x > left - 0.35 * width) & (x < left + 0.2 * width)) | ((x > right - 0.2 * width) & (x < right + 0.35 * width))
    return colour_of(frame[below & sides])


def hat_colour(track: PersonTrack) -> str | None:
    """Name the colour above the forehead, in the middle of the video."""
    middle = len(track.crops) // 2
    white = Image.fromarray(np.full_like(track.frames[middle], 255))
    seen = np.asarray(warp(white, alignment(track.keypoints[middle], CROP), CROP))[:, HAT_COLUMNS].min(axis=-1) == 255
    top = seen & (seen.cumsum(axis=0) <= HAT_ROWS)
    return colour_of(track.crops[middle, :, HAT_COLUMNS][top])


def turned(track: PersonTrack) -> str:
    """Say whether a head looks to the image's left or right, or ahead, at the end."""
    yaw = track.yaw()
    end = float(np.median(yaw[-max(1, len(yaw) // 4) :]))
    return "ahead" if abs(end) < TURNED else "left" if end < 0 else "right"


def wears(track: PersonTrack, kind: str) -> bool:
    """Say whether somebody wears glasses or sunglasses."""
    features = track.eye_features()
    dark = score(features, SUNGLASSES) > 0
    return dark if kind == "sunglasses" else not dark and score(features, GLASSES) > 0


JUDGES: dict[str, Callable[[PersonTrack, Any], bool]] = {
    "clothes": lambda track, colour: clothes_colour(track) == colour,
    "hat": lambda track, colour: hat_colour(track) == colour,
    "glasses": wears,
    "turn": lambda track, direction: turned(track) == direction,
    "nod": lambda track, _: track.bobbing() > NODS,
    "smile": lambda track, _: score(track.mouth_features(), SMILE) > 0,
    "mouth": lambda track, _: score(track.mouth_features(), MOUTH_MOVES) > 0,
}

MOVEMENTS, MIN_FRAMES = ("nod", "mouth"), 3  # what fewer frames cannot show


def measure(video: MetricInput) -> dict[str, float | None]:
    """Return prompt adherence, and as "adherence <attribute>" 1 or 0 for each attribute of the prompt; None: cannot be judged."""
    verdicts = judge(video.frames, [[found.face for found in faces] for faces in video.faces], video.prompt)
    known = [verdict for verdict in verdicts.values() if verdict is not None]
    return {"adherence": float(np.mean(known)) if known else None} | {f"adherence {name}": verdict for name, verdict in verdicts.items()}


def judge(frames: np.ndarray, faces: Sequence[Sequence[Face]], prompt: str) -> dict[str, bool | None]:
    """Judge each attribute that a prompt names: True, False, or None where too few frames show all the people or movement.

    `frames` (F, H, W, 3), uint8, RGB, and the faces found in each. With two people, what is theirs is judged from left to right, as
    "left clothes", "right clothes" and so on.
    """
    request = read_prompt(prompt)
    count = max(len(request.people), 1)
    shown = [index for index, found in enumerate(faces) if len(found) >= count]
    tracks: list[PersonTrack] = []
    if shown and len(shown) >= FACES * len(frames):
        chosen = [sorted(sorted(faces[index], key=lambda face: -face.area)[:count], key=lambda face: face.box[0]) for index in shown]
        tracks = [PersonTrack(frames[shown], [found[person] for found in chosen]) for person in range(count)]
    verdicts: dict[str, bool | None] = {}
    if request.background:
        verdicts["background"] = background_colour(tracks) == request.background if tracks else None
    for person, wish in enumerate(request.people[:2]):
        prefix = "" if count == 1 else ("left ", "right ")[person]
        for name, wanted in vars(wish).items():
            if wanted is not None:
                judged = tracks and (name not in MOVEMENTS or len(shown) >= MIN_FRAMES)
                verdicts[prefix + name] = bool(JUDGES[name](tracks[person], wanted)) if judged else None
    return verdicts
