"""Faces linked to people, on made-up vectors."""

from types import SimpleNamespace

import numpy as np
from PIL import Image

from concat_id.face.detection import TEMPLATE, Face
from concat_id.face.tracking import FoundFace, Track, build_tracks, find_faces, similarity


def sight(x: float, who: int, side: float = 40.0) -> FoundFace:
    """A face of person `who` at a horizontal place."""
    face = Face(np.array([x, 10, x + side, 10 + side]), TEMPLATE, 0.9)
    return FoundFace(face, Image.new("RGB", (112, 112)), np.eye(8, dtype=np.float32)[who])


def who_is_in(tracks: list[Track]) -> list[dict[int, int]]:
    return [{number: int(found.vector.argmax()) for number, found in track.faces.items()} for track in tracks]


def test_people_who_change_places_stay_themselves():
    slowly = [[sight(10, 0), sight(90, 1)], [sight(45, 0), sight(55, 1)], [sight(88, 0), sight(12, 1)]]
    at_once = [[sight(0, 0), sight(200, 1)], [sight(200, 0), sight(0, 1)], [], [sight(40, 1)]]
    assert who_is_in(build_tracks(slowly, 0.5)) == [{0: 0, 1: 0, 2: 0}, {0: 1, 1: 1, 2: 1}]
    assert who_is_in(build_tracks(at_once, 0.5)) == [{0: 0, 1: 0}, {0: 1, 1: 1, 3: 1}], "remembered while away"


def test_one_who_was_gone_is_known_again_and_one_who_looks_away_is_followed():
    (track,) = build_tracks([[sight(10, 0)], [], [sight(80, 0)], [sight(82, 5)], [sight(83, 0)]], 0.5)
    assert sorted(track.faces) == [0, 2, 3, 4]
    assert len(build_tracks([[sight(10, 0)], [sight(90, 1)]], 0.5)) == 2
    assert len(build_tracks([[sight(10, 0)], [], [sight(10, 1)]], 0.5)) == 2, "a place is not remembered"
    assert [len(build_tracks([[sight(10, 0)], [sight(10 + by, 5)]], 0.5)) for by in (17, 24)] == [1, 2], "overlap of 0.40, 0.25"


def test_faces_come_largest_first_with_their_own_vectors():
    faces = [sight(10, 0, side).face for side in (20, 60, 40)]
    recognizer = SimpleNamespace(align=lambda image, face: face.side, embed_crops=lambda crops: np.array(crops)[:, None])
    (found,) = find_faces([None], SimpleNamespace(detect=lambda _: faces), recognizer)
    assert [(one.side, *one.vector) for one in found] == [(60, 60), (40, 40), (20, 20)]
    assert similarity(np.ones(1), -np.ones(1)) == 0


def test_a_track_has_a_place_a_size_and_a_likeness():
    track = Track({0: sight(10, 0), 1: sight(30, 0, 60), 3: sight(20, 1, 50)})
    assert track.position == 45 and track.side == 50 and track.box.tolist() == [20, 10, 70, 60]
    assert track.prominence == (3, 40**2 + 60**2 + 50**2)
    assert abs(track.likeness - 1 / 3) < 1e-6 and Track({0: sight(10, 0)}).likeness == 1
