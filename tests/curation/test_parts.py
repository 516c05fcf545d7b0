"""Shots, clips, people and crops that are chosen: on made-up faces, without models."""

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from data.conftest import burned_times, write_clip
from face.test_tracking import sight
from in_process import ffmpeg
from PIL import Image

from concat_id.curation.clip_people import Demands, DiscardError, choose_people
from concat_id.curation.reference_crops import choose_references, frontality, spread_out, write_reference
from concat_id.curation.shots import Span, changes, find_cuts, plan_clips
from concat_id.curation.video_parts import cut_clip, read_frames
from concat_id.face.detection import TEMPLATE
from concat_id.face.tracking import FoundFace, Track

DEMANDS = Demands(presence=0.9, min_face=20, max_people=2)


def test_cuts_are_lone_changes():
    still = np.full(40, 2.0)
    assert find_cuts(still) == []
    cut = still.copy()
    cut[[10, 25]] = 60
    assert find_cuts(cut) == [10, 25]
    shaking = still.copy()
    shaking[10:30] = 40
    assert find_cuts(shaking) == []
    assert find_cuts(np.array([0.0, 50.0])) == [1] and find_cuts(np.array([0.0])) == find_cuts(np.array([0.0, 50.0, 20.0])) == []
    cut[[12, 14, 16, 18]] = 60
    assert find_cuts(cut) == [10, 12, 14, 16, 18, 25], "short shots"
    still[10] = 17
    assert find_cuts(still) == [], "less than another picture"


def test_changes_are_differences_of_brightness_up_and_down():
    assert changes(np.full((2, 2, 3), value, np.uint8) for value in (200, 10, 10, 90)).tolist() == [0, 190, 0, 80]


@pytest.mark.parametrize("seed", range(8))
def test_spans_fill_the_shots_that_are_long_enough(seed):
    random = np.random.default_rng(seed)
    frames, least = random.integers(25, 1500), random.integers(12, 200)
    cuts = sorted(random.choice(np.arange(1, frames), random.integers(5), replace=False).tolist())
    spans, short = plan_clips(cuts, frames, least, 25)
    assert all(least <= round(25 * span.seconds, 6) < 2 * least for span in spans)
    assert all(25 * span.seconds < least for span in short)
    assert sum(span.seconds for span in spans + short) == pytest.approx(frames / 25)
    assert not any(span.start + 1e-6 < cut / 25 < span.end - 1e-6 for cut in cuts for span in spans)
    assert all(25 * edge == pytest.approx(round(25 * edge)) for span in spans for edge in span[:2]), "they begin and end with a frame"
    assert any(span.whole for span in spans) == (not cuts and least <= frames < 2 * least)
    fewer, _ = plan_clips(cuts, frames, least, 25, most=2)
    assert fewer == (spans if len(spans) < 3 else [spans[0], spans[-1]])


@pytest.mark.parametrize("name", ["24000/1001.mp4", "25.mp4", "30000/1001.mkv", "60000/1001.mkv", "25.avi", "25.flv"])
def test_clips_hold_all_frames_of_their_shot_and_no_other(tmp_path, name):
    rate, cuts = Fraction(name[:-4]), [41, 83, 107]
    video = write_clip(tmp_path / f"video{name[-4:]}", name[:-4], 5.0, options=("-bf", "0" if name == "25.avi" else "2", "-g", "25"))
    ffmpeg("-i", video, "-metadata", "title=Jane Doe", "-c", "copy", named := video.with_stem("named"))
    assert b"Jane Doe" in named.read_bytes()
    spans, _ = plan_clips(cuts, round(5 * rate), 21, float(rate))
    assert Span(1.0, 2.0, frame=0.04).part == pytest.approx((0.984, 1.0)), "between two frames"
    for span in [Span(float(2 / rate), float(20 / rate), frame=float(1 / rate)), *spans]:
        cut_clip(named, tmp_path / "clip.mp4", *span.part, 60)
        assert b"Jane Doe" not in (tmp_path / "clip.mp4").read_bytes(), "clips are passed on"
        expected = list(range(round(span.start * rate), round(span.end * rate)))
        for frames in (read_frames(tmp_path / "clip.mp4", "null", 60), read_frames(video, f"fps={rate}", 60, *span.part)):
            assert [round(rate * second) for second in burned_times(list(frames)).tolist()] == expected


def test_the_start_of_avi_with_frames_out_of_order_is_read(tmp_path):
    """ffmpeg, told to jump to it, jumps beyond it and gives the frames from the next key frame on."""
    video = write_clip(tmp_path / "video.avi", "25", 5.0, options=("-bf", "2", "-g", "25"))
    for start in (0.0, 0.064):
        first = next(read_frames(video, "null", 60, start, 1.0))
        assert burned_times([first])[0] == pytest.approx(start, abs=0.1)


def persons(*tracks: dict[int, FoundFace]) -> list[Track]:
    return [Track(track) for track in tracks]


def reason(people: list[Track], frames: int = 10) -> str:
    with pytest.raises(DiscardError) as raised:
        choose_people(people, frames, DEMANDS, 0.3)
    return str(raised.value)


def test_reasons_to_discard():
    steady = {number: sight(10, 0) for number in range(10)}
    assert reason([]) == "no face in 10 frames"
    assert reason(persons({number: sight(10, 0) for number in range(8)})) == "no steady face: one person's in 8 of 10 frames, expected 9"
    assert reason(persons({number: sight(10, 0, 12) for number in range(10)})) == "the face is 12 pixels wide, expected 20"
    assert reason(persons(steady, steady, steady)) == "3 people, expected at most 2"
    assert reason(persons(steady, {number: sight(90, 1) for number in range(5)})) == "another face in 5 of 10 frames"
    assert "mean cosine 0.00" in reason(persons({number: sight(10, number % 8) for number in range(8)}), 8)
    passing_by = {number: sight(90, 1) for number in range(3)}
    small = {number: sight(90, 1, 15) for number in range(10)}
    (kept,) = choose_people(persons(steady, passing_by, small), 10, DEMANDS, 0.3)
    assert kept.faces is steady


def test_images_are_good_and_different():
    random = np.random.default_rng(0)
    vectors = random.standard_normal((20, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    qualities = random.uniform(0, 1, 20)
    chosen = spread_out(qualities, vectors, 5)
    assert chosen[0] == qualities.argmax() and len(set(chosen)) == 5 and qualities[chosen].min() >= 0.4 * qualities.max()
    assert spread_out(qualities, np.repeat(vectors[:1], 20, axis=0), 5) == [qualities.argmax()]


def test_frontality_falls_as_the_nose_moves_whatever_the_tilt():
    turned = [TEMPLATE + [[0, 0], [0, 0], [shift, 0], [0, 0], [0, 0]] for shift in (0, 4, 8, 20)]
    values = [frontality(points) for points in turned]
    assert values[0] == pytest.approx(1) and values == sorted(values, reverse=True) and values[-1] == 0
    angle = np.deg2rad(30)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert frontality(turned[1] @ rotation.T * 3 + 50) == pytest.approx(values[1])


def test_no_image_is_taken_where_people_stand_in_another_order():
    one = {number: sight(60 if number else 10, 0) for number in range(3)}
    two = {number: sight(30, 1) for number in range(3)}
    chosen = choose_references(persons(two, one), 5)
    assert [[reference.vector.argmax() for reference in references] for references in chosen] == [[1], [0]]
    assert all(reference.frame != 0 for references in chosen for reference in references)
    with pytest.raises(DiscardError, match="person 1 never stands"):
        choose_references(persons({0: two[0]}, {0: one[0]}), 5)


@pytest.mark.parametrize(("rows", "white"), [(60, 0.6), (39, 1.0)])
def test_masks_keep_what_the_model_sees_of_a_reference(tmp_path, rows, white):
    """The rule of inference: background below the first rows, all where too little would remain; the frame is the crop."""
    parser = SimpleNamespace(parse=lambda crop, keypoints: (np.arange(100)[:, None] < rows) * np.ones((1, 100), int))
    detector = SimpleNamespace(align=lambda frame, face, size: (frame, face.keypoints))
    crop = Image.new("RGB", (100, 100), "red")
    write_reference(tmp_path / "0.png", tmp_path / "masks" / "0.png", crop, sight(0, 0).face, detector, parser, 100)
    assert np.asarray(Image.open(tmp_path / "masks" / "0.png")).mean() / 255 == pytest.approx(white)
    assert Image.open(tmp_path / "0.png").getpixel((0, 99)) == (255, 0, 0)
