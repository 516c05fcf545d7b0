"""Sentences that tell what happens in a shot, never what a face looks like."""

import numpy as np

MAX_WORDS = 28
DRAFTS = 20
OPENINGS = ("", "", "", "", "a video of ", "a portrait of ", "a close-up of ")
WEARING = ("in {}", "in {}", "wearing {}")
BEFORE = ("in front of {}", "in front of {}", "against {}", "before {}")
EXPRESSIONS = {
    "smile": ("smiles", "is smiling", "smiles at the camera"),
    "talk": ("talks", "speaks", "is talking", "is speaking"),
    "surprise": ("looks surprised", "is surprised", "opens the mouth in surprise"),
    "calm": ("looks calm", "is calm", "", ""),
}
TURNS = {
    "left": ("turns left", "turns to the left", "looks to the left", "turns the head to the left"),
    "right": ("turns right", "turns to the right", "looks to the right", "turns the head to the right"),
    "nod": ("nods", "is nodding", "nods slowly"),
    "none": ("looks ahead", "looks at the camera", "", ""),
}
LIGHTS = {"soft": ("", "", "", "in soft light"), "warm": ("in warm light",), "cool": ("in cool light",), "dim": ("in dim light",)}
TOGETHER = ("are side by side", "stand side by side", "stand together", "")


def describe(facts: dict, rng: np.random.Generator) -> str:
    """Write a caption from the facts of a shot: the first draft of at most `MAX_WORDS`, or else the shortest of many."""
    drafts = []
    for _ in range(DRAFTS):
        drafts.append(draft(facts, rng))
        if len(drafts[-1].split()) <= MAX_WORDS:
            return drafts[-1]
    return min(drafts, key=lambda text: len(text.split()))


def draft(facts: dict, rng: np.random.Generator) -> str:
    """Write a caption of any length."""
    place = choose(rng, BEFORE).format(article(background_words(facts["background"], rng)))
    light = choose(rng, LIGHTS[facts["light"]])
    opening = choose(rng, OPENINGS)
    people = facts["people"]
    if len(people) == 1:
        who, act = person_words(people[0], rng, True), actions_words(people[0], rng)
        order = (who, act, place) if rng.random() < 0.75 else (who, place, act)
    else:
        both = [person_words(person, rng, False) for person in people]
        acts = [actions_words(person, rng) if rng.random() < 0.5 else "" for person in people]
        told = " and ".join(f"{who} {act}".strip() for who, act in zip(both, acts, strict=True))
        order = (told, "" if any(acts) else choose(rng, TOGETHER), place)
    for parts in ((opening, *order, light), (opening, *order), order):
        sentence = " ".join(" ".join(parts).split())
        if len(sentence.split()) <= MAX_WORDS:
            break
    return sentence


def choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """Pick one."""
    return options[int(rng.integers(len(options)))]


def article(words: str) -> str:
    """Put a or an before words."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def person_words(person: dict, rng: np.random.Generator, whole: bool) -> str:
    """Name a person by clothes and what is worn on the head."""
    clothes = person["clothes"]
    worn = [article(f"{clothes['color']} {clothes['kind']}")]
    if person["hat"]:
        worn.append(article(f"{person['hat']['color']} {person['hat']['kind']}"))
    if person["glasses"]:
        worn.append(person["glasses"])
    listed = worn[0] if len(worn) == 1 else f"{', '.join(worn[:-1])} and {worn[-1]}"
    noun = person["person"] if rng.random() < 0.85 or not whole else "person"
    return f"a {noun} {choose(rng, WEARING).format(listed)}"


def actions_words(person: dict, rng: np.random.Generator) -> str:
    """Say what a person does: the expression and the turn, in either order."""
    told = [choose(rng, EXPRESSIONS[person["expression"]]), choose(rng, TURNS[person["turn"]])]
    told = [words for words in (told if rng.random() < 0.6 else told[::-1]) if words]
    return " and ".join(told)


def background_words(background: dict, rng: np.random.Generator) -> str:
    """Name the background by its colour and kind."""
    kind, color = background["kind"], background["color"]
    words = {
        "wall": (f"{color} wall", f"{color} wall", f"{color} background"),
        "striped wall": (f"striped {color} wall",),
        "tiled wall": (f"tiled {color} wall",),
        "curtain": (f"{color} curtain",),
        "room": (f"{color} room", f"room with {article(color)} wall"),
    }
    return choose(rng, words[kind])
