"""What happens in a shot: movement, expression, clothes, light, background and framing, and the facts that a caption may tell."""

from dataclasses import dataclass, field

import numpy as np

from world import paint
from world.background import BACKGROUNDS, Background
from world.light import Lamp
from world.palette import NAMED, linear, named
from world.people import Person

CLOTHES = {"t-shirt": paint.T_SHIRT, "shirt": paint.SHIRT, "sweater": paint.SWEATER, "jacket": paint.JACKET, "hoodie": paint.HOODIE}
HATS = ("cap", "beanie", "hat")
LIGHTS = {"soft": (1.0, 1.0, 1.0), "warm": (1.12, 0.99, 0.80), "cool": (0.90, 1.0, 1.14), "dim": (0.72, 0.72, 0.74)}
EXPRESSIONS = ("smile", "talk", "surprise", "calm")
TURNS = ("left", "right", "nod", "none")
WEARS_HAT, WEARS_GLASSES = 0.2, 0.2  # shares of the shots
LEVEL = 0.10  # radians: the model's head is tipped back by so much
LENGTH = 49  # frames, for which how long movements take is given; a shorter clip shows them no faster than it must
LATE = 0.65  # of a shot, after which it shows what its caption says
LEAST_NODS = 1.25  # of a short clip


@dataclass(frozen=True)
class Staging:
    """How far a head turns, in radians, and where the camera is: ranges of `Performance`'s scale and height, and those of calm images."""

    turn: tuple[float, float]
    scale: tuple[float, float]
    height: tuple[float, float]
    calm_scale: tuple[float, float]
    calm_height: tuple[float, float]
    hat_scale: float  # the camera steps back, to keep hat and clothes in the image
    hat_height: float


WIDE = Staging((0.32, 0.55), (0.94, 1.04), (0.39, 0.42), (0.74, 0.82), (0.45, 0.48), 0.86, 0.06)  # for 96x144 pixels, of two people too
NEAR = Staging((0.24, 0.38), (0.83, 0.91), (0.42, 0.45), (0.80, 0.86), (0.46, 0.48), 0.92, 0.05)  # for 128x96, of one person
TURN = WIDE.turn


@dataclass
class Performance:
    """What one person does and wears: curves of N frames, words for captions, and paint."""

    facts: dict
    yaw: np.ndarray  # radians, positive to the image's right
    pitch: np.ndarray
    roll: np.ndarray
    actions: list[dict[str, float]]  # facial actions of each frame
    paint: dict
    shoulders: float
    hat: str | None = None
    glasses: tuple[float, float, float] | None = None
    frame_thickness: float = 0.007
    dark_lenses: bool = False
    scale: float = 0.78  # head units that the image is high, inverted
    place: tuple[float, float] = (0.0, 0.44)  # of the head's middle, in widths from the image's middle and in heights from its top
    sway: np.ndarray = field(default_factory=lambda: np.zeros((1, 2)))


@dataclass
class Shot:
    """One shot of one or two people, from left to right."""

    performances: list[Performance]
    lamp: Lamp
    background: Background
    facts: dict
    distance: float  # of the camera, in head units


def sample_shot(people: list[Person], rng: np.random.Generator, num_frames: int, neutral: bool = False,
                staging: Staging = WIDE) -> Shot:  # fmt: skip
    """Draw a shot of one or two people; `neutral`: calm, toward the camera, nothing worn on the head."""
    colours = [str(name) for name in rng.choice(list(NAMED), 1 + len(people), replace=False)]
    kind = str(rng.choice(list(BACKGROUNDS), p=list(BACKGROUNDS.values())))
    light = str(rng.choice(list(LIGHTS), p=[0.58, 0.16, 0.14, 0.12]))
    performances = [sample_performance(person, colour, colours[0], rng, num_frames, neutral, len(people), staging) for person, colour in
                    zip(people, colours[1:], strict=True)]  # fmt: skip
    for index, performance in enumerate(performances):
        if len(people) == 2:
            performance.scale = float(rng.uniform(0.84, 0.94))
            performance.place = ((-0.245, 0.245)[index] + float(rng.uniform(-0.02, 0.02)), float(rng.uniform(0.42, 0.46)))
    background = Background(kind, colours[0], int(rng.integers(2**31)))
    facts = {
        "background": {"kind": kind, "color": colours[0]},
        "light": light,
        "people": [performance.facts for performance in performances],
    }
    return Shot(performances, sample_lamp(light, rng), background, facts, float(rng.uniform(5, 8)))


def sample_lamp(light: str, rng: np.random.Generator) -> Lamp:
    """Draw the direction of a light of a kind, and its colours."""
    direction = np.array([rng.choice([-1, 1]) * rng.uniform(0.15, 0.85), rng.uniform(0.25, 0.85), 1.0])
    tint = np.array(LIGHTS[light])
    key = rng.uniform(0.66, 0.84)
    sky = (1.02 - key) * rng.uniform(0.95, 1.15)
    above, below = sky * 1.35 * tint**0.4, sky * 0.75 * np.array([1.0, 0.95, 0.9]) * tint**0.5
    direction /= np.linalg.norm(direction)
    return Lamp(*(part.astype(np.float32) for part in (direction, key * tint * 1.18, above, below)))


def sample_performance(person: Person, colour: str, behind: str, rng: np.random.Generator, num_frames: int, neutral: bool,
                       num_people: int, staging: Staging) -> Performance:  # fmt: skip
    """Draw what one person in clothes of a colour does and wears; nothing worn has the colour of what is `behind`."""
    clothes = str(rng.choice(list(CLOTHES)))
    turns = [0.27, 0.27, 0.14, 0.32] if num_people == 1 else [0.12, 0.12, 0.16, 0.6]
    expression = "calm" if neutral else str(rng.choice(EXPRESSIONS, p=[0.32, 0.28, 0.12, 0.28]))
    turn = "none" if neutral else str(rng.choice(TURNS, p=turns))
    facts = {"person": person.gender, "clothes": {"kind": clothes, "color": colour}, "turn": turn, "expression": expression,
             "smile": expression == "smile", "mouth_open": expression in ("talk", "surprise"), "hat": None, "glasses": None}  # fmt: skip
    cloth = np.clip(named(colour) * rng.uniform(0.88, 1.12), 0, 1).astype(np.float32)
    inner_choices = [name for name in ("white", "black", "gray") if name != colour]
    paints = {"cloth": cloth, "inner": named(str(rng.choice(inner_choices))), "hat": cloth, "clothes": CLOTHES[clothes],
              "frame": linear((0.05, 0.05, 0.055))}  # fmt: skip
    yaw, pitch = head_curves(turn, rng, num_frames, staging.turn)
    shoulders = float(rng.uniform(0.98, 1.1) if person.gender == "man" else rng.uniform(0.84, 0.95))
    result = Performance(facts, yaw, pitch, np.full(num_frames, rng.uniform(-0.05, 0.05)) + wander(rng, num_frames, 0.015),
                         expression_curves(expression, rng, num_frames), paints, shoulders)  # fmt: skip
    # A photograph shows all of the hair.
    scale, height = (staging.calm_scale, staging.calm_height) if neutral else (staging.scale, staging.height)
    result.scale = float(rng.uniform(*scale))
    result.place = float(rng.uniform(-0.06, 0.06)), float(rng.uniform(*height))
    result.sway = np.stack([wander(rng, num_frames, 0.008), wander(rng, num_frames, 0.005)], axis=1)
    if not neutral:
        dress_up(result, behind, rng, staging)
    return result


def dress_up(performance: Performance, behind: str, rng: np.random.Generator, staging: Staging) -> None:
    """Put on a hat or glasses now and then."""
    if rng.random() < WEARS_HAT:
        colour = str(rng.choice([name for name in NAMED if name not in (behind, performance.facts["clothes"]["color"])]))
        performance.hat = str(rng.choice(HATS))
        performance.facts["hat"] = {"kind": performance.hat, "color": colour}
        performance.paint["hat"] = named(colour)
        performance.scale *= staging.hat_scale
        performance.place = performance.place[0], performance.place[1] + staging.hat_height
    if rng.random() < WEARS_GLASSES:
        performance.dark_lenses = bool(rng.random() < 0.5)
        performance.facts["glasses"] = "sunglasses" if performance.dark_lenses else "glasses"
        performance.glasses = float(rng.uniform(0.088, 0.104)), float(rng.uniform(0.056, 0.078)), float(rng.uniform(2, 4.5))
        performance.frame_thickness = float(rng.uniform(0.006, 0.010))
        performance.paint["frame"] = linear(
            [(0.05, 0.05, 0.055), (0.28, 0.15, 0.08), (0.45, 0.36, 0.2), (0.3, 0.3, 0.33)][int(rng.integers(4))]
        )


def wander(rng: np.random.Generator, num_frames: int, size: float) -> np.ndarray:
    """A slow, small movement (N,)."""
    time = np.linspace(0, 1, num_frames)
    return size * (
        np.sin(2 * np.pi * rng.uniform(0.4, 1) * time + rng.uniform(0, 6))
        + 0.5 * np.sin(2 * np.pi * rng.uniform(1, 2) * time + rng.uniform(0, 6))
    )


def ease(time: np.ndarray, start: float, length: float) -> np.ndarray:
    """Rise smoothly from 0 to 1."""
    t = np.clip((time - start) / length, 0, 1)
    return t * t * (3 - 2 * t)


def head_curves(turn: str, rng: np.random.Generator, num_frames: int, angles: tuple[float, float] = TURN) -> tuple[np.ndarray, np.ndarray]:
    """Yaw and pitch (N,): a turn from slightly the other side, a nod, or keeping still."""
    time = np.linspace(0, 1, num_frames)
    yaw, pitch = wander(rng, num_frames, 0.03), wander(rng, num_frames, 0.02) + LEVEL + rng.uniform(-0.05, 0.05)
    slower = max(1.0, LENGTH / num_frames)
    if turn in ("left", "right"):
        side = -1 if turn == "left" else 1
        start, length = rng.uniform(0.05, 0.3), min(rng.uniform(0.3, 0.5) * slower, 0.92)
        yaw = yaw + side * (ease(time, min(start, 0.95 - length), length) * (rng.uniform(*angles) + 0.08) - 0.08)
    else:
        yaw = yaw + rng.uniform(-0.07, 0.07)
    if turn == "nod":
        size, nods = rng.uniform(0.11, 0.17), max(rng.uniform(2, 3) / slower, LEAST_NODS)
        pitch = pitch + size * np.sin(2 * np.pi * nods * time) * ease(time, 0.0, 0.15)
    return yaw, pitch


def expression_curves(expression: str, rng: np.random.Generator, num_frames: int) -> list[dict[str, float]]:
    """Facial actions of each frame: the expression comes up, the mouth speaks, lids blink, eyes look about."""
    time = np.linspace(0, 1, num_frames)
    rise = ease(time, rng.uniform(0.0, 0.25), 0.25) if num_frames > 1 else np.ones(1)
    strength, uneven = rng.uniform(0.75, 1.0), rng.uniform(-0.08, 0.08)
    curves: dict[str, np.ndarray] = {}
    if expression == "smile":
        teeth, strength = rng.uniform(0.1, 0.7), 1.2 * strength
        curves = {"mouthSmileLeft": strength + uneven, "mouthSmileRight": strength - uneven, "cheekSquintLeft": 0.5 * strength,
                  "cheekSquintRight": 0.5 * strength, "mouthUpperUpLeft": teeth, "mouthUpperUpRight": teeth, "jawOpen": 0.14 * teeth,
                  "eyeSquintLeft": 0.3 * strength, "eyeSquintRight": 0.3 * strength}  # fmt: skip
    elif expression == "surprise":
        curves = {"jawOpen": 0.42 * strength, "browInnerUp": strength, "browOuterUpLeft": strength, "browOuterUpRight": strength,
                  "eyeWideLeft": 0.7 * strength, "eyeWideRight": 0.7 * strength, "mouthFunnel": 0.2}  # fmt: skip
    curves = {name: amount * rise for name, amount in curves.items()}
    if expression == "talk":
        syllables = np.abs(np.sin(np.pi * rng.uniform(4.5, 7) * time * num_frames / 49 + rng.uniform(0, 3)))
        loudness = 0.65 + 0.35 * np.sin(2 * np.pi * rng.uniform(0.8, 1.6) * time + rng.uniform(0, 6))
        curves |= {"jawOpen": (0.10 + 0.34 * syllables * loudness) * strength, "mouthFunnel": 0.35 * np.roll(syllables, 2) * loudness,
                   "mouthSmileLeft": 0.15 * (1 - syllables), "mouthSmileRight": 0.15 * (1 - syllables)}  # fmt: skip
    blinks = sum(
        (np.exp(-(((time - rng.uniform(0.03, 0.97)) * num_frames) ** 2)) for _ in range(int(rng.integers(1, 4)))), np.zeros(num_frames)
    )
    blinks = np.clip(blinks, 0, 1) if num_frames > 1 else np.zeros(1)
    look_x, look_y = rng.uniform(-0.25, 0.25) + wander(rng, num_frames, 0.12), rng.uniform(-0.15, 0.1) + wander(rng, num_frames, 0.06)
    curves |= {"eyeBlinkLeft": np.clip(0.06 + blinks, 0, 1), "eyeBlinkRight": np.clip(0.06 + blinks, 0, 1),
               "eyeLookOutLeft": np.clip(look_x, 0, 1), "eyeLookInRight": np.clip(look_x, 0, 1),
               "eyeLookInLeft": np.clip(-look_x, 0, 1), "eyeLookOutRight": np.clip(-look_x, 0, 1)}  # fmt: skip
    for side in ("Left", "Right"):
        curves |= {f"eyeLookUp{side}": np.clip(look_y, 0, 1), f"eyeLookDown{side}": np.clip(-look_y, 0, 1)}
    return [{name: float(curve[i]) for name, curve in curves.items()} for i in range(num_frames)]
