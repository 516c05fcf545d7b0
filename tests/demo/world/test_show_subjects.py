"""Clothes and backgrounds of rendered shots: what the library makes of exact masks."""

import numpy as np
from conftest import ROOT
from in_process import load_script


def test_two_people_wear_what_is_theirs_and_one_leaves_the_background():
    subjects_of_shot = load_script(ROOT / "demo" / "show_subjects.py").subjects_of_shot
    middle, left, right, first, _ = subjects_of_shot(3, 1, 2)
    colours = [np.asarray(image)[np.asarray(image).any(axis=-1)].mean(axis=0) for image in (left, right)]
    assert np.abs(colours[0] - colours[1]).max() > 60, "purple and white"
    _, _, first, empty = subjects_of_shot(3, 0, 1)
    same = (np.asarray(first) == np.asarray(empty)).all(axis=-1)
    assert 0.3 < same.mean() < 0.7 and same[:, :10].all() and not same[40:100, 80:110].any()
