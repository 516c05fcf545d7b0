"""Captions said otherwise, and sentences about other things, so that the encoder keeps its head with words that no list has."""

import json
import random
from pathlib import Path

WORDS = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))
SYNONYMS, OPENINGS, ADVERBS, ADJECTIVES, NOUNS, VERBS, PLACES, ENDINGS = WORDS.values()


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
