"""Teach a small T5 encoder what captions say: every token, padding included, is to know all attributes of the shot.

A transformer that joins text and images reads whichever tokens it likes, and the released text encoder gives it the same chance:
its padding is not masked. Beside that, a word that is an attribute's value is to know of which attribute (whose shirt is red), and words
that were left out of the input are guessed, those of sentences about other things too.
"""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from concat_id.distributed import has_bfloat16
from concat_id.files.json_files import write_json
from networks.building import build_text_encoder, matrices, write_tokenizer
from networks.captions import AttributeTable, Caption
from networks.learner import WARM_UP, Descent
from networks.paraphrases import sentence, vary
from networks.vocabulary import train_vocabulary

SEED_OF_WORDS = 1  # beside --seed, so that network and paraphrases do not share random numbers
MASKED = 0.2  # share of the tokens left out
GUESSING = 0.3  # weight of the words that were left out, against the attributes
OTHER = 0.2  # share of a batch that is about other things
IGNORED = -100


@dataclass(frozen=True)
class TextTraining:
    """How to train; `variants` is how often a caption is said otherwise, `sentences` how many are made up about other things."""

    width: int = 256
    layers: int = 4
    heads: int = 4
    hidden: int = 512
    max_length: int = 32
    pieces: int = 1800
    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 2e-3
    variants: int = 2
    sentences: int = 8000
    seed: int = 0


class TextEncoderTrainer:
    """Trains on captions; writes the tokenizer to a folder and in the end the encoder beside it."""

    def __init__(self, captions: Sequence[Caption], training: TextTraining, folder: Path):
        self.training, self.folder = training, folder
        self.learned = [caption for caption in captions if not caption.held_out]
        self.held_out = [caption for caption in captions if caption.held_out]
        words = random.Random(training.seed + SEED_OF_WORDS)
        other = [sentence(words) for _ in range(training.sentences)]
        texts = [[caption.text, *(vary(caption.text, words) for _ in range(training.variants))] for caption in self.learned]
        corpus = [*(text for variants in texts for text in variants), *other]
        self.tokenizer = write_tokenizer(folder, train_vocabulary(corpus, training.pieces), training.max_length)
        self.tokens = self._tokens_of_variants(texts)  # (N, 1 + variants, L)
        self.other = self.tokenize(other)
        self.table = AttributeTable(self.learned)
        self.labels = self.table.labels(self.learned)
        self.roles = self._roles_of_words()  # (N, 1 + variants, L)

        torch.manual_seed(training.seed)
        encoder = build_text_encoder(training.width, training.layers, training.heads, training.hidden, len(self.tokenizer))
        outputs = {"attributes": sum(self.table.sizes), "roles": len(self.table.values), "words": len(self.tokenizer)}
        heads = {name: nn.Linear(training.width, number) for name, number in outputs.items()}
        self.network = nn.ModuleDict({"encoder": encoder, **heads})
        self.learner = Descent(self.network, matrices(encoder), training.learning_rate)

    def train(self) -> None:
        """Take all steps."""
        steps, generator = self.training.steps, torch.Generator().manual_seed(self.training.seed)
        with tqdm(range(steps), desc="text encoder", unit="step") as bar:
            for step in bar:
                loss, shown = self.loss(generator)
                self.learner.descend(loss, step / steps, min(WARM_UP, steps / 10))
                bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()}, refresh=False)

    def loss(self, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Draw a batch and judge it: attributes of captions that are whole, words of captions and sentences that are not."""
        num_other = int(self.training.batch_size * OTHER)
        num_captions = self.training.batch_size - num_other
        chosen = torch.randint(len(self.tokens), (num_captions,), generator=generator)
        variant = torch.randint(self.tokens.shape[1], (num_captions,), generator=generator)
        strangers = torch.randint(len(self.other), (num_other,), generator=generator)
        tokens = torch.cat([self.tokens[chosen, variant], self.other[strangers]])
        masked = (torch.rand(tokens.shape, generator=generator) < MASKED) & (tokens > 1)  # neither padding nor the end
        whole = num_captions * 3 // 4
        masked[:whole] = False
        hidden = self._encode(torch.where(masked, self.tokenizer.unk_token_id, tokens))
        told, accuracy = self._attribute_loss(hidden[:whole], self.labels[chosen[:whole]])
        placed = _mean_loss(self.network["roles"](hidden[:whole]), self.roles[chosen, variant][:whole])
        guessed = _mean_loss(self.network["words"](hidden[masked]), tokens[masked])
        return told + placed + GUESSING * guessed, {
            "attributes": accuracy,
            "roles": float(placed.detach()),
            "words": float(guessed.detach()),
        }

    @torch.no_grad()
    def accuracy(self, captions: Sequence[Caption]) -> dict[str, float]:
        """Measure, for each attribute, in which share of all tokens of captions the average of the weights tells its value."""
        labels = self.table.labels(captions)
        right = []
        with self.learner.averaged():
            for batch in self.tokenize([caption.text for caption in captions]).split(256):
                answers = self.network["attributes"](self._encode(batch)).split(self.table.sizes, dim=-1)
                start = sum(map(len, right))
                truth = labels[start : start + len(batch)]
                right.append(torch.stack([_share_right(answer, truth[:, index]) for index, answer in enumerate(answers)], dim=1))
        shares, known = torch.cat(right), labels != IGNORED
        return {name: float(shares[known[:, index], index].mean()) for index, name in enumerate(self.table.values) if known[:, index].any()}

    def lengths(self) -> Tensor:
        """Number of tokens of every caption, end-of-text included, before any cut."""
        texts = [caption.text for caption in (*self.learned, *self.held_out)]
        return torch.tensor([len(tokens) for tokens in self.tokenizer(texts, verbose=False)["input_ids"]])

    def finish(self, report: dict) -> None:
        """Write the encoder, and how it was made, beside its tokenizer."""
        self.learner.keep_average()
        self.network["encoder"].to(torch.bfloat16).save_pretrained(self.folder)
        write_json(self.folder / "training.json", {**dataclasses.asdict(self.training), **report})

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Number the pieces of texts (N, L), padded or cut off as for sampling."""
        length = self.training.max_length
        return self.tokenizer(list(texts), max_length=length, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]

    def _tokens_of_variants(self, texts: list[list[str]]) -> Tensor:
        """Tokenize (N, V, L), with the caption itself for variants that would be cut off and might lose an attribute."""
        flat = self.tokenizer([text for variants in texts for text in variants], verbose=False)["input_ids"]
        fits = torch.tensor([len(tokens) <= self.training.max_length for tokens in flat]).reshape(len(texts), -1)
        tokens = self.tokenize([text for variants in texts for text in variants]).reshape(len(texts), fits.shape[1], -1)
        return torch.where(fits[:, :, None], tokens, tokens[:, :1])

    def _roles_of_words(self) -> Tensor:
        """Number the attribute whose value a token is, `IGNORED` for tokens that are none, or one of several."""
        values = sorted({value for found in self.table.values.values() for value in found})
        pieces = {value: tokens[0] for value, tokens in zip(values, self.tokenizer(values)["input_ids"], strict=True) if len(tokens) == 2}
        roles = torch.full_like(self.tokens, IGNORED)
        for index, caption in enumerate(self.learned):
            told = [caption.attributes.get(name) for name in self.table.values]
            for role, value in enumerate(told):
                if value in pieces and told.count(value) == 1:
                    found = self.tokens[index] == pieces[value]
                    roles[index][found & (found.sum(-1, keepdim=True) == 1)] = role
        return roles

    def _encode(self, tokens: Tensor) -> Tensor:
        """Embed tokens (N, L) as (N, L, D), float32; no attention mask, as in sampling."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bfloat16(torch.device("cpu"))):
            return self.network["encoder"](input_ids=tokens).last_hidden_state.float()

    def _attribute_loss(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        """Sum over attributes of the cross entropy of hidden (N, L, D), and the share told rightly."""
        answers = self.network["attributes"](hidden).split(self.table.sizes, dim=-1)
        losses, right = [], []
        for answer, truth in zip(answers, labels.T, strict=True):
            losses.append(F.cross_entropy(answer.flatten(0, 1), truth[:, None].expand(-1, answer.shape[1]).flatten()))
            right.append(_share_right(answer.detach(), truth).mean())
        return torch.stack(losses).sum(), float(torch.stack(right).mean())


def _mean_loss(answers: Tensor, truth: Tensor) -> Tensor:
    """Mean cross entropy of answers (..., classes) whose truth (...) is not `IGNORED`; 0 if there are none."""
    count = (truth != IGNORED).sum().clamp(min=1)
    return F.cross_entropy(answers.flatten(0, -2), truth.flatten(), ignore_index=IGNORED, reduction="sum") / count


def _share_right(answers: Tensor, truth: Tensor) -> Tensor:
    """Share of the tokens (N,) whose answers (N, L, classes) are the truth (N,)."""
    return (answers.argmax(-1) == truth[:, None]).float().mean(1)
