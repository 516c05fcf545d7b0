"""The prompt with a sentence about the face, whose words are told which parts of the face they are fused with.

Templates and lengths are the released ones; a text is made for one prompt at a time.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WORDS = ("face", "ears", "eyes", "nose", "mouth")  # in the order in which their clauses are taken
MARKER = "<|facial|>"
LENGTH = 77  # tokens that the text encoder takes
LONGEST_DESCRIPTION = 330  # characters, in sampling
LONGEST_CLAUSES = 340  # characters, in training


@dataclass(frozen=True)
class Clauses:
    """The clauses of a description that name parts of a face, a marker behind the name; `words` are those names in the text's order."""

    text: str
    words: tuple[str, ...]


def clauses_of(description: str, parts: Sequence[str]) -> Clauses:
    """Take from a description what names the `parts` (of `WORDS`) that a photo shows; of each name only the first mention counts."""
    tokens, seen = [], set()
    for token in re.findall(r"\w+|[.,;!?]", description):
        if (word := token.lower()) in WORDS:
            if word in seen:
                continue
            seen.add(word)
        tokens.append(f"{token} {MARKER}" if token in WORDS and token in parts else token)
    clauses = [clause.strip() for clause in re.split("[.,;]", " ".join(tokens))]
    taken: list[str] = []
    for word in WORDS:
        taken += [clause for clause in clauses if re.search(rf"\b{word} {re.escape(MARKER)}", clause) and clause not in taken][:1]
    text = " ".join(f"{clause}," for clause in taken)
    return Clauses(text, tuple(re.findall(rf"(\w+) {re.escape(MARKER)}", text)))


@dataclass(frozen=True)
class FacialPrompt:
    """Tokens (77) of a prompt; the words of `words` stand at `positions`, as far as those are not cut off."""

    text: str
    tokens: list[int]
    positions: list[int]
    words: tuple[str, ...]

    def order(self, parts: Sequence[str], pairing: str = "released") -> list[int]:
        """Which of a photo's `parts`, in their own order, goes to each position.

        As released: the k-th position takes the k-th of the parts that have a word, so ears and eyes, whose words stand in another
        order than the parts, are swapped. "intended" gives each word its own.
        """
        named = [number for number, part in enumerate(parts) if part in self.words]
        if pairing == "intended":
            named = [parts.index(word) for word in self.words]
        return named[: len(self.positions)]


class FacialTokenizer:
    """CLIP's tokenizer, for which markers are no tokens."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def length(self, text: str) -> int:
        """Count the tokens of a text, both ends and every marker among them."""
        pieces = self._pieces(text)
        return sum(map(len, pieces)) + len(pieces) + 1

    def prompt(self, text: str, words: Sequence[str] = ()) -> FacialPrompt:
        """Make tokens of a text with markers, padded or cut to 77; a text that is cut has no end."""
        tokens, positions = [self.tokenizer.bos_token_id], []
        for piece in self._pieces(text):
            tokens += piece
            positions.append(len(tokens) - 1)
        end = self.tokenizer.eos_token_id
        tokens = [*tokens, *[end] * LENGTH][:LENGTH] if len(tokens) < LENGTH else tokens[:LENGTH]
        positions = [position for position in positions[:-1] if position < LENGTH]
        return FacialPrompt(text, tokens, positions, tuple(words))

    def for_sampling(self, prompt: str, description: str, parts: Sequence[str]) -> FacialPrompt:
        """Put what a description says of the `parts` behind a prompt, or before one that is long."""
        if len(description) > LONGEST_DESCRIPTION:
            return self.prompt(prompt)
        clauses = clauses_of(description, parts)
        text = f"{prompt}Detail:{clauses.text}"
        if self.length(text) > LENGTH:
            text = f"Detail:{clauses.text} Caption:{prompt}"
        return self.prompt(text, clauses.words)

    def for_training(self, caption: str, description: str, parts: Sequence[str]) -> FacialPrompt:
        """Put it behind the caption's first sentence, or before a caption that is long."""
        clauses = clauses_of(description, parts)
        if len(clauses.text) > LONGEST_CLAUSES:
            return self.prompt(caption)
        first, dot, rest = caption.partition(".")
        text = f"Caption:{first}{dot} Detail:{clauses.text}{rest[:-1]}"
        if self.length(text) > LENGTH:
            text = f"Detail:{clauses.text} Caption:{caption}"
        return self.prompt(text, clauses.words)

    def plain(self, text: str) -> list[int]:
        """Make tokens (77) of a text without its markers, cut so that it has an end."""
        made = self.tokenizer(text.replace(MARKER, ""), padding="max_length", max_length=LENGTH, truncation=True)
        return made["input_ids"]

    def _pieces(self, text: str) -> list[list[int]]:
        """Tokens between the markers, which stand at the ends of words."""
        return [self.tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"] for piece in text.split(MARKER)]
