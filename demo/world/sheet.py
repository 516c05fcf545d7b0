"""A contact sheet: people in rows, moments of their shots in columns."""

import numpy as np
from PIL import Image

from world.dataset import make_person
from world.head import HeadModel
from world.render import ShotRenderer
from world.shots import Staging, sample_shot

MOMENTS = (0.1, 0.55, 0.95)  # of a shot
GAP = 6
FRAMES = 49


def draw_sheet(num_people: int, num_shots: int, seed: int, size: tuple[int, int], together: bool, staging: Staging) -> Image.Image:
    """Draw the first people of a world, alone or two in a row."""
    head, rows = HeadModel(), []
    height, width = size
    for index in range(num_people):
        people = [make_person(head, seed, number) for number in ((2 * index, 2 * index + 1) if together else (index,))]
        tiles = []
        for number in range(num_shots):
            shot = sample_shot(people, np.random.default_rng([seed, len(people) - 1, index, number]), FRAMES, staging=staging)
            renderer = ShotRenderer(head, people, shot, size, samples=3)
            tiles += [renderer.frame(round(moment * (FRAMES - 1)))[0] for moment in MOMENTS]
        rows.append(tiles)
    columns = num_shots * len(MOMENTS)
    extra = GAP * 2 * (num_shots - 1)
    sheet = Image.new("RGB", (columns * (width + GAP) + extra + GAP, num_people * (height + GAP) + GAP), "white")
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            left = GAP + column * (width + GAP) + GAP * 2 * (column // len(MOMENTS))
            sheet.paste(Image.fromarray(tile), (left, GAP + row * (height + GAP)))
    return sheet
