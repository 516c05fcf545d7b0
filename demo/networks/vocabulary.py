"""A sentencepiece model that knows the words of captions and every letter of the European alphabets."""

import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from sentencepiece.sentencepiece_model_pb2 import ModelProto

LETTERS = (range(0x21, 0x7F), range(0xA1, 0x180), range(0x3AC, 0x3CF), range(0x430, 0x460), range(0x2010, 0x2027), range(0x20AC, 0x20AD))
WORD = r"[^\W\d_]+(?:-[^\W\d_]+)*"
FREQUENT = 3  # a word that comes so often is a piece of its own
START = "▁"  # of a word, in the pieces


def train_vocabulary(sentences: Iterable[str], num_pieces: int) -> bytes:
    """Train a unigram model of at most `num_pieces` pieces that ignores case; <pad>, </s> and <unk> are 0, 1 and 2."""
    sentences, written = list(sentences), io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=written, model_type="unigram",
        vocab_size=num_pieces, hard_vocab_limit=False, character_coverage=1.0, required_chars=letters(),
        normalization_rule_name="nmt_nfkc_cf", pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        pad_piece="<pad>", eos_piece="</s>", unk_piece="<unk>", minloglevel=2, num_threads=1,
    )  # fmt: skip
    return _with_whole_words(written.getvalue(), sentences, num_pieces)


def frequent_words(sentences: Iterable[str], most: int) -> list[str]:
    """List the words, parts joined by hyphens included, that occur often enough, at most `most`, the most frequent first."""
    counts = Counter(word for sentence in sentences for word in re.findall(WORD, sentence.lower()))
    ranked = sorted((-count, word) for word, count in counts.items() if count >= FREQUENT and len(word) > 1)
    return [word for _, word in ranked[:most]]


def _with_whole_words(model: bytes, sentences: list[str], num_pieces: int) -> bytes:
    """Append words that the model cuts up, each as likely as its least likely part, so that they are preferred to their parts.

    Sentencepiece takes pieces from what several different words share, and none with a hyphen.
    """
    proto, processor = ModelProto.FromString(model), SentencePieceProcessor(model_proto=model)
    for word in frequent_words(sentences, most=num_pieces):
        parts = processor.encode(word)
        if len(parts) > 1 and len(proto.pieces) < num_pieces:
            proto.pieces.add(piece=START + word, score=min(processor.get_score(part) for part in parts))
    return proto.SerializeToString()


def letters() -> str:
    """List printable characters without case: ASCII, Latin with accents, Greek, Cyrillic, punctuation."""
    single = [unicodedata.normalize("NFKC", chr(code)) for codes in LETTERS for code in codes]
    folded = {letter for one in single for letter in one.casefold() + one.lower() + one * (len(one.lower()) > 1)}
    return "".join(sorted(letter for letter in folded if letter.isprintable() and not letter.isspace()))
