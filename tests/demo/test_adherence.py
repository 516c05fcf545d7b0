"""Prompt adherence: what a prompt says is read, and judged rightly where the truth is known."""


import numpy as np
import pytest
from PIL import Image, ImageDraw

from adherence import COLOURS, Attributes, Wish, colour_of, judge, read_prompt
from concat_id.face.detection import Face


def judged(images: list[Image.Image], faces: list[list[Face]], prompt: str) -> dict[str, bool | None]:
    return judge(np.stack([np.asarray(image) for image in images]), faces, prompt)


@pytest.mark.parametrize(("prompt", "expected"), [
    ("a woman in a red jacket turns to the left and smiles in front of a blue wall",
     Attributes("blue", [Wish(clothes="red", turn="left", smile=True)])),
    ("a portrait of a man wearing a green shirt, an orange hat and sunglasses nods against a striped gray wall",
     Attributes("gray", [Wish(clothes="green", hat="orange", glasses="sunglasses", nod=True)])),
    ("a person in pink is surprised and looks ahead before a room with a white wall",
     Attributes("white", [Wish(clothes="pink", turn="ahead", mouth=True)])),
    ("a man in a blue hoodie talks and a woman in a black sweater and glasses turns right in front of a red curtain",
     Attributes("red", [Wish(clothes="blue", mouth=True), Wish(clothes="black", glasses="glasses", turn="right")])),
    ("a cat on the moon", Attributes(None, [])),
])  # fmt: skip
def test_prompts_are_read(prompt, expected):
    assert read_prompt(prompt) == expected


def test_colours_are_named_as_people_would():
    seen = {"red": (200, 30, 30), "blue": (40, 70, 190), "white": (240, 240, 236), "black": (20, 20, 22), "yellow": (240, 205, 50)}
    for name, rgb in (seen | {"gray": (130, 130, 135), "brown": (105, 65, 40), "pink": (240, 145, 180)}).items():
        assert colour_of(np.array([rgb] * 5 + [(0, 255, 0)] * 2)) == name
    assert colour_of(np.zeros((0, 3))) is None and len(COLOURS) == 11


def drawn_face(middle: int, nose: float, blue_shirt: bool = True) -> tuple[Image.Image, Face]:
    """A plain face on a green wall, its nose off the middle by `nose` of the distance from eyes to mouth."""
    image = Image.new("RGB", (144, 96), (33, 133, 56))
    pen = ImageDraw.Draw(image)
    pen.rectangle((middle - 40, 78, middle + 40, 96), fill=(36, 69, 194) if blue_shirt else (205, 28, 30))
    pen.ellipse((middle - 20, 14, middle + 20, 72), fill=(225, 180, 150))
    points = np.array([[-9, 38], [9, 38], [nose * 20, 48], [-7, 58], [7, 58]], float) + [middle, 0]
    for x, y in points[:2]:
        pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(30, 30, 30))
    return image, Face(np.array([middle - 18.0, 22, middle + 18, 70]), points, 0.9)


def test_turns_and_colours_are_measured():
    shots = [drawn_face(72, nose) for nose in np.linspace(0, 0.4, 9)]
    frames, faces = [image for image, _ in shots], [[face] for _, face in shots]
    right = "a man in a blue shirt turns right in front of a green wall"
    assert judged(frames, faces, right) == {"background": True, "clothes": True, "turn": True}
    wrong = "a man in a red shirt turns left in front of a white wall"
    assert judged(frames, faces, wrong) == {"background": False, "clothes": False, "turn": False}


def test_two_people_are_judged_from_left_to_right_whatever_order_they_are_found_in():
    frame, left = drawn_face(40, 0.0)
    other, right = drawn_face(104, 0.0, blue_shirt=False)
    frame.paste(other.crop((72, 0, 144, 96)), (72, 0))
    verdicts = judged([frame] * 4, [[right, left]] * 4, "a man in a blue shirt and a woman in a red shirt against a green wall")
    assert verdicts == {"background": True, "left clothes": True, "right clothes": True}


@pytest.mark.parametrize("height", [20, 30])  # the crop of the face ends in the image, or above it
def test_a_hat_is_looked_for_inside_the_image(height):
    image, face = drawn_face(72, 0.0)
    ImageDraw.Draw(image).rectangle((0, 0, 144, 36), fill=(205, 28, 30))
    moved = image.transform(image.size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, height - 10))
    face = Face(face.box - [0, height - 10, 0, height - 10], face.keypoints - [0, height - 10], 0.9)
    prompt = "a man and a {} hat"
    assert [judged([moved] * 4, [[face]] * 4, prompt.format(colour))["hat"] for colour in ("red", "black")] == [True, False]


def test_what_cannot_be_seen_is_not_judged():
    image, face = drawn_face(72, 0.0)
    prompt = "a man in a blue shirt smiles in front of a green wall"
    nothing = {"background": None, "clothes": None, "smile": None}
    assert judged([image] * 8, [[]] * 8, prompt) == nothing
    assert judged([image] * 8, [[face]] * 3 + [[]] * 5, prompt) == nothing
    assert judged([image] * 8, [[face]] * 8, "a cat on the moon") == {}


def test_movement_is_not_judged_in_a_image(recwarn):
    frame, face = drawn_face(72, 0.0)
    verdicts = judged([frame], [[face]], "a man in a blue shirt nods and talks and smiles")
    assert verdicts["nod"] is None and verdicts["mouth"] is None and verdicts["clothes"] and verdicts["smile"] is not None
    assert not recwarn.list


