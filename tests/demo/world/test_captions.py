"""Captions tell the facts of a shot and nothing of the face."""

FACE = {"hair", "beard", "moustache", "skin", "nose", "blond", "bald", "eyes", "brows", "freckles", "lips", "young", "old"}


def test_captions_are_short_varied_and_silent_about_faces():
    from world.captions import MAX_WORDS
    from world.unseen import draw_captions

    drawn, known = draw_captions(600, seed=0), set()
    for caption, facts in drawn.items():
        words = caption.replace(",", "").split()
        assert len(words) <= MAX_WORDS + 8 * (len(facts["people"]) - 1) and not FACE & set(words), caption
        assert facts["background"]["color"] in words and not {("a", "orange"), ("an", "red")} & set(zip(words, words[1:], strict=False))
        for person in facts["people"]:
            assert person["clothes"]["color"] in words and person["clothes"]["kind"] in words
            assert not person["hat"] or f"{person['hat']['color']} {person['hat']['kind']}" in caption
        known.update(words)
    assert len(drawn) > 580 and len(known) < 110
