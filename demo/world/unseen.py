"""Captions of shots that are drawn by lot and not rendered, to learn the language of the world from."""

import numpy as np

from world.captions import describe
from world.people import Person
from world.shots import sample_shot


def draw_captions(count: int, seed: int) -> dict[str, dict]:
    """Draw `count` shots, half of them of two people, which are harder; returns the facts of a shot by its caption."""
    captions = {}
    for index in range(count):
        rng = np.random.default_rng([seed, 11, index])
        genders = rng.choice(["man", "woman"], 2 if rng.random() < 0.5 else 1)
        people = [Person("", str(gender), np.empty((0, 3)), {}, 0.0, 0.0, "none") for gender in genders]
        facts = sample_shot(people, rng, 1).facts
        captions[describe(facts, rng)] = facts
    return captions
