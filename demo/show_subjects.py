"""Draw clothes and backgrounds as references, from exact masks: `python demo/show_subjects.py --output subjects.png`.

A row for each shot: the middle frame, what each person wears in it, the first frame, and the same without people. The renderer gives
masks and backgrounds in place of the models that sat/add_subjects.py asks; what is done with them is the same.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

sys.path.extend([str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "sat")])

from concat_id.config.parser import Namespace, Parser
from concat_id.startup import prepare_process, run

SIZE, FRAMES, GAP = (128, 192), 17, 6


class Found(NamedTuple):
    """The pixels (H, W) of something."""

    mask: np.ndarray


def read_arguments() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="image to write")
    parser.add_argument("--shots", type=int, default=2, metavar="N", help="of one person, and as many of two (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed makes other people (default: %(default)s)")
    return parser.parse_args()


def subjects_of_shot(seed: int, number: int, people: int) -> list[Image.Image | None]:
    """Return the middle frame of a shot, the clothes of its one or two people, the first frame, and the place without people."""
    from concat_id.curation.clip_people import DiscardError
    from concat_id.curation.subjects import clear_of_people, cut_out_clothes
    from concat_id.video.face_parts import CLASSES
    from world.dataset import make_person
    from world.head import HeadModel
    from world.render import ShotRenderer
    from world.shots import sample_shot

    cloth = CLASSES.index("cloth")
    head, rng = HeadModel(), np.random.default_rng([seed, 17, people, number])
    cast = [make_person(head, seed, number * people + place) for place in range(people)]
    shot = sample_shot(cast, rng, FRAMES)
    renderer = ShotRenderer(head, cast, shot, SIZE)
    (middle, worn), (first, seen) = renderer.frame(FRAMES // 2), renderer.frame(0)
    garments = []
    for actor, performance in zip(cast, shot.performances, strict=True):
        alone, own = ShotRenderer(head, [actor], replace(shot, performances=[performance]), SIZE).frame(FRAMES // 2)
        garments.append(Found((worn == cloth) & (own == cloth) & (alone == middle).all(axis=-1)))
    empty = ShotRenderer(head, [], replace(shot, performances=[]), SIZE).frame(0)[0]

    def fill(image: Image.Image, mask: np.ndarray, prompt: str, seed: int) -> Image.Image:
        return Image.composite(Image.fromarray(empty), image, Image.fromarray(mask.astype(np.uint8) * 255))

    middle, first = Image.fromarray(middle), Image.fromarray(first)
    clothes = cut_out_clothes(middle, people, lambda image, words: garments, "clothes")
    try:
        return [middle, *clothes, first, clear_of_people(first, lambda image, words: [Found(seen > 0)], fill, rng)]
    except DiscardError:
        return [middle, *clothes, first, None]  # people cover too much of it


def main() -> None:
    """Draw the rows."""
    prepare_process()
    arguments = read_arguments()

    from concat_id.video.transforms import fit_and_pad
    from concat_id.video.writing import write_image
    from world.kernel_cache import keep_kernels

    keep_kernels()
    rows = [subjects_of_shot(arguments.seed, number, people) for people in (1, 2) for number in range(arguments.shots)]
    height, width = SIZE
    sheet = Image.new("RGB", (5 * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
    for row, (middle, *clothes, first, empty) in enumerate(rows):
        tiles = [middle, *(fit_and_pad(image, SIZE) for image in clothes), *[None] * (2 - len(clothes)), first, empty]
        for column, tile in enumerate(tiles):
            if tile is not None:
                sheet.paste(tile, (column * (width + GAP), row * (height + GAP)))
    write_image(arguments.output, sheet)


if __name__ == "__main__":
    run(main)
