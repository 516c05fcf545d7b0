"""What the scores must do, on clips made of real photographs."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from evaluation.clips import other_photographs, scene, write_clip
from PIL import Image

from concat_id.evaluation import measuring
from concat_id.evaluation.clip_scores import clip_scores, viclip_scores
from concat_id.evaluation.face_tracks import Reference, assign, read_reference
from concat_id.evaluation.identity import copy_paste_index, identity_scores, key_point_distance, low_frequency_correlation
from concat_id.evaluation.intervals import mean_interval
from concat_id.evaluation.layouts import GeneratedVideo
from concat_id.evaluation.measuring import load_instruments, measure
from concat_id.evaluation.multi_person import multi_person_scores
from concat_id.evaluation.sampled_video import read_video
from concat_id.face.detection import TEMPLATE, Face
from concat_id.face.tracking import FoundFace, Track, similarity


@pytest.fixture
def score(tmp_path, instruments, portraits):
    """Measure a clip of these frames against these people's portraits."""

    def call(frames, *people, prompt="", tools=instruments):
        references = []
        for name in people:
            references.append(tmp_path / f"{name}.png")
            portraits.get(name, Image.new("RGB", (99, 99))).save(references[-1])
        return measure(GeneratedVideo("clip", write_clip(tmp_path / "clip.mp4", frames), tuple(references), prompt), tools)

    return call


def test_misses_count_in_the_honest_score_only(score, portraits):
    face, empty = scene(portraits["astronaut"]), scene(None)
    result = score([face, empty, face, empty], "astronaut")
    scores = result["scores"]
    assert scores["similarity_as_published"] > 0.85
    assert scores["similarity"] == pytest.approx(scores["similarity_as_published"] / 2, abs=0.01)
    assert scores["detection_rate"] == 0.5 and result["faces_found"] == [1, 0, 1, 0]
    assert result["curves"][0][1] is None and result["curves"][0][0] > 0.85
    low, high = result["interval"]
    assert low < scores["similarity"] < high


def test_frames_of_one_colour_say_nothing_of_steadiness(score):
    black = score([Image.new("RGB", (320, 240))] * 4, "astronaut")
    assert black["scores"]["temporal_consistency"] is black["scores"]["flicker"] is None
    assert "its frames are of one colour; temporal consistency and flicker are left out" in black["notes"]


def test_what_is_no_number_or_lost_is_left_out_and_said(score, portraits, monkeypatch):
    monkeypatch.setattr(measuring, "motion_scores", lambda *_: {"flicker": float("nan"), "temporal_consistency": 1.0})
    monkeypatch.setattr(measuring, "read_video", lambda *options: replace(read_video(*options), announced=9))
    result = score([scene(portraits["astronaut"])] * 2, "astronaut")
    assert result["scores"]["flicker"] is None and json.dumps(result, allow_nan=False)
    lost, odd = result["notes"]
    assert lost.startswith("2 of 9 frames") and odd.startswith("flicker: not a finite number")


def test_only_one_of_two_people_halves_the_honest_score(score, portraits):
    frames = [scene(portraits["astronaut"])] * 4
    scores = score(frames, "astronaut", "actor")["scores"]
    assert "similarity_as_published" not in scores, "benchmarks have one person a video"
    assert scores["similarity"] < 0.5 and scores["detection_rate"] == 0.5
    assert scores["match_rate"] == 0.5 == scores["missing_rate"] and scores["swap_rate"] == 0
    assert scores["order_accuracy"] is None


def test_swapped_references_turn_matches_into_swaps(score, portraits):
    frames = [scene(portraits["astronaut"], portraits["actor"])] * 4
    right = score(frames, "astronaut", "actor")["scores"]
    assert right["match_rate"] == 1 and right["swap_rate"] == 0 and right["order_accuracy"] == 1
    dressed = score(frames, "astronaut", "clothes", "actor")
    assert dressed["scores"] == right and len(dressed["references"]) == 2 and "clothes.png: found no face" in dressed["notes"][0]
    wrong = score(frames, "actor", "astronaut")["scores"]
    assert wrong["match_rate"] == 0 and wrong["swap_rate"] == 1 and wrong["order_accuracy"] == 0
    assert wrong["similarity"] == pytest.approx(right["similarity"], abs=1e-6), "who is there does not depend on the order"
    assert right["missing_rate"] == right["stranger_rate"] == right["merge_rate"] == 0


def test_pasted_face_is_caught(score, portraits):
    portrait = portraits["astronaut"]
    pasted = score([scene(portrait)] * 4, "astronaut")["scores"]
    assert pasted["copy_paste"] > 0.85 and pasted["similarity"] > 0.85
    assert pasted["similarity_beyond_copying"] < 0.15
    moved = score([scene(photo) for photo in other_photographs(portrait)], "astronaut")["scores"]
    assert moved["copy_paste"] < 0.4
    assert moved["similarity_beyond_copying"] > 3 * pasted["similarity_beyond_copying"]
    assert moved["similarity"] < pasted["similarity"], "the plain score is what the paste wins"


def test_several_faces_in_the_reference_are_told(score, portraits, tmp_path, instruments):
    both = Image.new("RGB", (500, 300))
    both.paste(portraits["astronaut"].resize((300, 300)), (0, 0))
    both.paste(portraits["actor"].resize((80, 80)), (360, 110))
    both.save(tmp_path / "both.png")
    clip = write_clip(tmp_path / "clip.mp4", [scene(portraits["astronaut"])] * 2)
    result = measure(GeneratedVideo("clip", clip, (tmp_path / "both.png",), ""), instruments)
    assert "found 2 faces; the largest is the reference" in result["notes"][0] and result["scores"]["similarity"] > 0.8


def test_tight_reference_is_found_with_a_border(tmp_path, portraits, instruments):
    face = instruments.detector.detect(portraits["astronaut"])[0]
    tight = portraits["astronaut"].crop(tuple(face.box.round().astype(int).tolist()))
    tight.save(tmp_path / "tight.png")
    portraits["astronaut"].save(tmp_path / "whole.png")
    vectors = [instruments.reference(tmp_path / name).found.vector for name in ("tight.png", "whole.png")]
    assert similarity(*vectors) > 0.7


def test_the_published_score_frames_what_shows_no_face_in_grey(score, portraits, monkeypatch):
    frame = scene(portraits["astronaut"])
    find = measuring.find_faces
    monkeypatch.setattr(measuring, "find_faces", lambda images, *tools: [[] if image.size == frame.size else find([image], *tools)[0]
                                                                         for image in images])  # fmt: skip
    result = score([frame] * 2, "astronaut")
    assert result["faces_found"] == [0, 0] and result["scores"]["similarity"] == 0 and result["scores"]["similarity_as_published"] > 0.6


def unit(*values) -> np.ndarray:
    return np.array(values, np.float32) / np.linalg.norm(values)


def face_at(x: float, vector: np.ndarray, colour=(0, 0, 0)) -> FoundFace:
    return FoundFace(Face(np.array([x, 0, x + 100, 100.0]), TEMPLATE + [x, 0], 0.9), Image.new("RGB", (112, 112), colour), vector)


def reference_of(vector: np.ndarray) -> Reference:
    return Reference(None, face_at(0, vector))


ANNA, BEN = unit(1, 0.2, 0), unit(0.2, 1, 0)
BOTH = [reference_of(ANNA), reference_of(BEN)]


def test_one_face_for_two_people_is_a_merge():
    def merge_rate(vector):
        track = Track({0: face_at(0, vector)})
        return multi_person_scores(BOTH, [track, Track()], [], 1, 0.363)["merge_rate"]

    assert merge_rate(unit(*(ANNA + BEN))) == 1
    assert merge_rate(ANNA) == merge_rate(BEN) == merge_rate(unit(0, 0, 1)) == 0


def test_rates_of_places_add_up():
    tracks = [Track({0: face_at(0, ANNA), 1: face_at(0, BEN)}), Track({0: face_at(200, BEN), 2: face_at(200, unit(0, 0, 1))})]
    scores = multi_person_scores(BOTH, tracks, [], 4, 0.363)
    assert scores["match_rate"] == 2 / 8 and scores["swap_rate"] == scores["stranger_rate"] == 1 / 8 and scores["missing_rate"] == 4 / 8
    assert scores["order_accuracy"] == 1


def test_a_third_face_takes_no_place():
    passer_by = Track({0: face_at(-200, unit(0, 0, 1))})
    people = [Track({0: face_at(0, ANNA), 1: face_at(0, ANNA)}), Track({0: face_at(200, BEN), 1: face_at(200, BEN)})]
    assert multi_person_scores(BOTH, people, [passer_by], 2, 0.363)["match_rate"] == 1


def test_places_go_from_left_to_right_and_strangers_have_no_order():
    anna, ben, stranger = face_at(0, ANNA), face_at(200, BEN), face_at(200, unit(0, 0, 1))
    tracks = [Track(dict.fromkeys(range(4), anna)), Track(dict.fromkeys(range(2), ben))]
    assert multi_person_scores(BOTH, tracks, [], 4, 0.363)["match_rate"] == 6 / 8
    tracks = [Track({0: anna}), Track({0: stranger})]
    assert multi_person_scores(BOTH, tracks, [], 1, 0.363)["order_accuracy"] is None


def test_one_who_comes_back_joins_their_track():
    main = Track({number: face_at(0, ANNA) for number in range(4)})
    shorter, later, stranger = Track({5: face_at(9, ANNA)}), Track({4: face_at(0, ANNA), 5: face_at(0, ANNA)}), Track({6: face_at(0, BEN)})
    (anna,), others = assign([reference_of(ANNA)], [shorter, stranger, main, later], 0.5)
    assert anna.faces == main.faces | later.faces and len(main.faces) == 4, "one face a frame, and no track given is changed"
    assert others == [shorter, stranger]


def test_the_same_photo_for_two_people_is_no_swap():
    tracks = [Track(dict.fromkeys(range(4), face_at(x, unit(1, 0.3, 0)))) for x in (200, 0)]
    scores = multi_person_scores([BOTH[0]] * 2, tracks, [], 4, 0.363)
    assert (scores["match_rate"], scores["swap_rate"], scores["order_accuracy"]) == (1, 0, None)


def test_one_undetected_frame_does_not_empty_a_place():
    tracks = [Track({number: face_at(x, vector) for number in frames}) for x, vector, frames in
              ((0, ANNA, range(16)), (200, BEN, range(8)), (200, BEN, range(9, 16)))]  # fmt: skip
    scores = multi_person_scores(BOTH, *assign(BOTH, tracks, 0.363), 16, 0.363)
    assert (scores["missing_rate"], scores["match_rate"]) == (1 / 32, 31 / 32)


@pytest.mark.parametrize("step", [-1, 0, 1])
def test_those_who_change_sides_half_way_are_swapped_from_then_on(step):
    anna, ben = ({n: face_at(200 * ((n < 8) == place) + step * place, face) for n in range(16)} for place, face in enumerate((ANNA, BEN)))
    halves = [Track({n: faces[n] for n in half}) for half in (range(8), range(8, 16)) for faces in (anna, ben)]
    for tracks in ([Track(anna), Track(ben)], halves):
        scores = multi_person_scores(BOTH, *assign(BOTH, tracks, 0.363), 16, 0.363)
        assert scores["match_rate"] == scores["swap_rate"] == 0.5


def test_the_largest_face_is_the_reference(tmp_path, recognizer):
    Image.new("RGB", (200, 200)).save(tmp_path / "a.png")
    large, small = face_at(0, ANNA).face, replace(face_at(0, ANNA).face, box=np.array([0, 0, 50, 50.0]))
    for faces in ([large, small], [small, large]):
        detector = SimpleNamespace(search=lambda image, faces=faces: (image, faces, None))
        assert read_reference(tmp_path / "a.png", detector, recognizer).found.face is large


def test_frames_without_a_face_count_0():
    scores, details = identity_scores([reference_of(ANNA)], [Track({0: face_at(0, ANNA)})], 2)
    assert scores["similarity"] == details["per_reference"][0] == pytest.approx(0.5)
    assert scores["similarity_beyond_copying"] == pytest.approx(0.5, abs=1e-3), "crops of one colour are no copies"
    people = [Track(dict.fromkeys(range(3), face_at(0, ANNA))), Track({0: face_at(0, BEN)})]
    assert identity_scores(BOTH, people, 4)[1]["interval"] == pytest.approx(mean_interval([1, 0.5, 0.5, 0])), "of frames, not of faces"


def test_copies_are_told_by_key_points_and_by_the_middle_of_the_crop():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (112, 112, 3), np.uint8))
    face = replace(face_at(0, ANNA), crop=noise)
    other = replace(face, face=replace(face.face, keypoints=TEMPLATE + np.eye(5)[2][:, None] * [6, 0]))
    distance = key_point_distance(face.face.keypoints, other.face.keypoints)
    assert copy_paste_index(face, other) == pytest.approx(2 ** (-((distance / 0.05) ** 2) / 2)) and 0.02 < distance < 0.06
    correlations = []
    for cut in np.diag([0, 8, 8, -8, -8])[:, 1:]:  # the whole middle, then without one of its edges
        box = (cut + [24, 24, 88, 104]).tolist()
        part = Image.new("RGB", noise.size)
        part.paste(noise.crop(box), box)
        correlations.append(low_frequency_correlation(noise, part))
    assert correlations[0] == pytest.approx(1) and max(correlations[1:]) < 0.9


class LightOrDark:
    """Stands in for CLIP and ViCLIP: (1, 0) for what is light, and for every prompt."""

    def encode_images(self, images):
        return np.stack([unit(np.asarray(image).mean() > 99, np.asarray(image).mean() <= 99) for image in images])

    def encode_video(self, frames):
        return self.encode_images(frames).mean(axis=0)

    def encode_text(self, prompt):
        return unit(1, 0), len(prompt.split())


def test_scores_of_clip_and_viclip():
    frames = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (250, 250, 0, 0)])
    alike, other = face_at(0, ANNA), face_at(0, ANNA, colour=(255, 255, 255))
    scores, notes = clip_scores(LightOrDark(), frames, "a b", [reference_of(ANNA)], [Track({0: alike, 1: alike, 2: alike, 3: other})])
    assert scores == {"clip_text": 0.5, "clip_consistency": pytest.approx(2 / 3), "clip_distance": 0.25} and "2 chunks" in notes[0]
    assert viclip_scores(LightOrDark(), frames, "a")[0] == {"viclip": 0.5}
    assert clip_scores(LightOrDark(), frames[:1], "", [], []) == ({"clip_text": None, "clip_consistency": None, "clip_distance": None}, [])
    assert viclip_scores(LightOrDark(), frames, "") == ({"viclip": None}, [])


def test_a_video_is_scored_by_all_that_is_loaded(score, portraits, instruments):
    tools = replace(instruments, clip=LightOrDark(), viclip=LightOrDark())
    result = score([scene(portraits["astronaut"])] * 3, "astronaut", prompt="a woman", tools=tools)
    assert result["scores"]["clip_text"] == result["scores"]["viclip"] == 1 and sum("2 chunks" in note for note in result["notes"]) == 2
    assert "clip_text" not in score([scene(portraits["astronaut"])], "astronaut")["scores"]


def test_missing_weights_are_told(face_folder, recognizer_folder, tmp_path, capsys):
    tools = load_instruments("cpu", detector=str(face_folder), recognizer=str(recognizer_folder), clip=str(tmp_path / "clip"),
                             viclip="models/viclip", parser=str(tmp_path / "parser"), num_frames=4, threshold=None)  # fmt: skip
    assert tools.threshold == 0.363 and tools.clip is None and "into models/viclip" in tools.not_computed["viclip"]
    assert all(f"into {tmp_path / 'clip'}" in tools.not_computed[name] for name in ("clip_text", "clip_distance", "fgis"))
    assert f"into {tmp_path / 'parser'}" in tools.not_computed["fgis"] and tools.parts is None
    told = capsys.readouterr().err
    assert f"--clip: {tmp_path / 'clip'}: no such file, so clip_text" in told and "--parser" in told and "--viclip" not in told
