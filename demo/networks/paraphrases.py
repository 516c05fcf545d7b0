"""Captions said otherwise, and sentences about other things, so that the encoder keeps its head with words that no list has."""

import random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SYNONYMS = {
    "woman": ("lady", "girl", "female"),
    "man": ("guy", "gentleman", "male"),
    "person": ("someone", "human"),
    "smiles": ("grins", "laughs", "beams"),
    "smiling": ("grinning", "laughing", "happy"),
    "talks": ("chats", "says something"),
    "talking": ("chatting", "telling a story"),
    "surprised": ("astonished", "amazed", "startled"),
    "calm": ("relaxed", "quiet", "serious"),
    "turns": ("rotates", "moves"),
    "looks": ("gazes", "glances"),
    "gray": ("grey",),
    "purple": ("violet",),
    "shirt": ("blouse",),
    "sweater": ("pullover", "jumper"),
    "jacket": ("coat", "blazer"),
    "wearing": ("dressed in",),
    "wall": ("backdrop",),
    "close-up": ("close shot", "headshot"),
    "video": ("clip", "film", "movie"),
}
OPENINGS = (
    "a photo of", "footage of", "a cinematic shot of", "a realistic video of", "a detailed picture of", "a short film of", "a scene with",
    "high quality video of", "a studio recording of", "a clip showing", "an image of",
)  # fmt: skip
ADVERBS = _words("slowly quickly gently carefully softly suddenly happily sadly quietly loudly briefly often really very almost then now")
ADJECTIVES = _words(
    "young old tall short small big beautiful elegant friendly tired famous strong kind clever busy sleepy proud nervous bright dark light "
    "warm cold soft plain modern vintage golden silver beige turquoise colorful blurry sharp empty crowded sunny rainy cloudy foggy quiet"
)
NOUNS = _words(
    "teacher doctor chef dancer singer runner musician painter child boy couple friend family crowd actor scientist farmer soldier king "
    "queen baby dog cat bird horse fish car train bicycle boat plane tree flower river mountain forest beach city street park garden "
    "kitchen office library cafe restaurant house bridge tower castle school market stage studio window door table chair lamp book phone "
    "camera guitar piano coffee tea bread apple water fire snow rain sun moon star sky cloud wind night morning evening dress suit scarf "
    "tie hair beard eyes face hand mouth head shoulder necklace earrings uniform coat boots umbrella bag flag ball game music story"
)
VERBS = _words(
    "walks runs dances sings laughs cries reads writes cooks drinks eats plays sits stands waves jumps swims flies sleeps waits thinks "
    "listens watches opens closes holds carries throws catches builds paints draws drives rides climbs falls rises shakes points claps"
)
PLACES = _words("in on near behind beside under above across through along with without around at")
ENDINGS = ("in 4k", "with shallow depth of field", "shot on film", "in high resolution", "with a steady camera", "while music plays")


def vary(text: str, random_source: random.Random) -> str:
    """Say a caption otherwise without changing what it says."""
    words = [random_source.choice(SYNONYMS[word]) if word in SYNONYMS and random_source.random() < 0.3 else word for word in text.split()]
    if random_source.random() < 0.15:
        words.insert(random_source.randrange(len(words) + 1), random_source.choice(ADVERBS))
    if random_source.random() < 0.2 and words[0] in ("a", "an"):
        words[0:1] = ["a", random_source.choice(ADJECTIVES[:17])]
    if random_source.random() < 0.15:
        words = [random_source.choice(OPENINGS), *words]
    if random_source.random() < 0.15:
        words.append(random_source.choice((*ENDINGS, _place(random_source))))
    return " ".join(words) + ("." if random_source.random() < 0.3 else "")


def sentence(random_source: random.Random) -> str:
    """Make a sentence about anything."""
    pick = random_source.choice
    parts = [_thing(random_source), pick(VERBS)]
    if random_source.random() < 0.4:
        parts.append(pick(ADVERBS))
    parts += [_place(random_source) for _ in range(random_source.randint(0, 2))]
    return " ".join(parts) + ("." if random_source.random() < 0.5 else "")


def _thing(random_source: random.Random) -> str:
    described = f"{random_source.choice(ADJECTIVES)} " if random_source.random() < 0.5 else ""
    return f"{random_source.choice(('a', 'the', 'two', 'one', 'this', 'his', 'her'))} {described}{random_source.choice(NOUNS)}"


def _place(random_source: random.Random) -> str:
    return f"{random_source.choice(PLACES)} {_thing(random_source)}"
