"""Who somebody is: the shape of the head and everything on it that stays from shot to shot."""

from dataclasses import dataclass

import numpy as np

from world import paint
from world.head import HeadModel
from world.palette import HAIR, IRIS, SKIN, between, linear

# Larger changes than a standard deviation of 0.3 distort heads; those that move parts off the middle are kept small.
CHANGE, LARGEST = 0.29, 0.75
CHANGED = ("head", "nose", "mouth", "chin", "forehead", "eyebrows")
CHANGED_IN_PAIRS = ("eye", "cheek", "ear")
UNEVEN = 0.07  # difference between the sides


@dataclass
class Person:
    """One person: words, vertices at rest (V, 3), paint without clothes, and hair."""

    name: str
    gender: str
    vertices: np.ndarray
    paint: dict
    volume: float  # of the hair, in head units
    quiff: float  # more volume above the forehead
    part: str  # hair beyond the scalp, of `parts.hair_part`


def sample_person(head: HeadModel, name: str, rng: np.random.Generator) -> Person:
    """Draw a person."""
    gender = str(rng.choice(["man", "woman"]))
    phenotype = {label: float(rng.uniform(0.25, 0.75)) for label in head.phenotypes}
    phenotype["gender"] = float(rng.uniform(0.72, 1) if gender == "man" else rng.uniform(0, 0.28))
    phenotype["age"] = float(rng.uniform(0.55, 0.92))
    phenotype["weight"] = float(rng.uniform(0.25, 0.75))
    vertices = head.vertices(phenotype, sample_shape(head, rng))
    old = phenotype["age"] > 0.8
    paints = sample_colours(rng, gender, old) | sample_brows(rng, gender)
    hair, volume, quiff, part = sample_hair(rng, gender)
    return Person(name, gender, vertices, paints | hair, volume, quiff, part)


def is_changed(label: str) -> bool:
    """Whether people differ by a local change: not by those that move the whole head."""
    side, *words = ["", *label.split("-")] if label[1] != "-" else label.split("-")
    moved = words[0] == "head" and ("trans" in words or "angle" in words)
    return words[0] in (CHANGED_IN_PAIRS if side else CHANGED) and not moved


def sample_shape(head: HeadModel, rng: np.random.Generator) -> dict[str, float]:
    """Draw the local changes of a head, nearly alike on both sides."""
    changes = {}
    for label in head.local_changes:
        amount = float(np.clip(rng.normal(0, CHANGE), -LARGEST, LARGEST))
        if not is_changed(label):
            continue
        if label.startswith("l-"):
            uneven = float(rng.normal(0, UNEVEN))
            changes[label] = float(np.clip(amount + uneven, -1, 1))
            changes["r" + label[1:]] = float(np.clip(amount - uneven, -1, 1))
        elif not label.startswith("r-"):
            off_middle = "-trans-" in label and label.endswith("-out")
            changes[label] = 0.25 * amount if off_middle else amount
    return changes


def sample_colours(rng: np.random.Generator, gender: str, old: bool) -> dict:
    """Draw skin, lips, eyes, hair and what is on the skin."""
    tone = float(rng.uniform())
    skin = between(SKIN, tone) * rng.uniform(0.94, 1.06, 3)
    red_lips = gender == "woman" and rng.random() < 0.4
    tint = (
        np.array([0.92, 0.30, 0.34]) * rng.uniform(0.7, 1.15, 3) if red_lips else np.array([0.90, 0.56, 0.56]) * rng.uniform(0.9, 1.08, 3)
    )
    weights = np.array([5, 4, 4, 3, 3, 2, 2.5, 2]) if old else np.array([5, 4, 4, 3, 3, 2.5, 1, 0.3])
    hair = linear(
        np.clip(
            np.array(HAIR[int(rng.choice(len(HAIR), p=weights / weights.sum()))]) * rng.uniform(0.85, 1.12) * rng.uniform(0.96, 1.04, 3),
            0,
            1,
        )
    )
    man = gender == "man"
    style = str(rng.choice(["shaved", "stubble", "beard", "moustache", "full"], p=[0.42, 0.18, 0.12, 0.1, 0.18])) if man else "shaved"
    return {
        "skin": np.clip(skin, 0, 1).astype(np.float32),
        "lips": np.clip(skin * tint, 0, 1).astype(np.float32),
        "iris": linear(np.array(IRIS[int(rng.choice(len(IRIS), p=[0.3, 0.2, 0.22, 0.16, 0.12]))]) * rng.uniform(0.85, 1.15)),
        "hair": hair,
        "brows": (hair * rng.uniform(0.15, 0.5)).astype(np.float32),
        "blush": float(rng.uniform(0.15, 0.75)),
        "freckles": float(rng.uniform(0.25, 0.5)) if tone < 0.6 and rng.random() < 0.22 else 0.0,
        "stubble": float(rng.uniform(0.4, 1)) if style == "stubble" else float(rng.uniform(0, 0.2)) if man else 0.0,
        "beard": float(rng.uniform(0.75, 1)) if style in ("beard", "full") else 0.0,
        "moustache": float(rng.uniform(0.75, 1)) if style in ("moustache", "full") else 0.0,
        "wrinkles": float(rng.uniform(0.5, 1)) if old else float(rng.uniform(0, 0.25)),
        "mole": rng.uniform([-0.24, -0.3], [0.24, 0.05]).astype(np.float32) if rng.random() < 0.35 else np.array([9, 9], np.float32),
        "lash": float(rng.uniform(0.75, 0.95)) if gender == "woman" else float(rng.uniform(0.35, 0.65)),
        "iris_size": float(rng.uniform(0.029, 0.034)),
        "phase": float(rng.uniform(0, 6)),
    }


def sample_brows(rng: np.random.Generator, gender: str) -> dict:
    """Draw the brows, which tell people apart more than most."""
    thickness = rng.uniform(0.014, 0.028) if gender == "man" else rng.uniform(0.008, 0.019)
    return {
        "brow_height": float(rng.uniform(0.055, 0.085)),
        "brow_thickness": float(thickness),
        "brow_tilt": float(rng.uniform(-0.22, 0.35)),
        "brow_arch": float(rng.uniform(0.0, 0.13)),
        "brow_length": float(rng.uniform(0.12, 0.165)),
        "brow_gap": float(rng.uniform(0.03, 0.065)),
    }


def sample_hair(rng: np.random.Generator, gender: str) -> tuple[dict, float, float, str]:
    """Draw a hair style: paint, volume, more volume above the forehead, and the part beyond the scalp."""
    man = gender == "man"
    cut = str(rng.choice(["bald", "buzz", "short", "quiff", "curly", "afro", "long"], p=[0.1, 0.12, 0.34, 0.17, 0.13, 0.05, 0.09])
              if man else rng.choice(["short", "curly", "afro", "long"], p=[0.13, 0.08, 0.08, 0.71]))  # fmt: skip
    fringes = [paint.CLEAN, paint.STRAIGHT, paint.SWEPT, paint.PARTED, paint.RECEDING, paint.JAGGED]
    fringe = int(rng.choice(fringes, p=[0.2, 0.13, 0.22, 0.05, 0.22, 0.18] if man else [0.15, 0.28, 0.22, 0.25, 0.0, 0.10]))
    if cut in ("quiff", "buzz", "afro"):
        fringe = paint.CLEAN if cut != "buzz" or rng.random() < 0.5 else paint.RECEDING
    volume = {"bald": 0.0, "buzz": 0.006, "short": 0.03, "quiff": 0.03, "curly": 0.06, "afro": 0.05, "long": 0.035}[cut] * rng.uniform(
        0.75, 1.35
    )
    parts = ["bob", "long", "wavy", "ponytail", "bun", "side bun"]
    long_part = str(rng.choice(["long", "wavy", "bob", "ponytail"]) if man else rng.choice(parts, p=[0.27, 0.25, 0.22, 0.11, 0.09, 0.06]))
    hair = {
        "hair_cover": {"bald": 0.0, "buzz": 0.62}.get(cut, 1.0),
        "hair_line": float(rng.uniform(0.285, 0.345)),
        "fringe": fringe,
        "fringe_size": float(rng.uniform(0.07, 0.13) if fringe == paint.STRAIGHT else rng.uniform(0.04, 0.13)),
        "sweep": float(rng.choice([-1, 1]) * rng.uniform(0.25, 0.6)),
        "curl": 1.0 if cut in ("curly", "afro") else 0.45 if long_part == "wavy" else 0.0,
        "nape": float(rng.uniform(0.18, 0.3)),
    }
    quiff = float(rng.uniform(0.06, 0.12)) if cut == "quiff" else float(rng.uniform(0, 0.03))
    return hair, float(volume), quiff, {"afro": "afro", "long": long_part}.get(cut, "none")
