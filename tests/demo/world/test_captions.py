"""Captions tell the facts of a shot and nothing of the face."""

import numpy as np
import pytest

FACE = {"hair", "beard", "moustache", "skin", "nose", "blond", "bald", "eyes", "brows", "freckles", "lips", "young", "old"}


def facts_of(rng, num_people):
    from world.background import BACKGROUNDS
    from world.palette import NAMED
    from world.shots import CLOTHES, EXPRESSIONS, HATS, LIGHTS, TURNS

    def pick(options):
        return list(options)[int(rng.integers(len(options)))]

    def person():
        return {
            "person": pick(["man", "woman"]),
            "clothes": {"kind": pick(CLOTHES), "color": pick(NAMED)},
            "turn": pick(TURNS),
            "expression": pick(EXPRESSIONS),
            "hat": {"kind": pick(HATS), "color": pick(NAMED)} if rng.random() < 0.5 else None,
            "glasses": pick([None, "glasses", "sunglasses"]),
        }

    return {
        "background": {"kind": pick(BACKGROUNDS), "color": pick(NAMED)},
        "light": pick(LIGHTS),
        "people": [person() for _ in range(num_people)],
    }


@pytest.mark.parametrize("num_people", [1, 2])
def test_captions_are_short_varied_and_silent_about_faces(num_people):
    from world.captions import MAX_WORDS, describe

    rng, told = np.random.default_rng(0), set()
    for _ in range(300):
        facts = facts_of(rng, num_people)
        caption = describe(facts, rng)
        words = caption.replace(",", "").split()
        assert len(words) <= (MAX_WORDS if num_people == 1 else MAX_WORDS + 8) and not FACE & set(words), caption
        assert facts["background"]["color"] in words
        for person in facts["people"]:
            assert person["clothes"]["color"] in words and person["clothes"]["kind"] in words
            assert not person["hat"] or f"{person['hat']['color']} {person['hat']['kind']}" in caption
        told.add(caption)
    assert len(told) > 290


def test_the_vocabulary_is_small():
    from world.captions import describe

    rng = np.random.default_rng(1)
    words = {word for k in range(2000) for word in describe(facts_of(rng, 1 + k % 2), rng).replace(",", "").split()}
    assert len(words) < 110
    assert not any(word in words for word in ("an red", "  "))


def test_articles_fit():
    from world.captions import article

    assert article("orange hat") == "an orange hat" and article("red hat") == "a red hat"


def test_captions_without_images_are_the_same_for_the_same_seed():
    from world.unseen import draw_captions

    captions = draw_captions(60, seed=3)
    assert captions == draw_captions(60, seed=3) and captions.keys() != draw_captions(60, seed=4).keys()
    people = [len(facts["people"]) for facts in captions.values()]
    assert len(captions) > 50 and 0.25 < people.count(2) / len(people) < 0.75 and set(people) == {1, 2}
