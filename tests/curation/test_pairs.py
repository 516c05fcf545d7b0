"""The algebra of thresholds, pairs and splits: on random vectors, as properties."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from in_process import refused

from concat_id.curation import identities
from concat_id.curation.identities import NamedClip, Others, assign_splits, name_people, too_close
from concat_id.curation.pairs import choose, cross_video_pairs, pretraining_pairs, trade_off_pairs
from concat_id.curation.test_set import photos_of
from concat_id.curation.thresholds import ANCHORS, QUANTILES, Distribution, Thresholds, calibrate, measure
from concat_id.curation.training_lists import joined, path_from, place_clips, without_trained_on
from concat_id.data.manifest import Appearance, Clip

SEEDS = range(8)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def world(seed: int, people: int = 12, clips: int = 4, spread: float = 0.5, named: bool = True) -> list[Clip]:
    """Clips of random people, every fifth of two of them, with three images of each."""
    random = np.random.default_rng(seed)
    centres = unit(random.standard_normal((people, 24)))
    made = []
    for number in range(people * clips):
        who = [number % people] + ([(number + 1) % people] if number % 5 == 0 and number % people % 2 == 0 else [])
        appearances = []
        for place, person in enumerate(who):
            vectors = unit(centres[person] + spread * unit(random.standard_normal((3, 24))) * random.uniform(0.2, 1.5, (3, 1)))
            names, name = tuple(f"{index}.png" for index in range(3)), f"p{person}" if named else None
            appearances.append(Appearance(f"/data/{number}/{place}", names, vectors.astype(np.float32), name))
        made.append(Clip(f"/data/{number}.mp4", f"caption {number}", tuple(appearances)))
    return made


def placed(seed: int, **options) -> list[NamedClip]:
    return place_clips(world(seed, **options), 0.6, (0.2, 0.3), seed)[0]


def cosines(clip: NamedClip, place: int, others: Others) -> dict[Path, float]:
    """Mean cosine of every image of a person in other clips with the images of this clip, one by one."""
    own = clip.clip.people[place].vectors
    return {image: float(np.mean([vector @ mine for mine in own])) for other in others.of(clip, place)
            for image, vector in zip(map(other.image, range(3)), other.vectors, strict=True)}  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_every_pair_is_in_its_band_of_the_same_person_and_another_clip(seed):
    clips, thresholds = placed(seed), Thresholds("X", (0.5, 0.8), (0.6, 0.9), (0.8, 0.97), 0.45)
    others = Others(clips)
    for stage, single, two in (
        (cross_video_pairs(clips, thresholds, seed), thresholds.cross, thresholds.cross_two),
        (trade_off_pairs(clips, thresholds, 100, seed), thresholds.trade_off, thresholds.trade_off),
    ):
        assert stage.pairs and len(stage.pairs) + sum(stage.dropped.values()) == len(clips)
        for pair in stage.pairs:
            low, high = single if len(pair.clip.identities) == 1 else two
            for place, (image, mask, cosine) in enumerate(zip(pair.images, pair.masks, pair.cosines, strict=True)):
                known = cosines(pair.clip, place, others)
                assert known[image] == pytest.approx(cosine, abs=1e-5) and low <= cosine < high
                assert image.parent.parent.name != pair.clip.clip.video.stem
                assert mask == image.parent.with_name(f"{image.parent.name}.masks") / image.name


def test_of_three_people_two_need_a_crop_of_another_clip_and_the_third_shows_its_own():
    vectors = unit(np.eye(4, 24, dtype=np.float32)[:, None])

    def clip(name: str, *people: int) -> NamedClip:
        known = tuple(Appearance(f"/data/{name}/{person}", ("0.png",), vectors[person]) for person in people)
        return NamedClip(Clip(f"/data/{name}.mp4", "", known), tuple(f"p{person}" for person in people), "train")

    sides = trade_off_pairs([clip("one", 0, 3), clip("other", 3, 0)], Thresholds(trade_off=(0.9, 1.1)), 1, 0)
    assert len(sides.pairs) == 1 == sides.dropped.total(), "two people are the same two in either order"
    clips = [clip("all", 0, 1, 2), clip("a", 0), clip("b", 2), clip("few", 2, 3, 1), clip("two", 0, 3)]
    stage = cross_video_pairs(clips[:3], Thresholds(cross_two=(0.9, 1.1)), 0)
    (pair,) = stage.pairs
    assert pair.images == (Path("/data/a/0/0.png"), Path("/data/all/1"), Path("/data/b/2/0.png")) and len(pair.cosines) == 2
    assert pair.masks[1] == Path("/data/all/1.masks")
    for chosen in (clips[1:4], [clips[1], clips[4]]):  # of three only one is elsewhere; of two only one
        assert not [pair for pair in cross_video_pairs(chosen, Thresholds(cross_two=(0.9, 1.1)), 0).pairs if len(pair.clip.identities) > 1]


@pytest.mark.parametrize("seed", SEEDS)
def test_minimum_pairing_takes_the_least_of_the_band_and_random_pairing_any(seed):
    random = np.random.default_rng(seed)
    values, band = random.uniform(0.4, 1, 30), (0.6, 0.8)
    inside = {int(index) for index in np.flatnonzero((values >= 0.6) & (values < 0.8))}
    assert choose(values, band, "minimum", random) == min(inside, key=lambda index: values[index])
    assert {choose(values, band, "random", random) for _ in range(400)} == inside
    assert choose(values, (2.0, 3.0), "random", random) is None
    assert choose(np.array([0.6, 0.8]), band, "minimum", random) == 0  # from the lower bound, below the upper
    assert choose(np.array([0.8]), band, "minimum", random) is None


@pytest.mark.parametrize("seed", SEEDS)
def test_trade_off_sets_are_small_and_hold_the_least_similar_pairs(seed):
    clips, thresholds = placed(seed, spread=0.3), Thresholds(trade_off=(0.5, 0.97))
    everything, few = trade_off_pairs(clips, thresholds, 100, seed), trade_off_pairs(clips, thresholds, 1, seed)
    best, others = defaultdict(lambda: 1.0), Others(clips)
    for pair in everything.pairs:
        best[pair.clip.identities] = min(best[pair.clip.identities], *pair.cosines)
        for place, cosine in enumerate(pair.cosines):
            inside = [other for other in cosines(pair.clip, place, others).values() if 0.5 <= other < 0.97]
            assert cosine == pytest.approx(min(inside), abs=1e-5)
    assert {pair.clip.identities: min(pair.cosines) for pair in few.pairs} == best


def test_pairs_depend_on_the_seed_alone():
    clips, thresholds = placed(1), Thresholds(cross=(0.3, 0.95), cross_two=(0.3, 0.95))
    first, again, other = ([pair.images for pair in cross_video_pairs(clips, thresholds, seed).pairs] for seed in (5, 5, 6))
    assert first == again != other


def test_the_papers_bands_meet_and_stage_one_is_the_clip_itself():
    paper = Thresholds()
    assert (paper.cross, paper.cross_two, paper.trade_off, paper.hygiene) == ((0.7, 0.9), (0.87, 0.97), (0.9, 0.99), 0.45)
    clips = placed(0)
    for pair, clip in zip(pretraining_pairs(clips).pairs, clips, strict=True):
        assert pair.images == tuple(person.image() for person in clip.clip.people)


def test_a_test_person_is_shown_by_the_most_typical_whole_image_of_a_recording():
    def taken(name: str, recording: str, *vector: float) -> NamedClip:
        person = Appearance(f"/data/{name}", ("0.png",), unit(np.array([vector])))
        return NamedClip(Clip(f"/data/{name}", "c", (person,), "test", recording), ("p0",), "test")

    clips = [taken("typical.mp4", "first", 1, 0), taken("odd.png", "second", -0.5, 1), taken("plain.png", "second", 1, 0.1),
             taken("turned.png", "third", 0.6, -0.8)]  # fmt: skip
    images = photos_of([(clip, clip.clip.people[0]) for clip in clips])
    assert [*images.values()] == [Path("/data/plain.png"), Path("/data/turned.png"), Path("/data/typical.mp4/0.png")]


@pytest.mark.parametrize("seed", SEEDS)
def test_calibrated_thresholds_follow_any_rising_change_of_the_scores(seed):
    """What matters: another recogniser that ranks pairs alike keeps the same pairs."""
    random = np.random.default_rng(seed)
    same, different, nearest = random.beta(8, 2, 999), random.normal(0, 0.1, 999), random.normal(0.3, 0.05, 101)

    def other(scores: np.ndarray) -> np.ndarray:
        return 0.9 * scores**3 + 0.05 * scores - 0.02

    def kept(scores: np.ndarray, band: tuple[float, float]) -> set[int]:
        return set(np.flatnonzero((scores >= band[0]) & (scores < band[1])).tolist())

    before = calibrate(Distribution(same, different, nearest), "A")
    after = calibrate(Distribution(other(same), different, other(nearest)), "B")
    for band in ("cross", "cross_two", "trade_off"):
        changed = kept(same, getattr(before, band)) ^ kept(other(same), getattr(after, band))
        assert len(changed) <= 2  # quantiles between two scores are interpolated
    assert before.cross[1] == before.trade_off[0] and before.cross[0] < before.cross_two[0] < before.cross_two[1] < before.trade_off[1]
    assert np.mean(same < before.cross[0]) == pytest.approx(QUANTILES[0], abs=2e-3)
    assert np.mean(nearest > before.hygiene) == pytest.approx(0.05, abs=0.01)
    assert before.recognizer == "A"


def test_calibration_on_scores_like_the_papers_gives_the_papers_thresholds():
    same = np.interp(np.linspace(0, 1, 100_001), (0, *QUANTILES, 1), (0.2, *ANCHORS, 1))
    found = calibrate(Distribution(same, same, same), "ArcFace")
    for name in ("cross", "cross_two", "trade_off"):
        assert getattr(found, name) == pytest.approx(getattr(Thresholds(), name), abs=1e-3)


def test_measured_distributions_are_those_of_all_pairs():
    clips = placed(3, people=6)
    found, others = measure(clips, 0), Others(clips)
    expected = [value for clip in clips for place in range(len(clip.identities)) for value in cosines(clip, place, others).values()]
    np.testing.assert_allclose(np.sort(found.same), np.sort(expected), atol=1e-5)
    assert found.same.mean() > found.different.mean() + 0.3 and len(found.nearest) == 6
    people = [pair for clip in clips for pair in zip(clip.identities, clip.clip.people, strict=True)]
    vectors = [(name, vector) for name, person in people for vector in person.vectors]
    nearest = {name: max(float(a @ b) for who, a in vectors if who == name for other, b in vectors if other != name) for name, _ in vectors}
    np.testing.assert_allclose(sorted(found.nearest), sorted(nearest.values()), atol=1e-5)
    refused("--calibrate: found .* prepare more clips", measure, clips[:2], 0)
    merged = [replace(clip, identities=("one",) * len(clip.identities)) for clip in clips]
    refused(f"all {len(clips)} clips count as one person's by the cosine .* --same_person", measure, merged, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_is_in_two_splits(seed):
    clips = placed(seed)
    members = defaultdict(set)
    for clip in clips:
        for name in clip.identities:
            members[name].add(clip.split)
    assert all(len(splits) == 1 for splits in members.values())
    assert {clip.split for clip in clips} == {"train", "valid", "test"}


def test_splits_have_their_shares_and_one_group_at_least():
    clips, alone = world(0)[:10], [(f"p{number}",) for number in range(10)]
    for count, shares, expected in ((10, (0.1, 0.3), (6, 1, 3)), (3, (0.01, 0.01), (1, 1, 1)), (3, (0.0, 0.0), (3, 0, 0))):
        found = assign_splits(clips[:count], alone[:count], *shares, 0)
        assert tuple(map(found.count, ("train", "valid", "test"))) == expected


def test_splits_that_are_given_are_kept_and_contradictions_told():
    clips = [Clip(clip.file, clip.caption, clip.people, "test" if clip.people[0].identity == "p3" else None) for clip in world(0)]
    names = name_people(clips, 0.5)
    splits = assign_splits(clips, names, 0.0, 0.0, 0)
    assert {split for split, people in zip(splits, names, strict=True) if "p3" in people} == {"test"} and "train" in splits
    clips[0] = Clip(clips[0].file, "c", clips[3].people, "train")
    told = "'train' here and in 'test'|'test' here and in 'train'"
    refused(told, assign_splits, clips, name_people(clips, 0.5), 0.0, 0.0, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_people_without_names_are_told_apart_by_their_faces(seed):
    clips = world(seed, people=5, spread=0.1, named=False)
    found, known = name_people(clips, 0.8), name_people(world(seed, people=5, spread=0.1), 0.8)
    pairs = {pair for people, names in zip(found, known, strict=True) for pair in zip(people, names, strict=True)}
    assert len(pairs) == 5 == len({name for name, _ in pairs})


def test_clips_whose_people_look_alike_are_left_out():
    clip = world(0, named=False)[0]
    twins = Clip(clip.file, "c", (clip.people[0], clip.people[0]))
    kept, dropped = place_clips([clip, twins], 0.6, (0, 0), 0)
    assert [placed.clip for placed in kept] == [clip] and sum(dropped.values()) == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_too_close_to_training_is_tested(seed, monkeypatch):
    monkeypatch.setattr(identities, "BLOCK", 5)  # people of training that are compared at a time
    clips = placed(seed, spread=1.0)
    threshold = float(np.median(list(too_close(clips, -1.0).values())))
    kept, close = without_trained_on(clips, threshold)
    pool = np.concatenate([person.vectors for clip in clips if clip.split == "train" for person in clip.clip.people])
    for clip in clips:
        for name, person in zip(clip.identities, clip.clip.people, strict=True):
            if clip.split != "train" and (person.vectors @ pool.T).max() > threshold:
                assert name in close
    assert [clip for clip in kept if clip.split == "train"] == [clip for clip in clips if clip.split == "train"]
    assert too_close(kept, threshold) == {} and all(value > threshold for value in close.values())
    assert close and any(clip.split != "train" for clip in kept)


def test_paths_are_relative_where_lists_and_clips_lie_side_by_side():
    assert path_from(Path("/a/data/x.mp4"), Path("/a/lists")) == "../data/x.mp4"
    assert path_from(Path("/b/x.mp4"), Path("/a/lists")) == "/b/x.mp4"
    refused("a@@b/x.png: found @@ or the end of a line in a path", joined, ["a@@b/x.png"])


def test_clips_of_one_recording_are_no_other_clips_to_each_other():
    first, second, third = (clip.people[0] for clip in world(0, people=1, clips=3))
    clips = [NamedClip(Clip(f"/data/{name}.png", "c", (person,), "train", recording), ("p0",), "train")
             for name, person, recording in (("a", first, "shot"), ("b", second, "shot"), ("c", third, None))]  # fmt: skip
    others = Others(clips)
    assert [others.of(clip, 0) for clip in clips] == [[third], [third], [first, second]]
