"""Which of several takes is the best: the most alike one, then the one nearest to its prompt, then the steadiest."""

from collections.abc import Sequence
from pathlib import Path

from concat_id.evaluation.layouts import GeneratedVideo
from concat_id.evaluation.measuring import Instruments, load_instruments, measure
from concat_id.files.paths import text_digest


class TakeJudge:
    """Scores takes as reports do, on the CPU; CLIP takes part where its weights are in models/."""

    def __init__(self, instruments: Instruments | None = None):
        self.instruments = instruments or load_instruments("cpu", viclip=None)  # which would cost a CPU much, and ranks nothing
        self.name = text_digest(str(self.instruments.identity))

    def require_face(self, photos: Sequence[Path]) -> None:
        """Raise `UserError` if no photo shows a face that a video could resemble."""
        self.instruments.references(photos)

    def scores(self, video: Path, photos: Sequence[Path], prompt: str) -> dict[str, float | None]:
        """Similarity, a missing face counting 0, text and temporal consistency of a video. Raises `UserError`."""
        found = measure(GeneratedVideo(video.name, video, tuple(photos), prompt), self.instruments)["scores"]
        return {
            f"{self.instruments.recognizer.name} similarity": found["similarity"],
            "CLIP text": found.get("clip_text"),
            "temporal consistency": found["temporal_consistency"],
        }
