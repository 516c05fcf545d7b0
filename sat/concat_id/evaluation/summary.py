"""What runs come to: means with intervals, paired comparisons, and in words how it was measured. The files are written from this."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isclose
from typing import Any

from concat_id.errors import counted, one_line
from concat_id.evaluation.calibration import TOO_CLOSE, Calibration
from concat_id.evaluation.intervals import UNBOUNDED, mean_with_interval
from concat_id.evaluation.measuring import Instruments
from concat_id.evaluation.metrics import METRICS, OF_SUCCESSIVE, SHARES, Metric
from concat_id.evaluation.runs import Run
from concat_id.evaluation.user_metrics import GROUP


@dataclass
class Summary:
    """Everything that the files tell.

    - `training_overlap`: of --training_images how many show a face, and which references were `dropped`
    - `metrics`: what is known of every column that some video has a score in, in the page's order; labels name the weights
    - `means`: for each run, by column, mean, 95 % bounds and number of videos, as `mean_with_interval` returns them
    - `comparisons`: (first run's name, another one's, by column the other's minus the first's over the requests that both answered;
      where frames of different rates make it mean nothing, without bounds and with a `note`)
    """

    runs: Sequence[Run]
    instruments: Instruments
    calibration: Calibration
    training_overlap: dict[str, Any] | None = None
    metrics: dict[str, Metric] = field(init=False)
    means: list[dict[str, dict[str, Any]]] = field(init=False)
    comparisons: list[tuple[str, str, dict[str, dict[str, Any]]]] = field(init=False)

    def __post_init__(self):
        named = dict(METRICS)
        for metric in self.instruments.metrics:
            named |= metric.columns
        scores = (item for run in self.runs for result in run.results for item in result["scores"].items())
        scored = {name: named.get(name, Metric(name, "", "", group=GROUP)) for name, value in scores if value is not None}
        ordered = [*(name for name in named if name in scored), *(name for name in scored if name not in named)]
        self.metrics = {name: scored[name]._replace(label=self._label(name)) for name in ordered}
        self.means = [self._means(run) for run in self.runs]
        self.comparisons = [(self.runs[0].name, run.name, self._compare(self.runs[0], run)) for run in self.runs[1:]]

    def _label(self, name: str) -> str:
        if name not in METRICS:
            return name
        clip = self.instruments.clip.name if self.instruments.clip else "CLIP"
        return one_line(METRICS[name].label.format(face=self.instruments.recognizer.name, clip=clip))

    def _means(self, run: Run) -> dict[str, dict[str, Any]]:
        columns = {name: [result["scores"].get(name) for result in run.results] for name in self.metrics}
        known = {name: [value for value in values if value is not None] for name, values in columns.items()}
        return {name: mean_with_interval(values, (0, 1) if name in SHARES else UNBOUNDED) for name, values in known.items() if values}

    def _compare(self, first: Run, second: Run) -> dict[str, dict[str, Any]]:
        """Compare over the same prompts and references; differences are those of pairs."""
        compared, paired = {}, list(_pairs(first, second))
        for name in self.metrics:
            pairs = [pair for pair in paired if all(result["scores"].get(name) is not None for result in pair)]
            differences = [after["scores"][name] - before["scores"][name] for before, after in pairs]
            if differences:
                compared[name] = mean_with_interval(differences, (-1, 1) if name in SHARES else UNBOUNDED)
            if name in OF_SUCCESSIVE and any(not isclose(*(result["frames"]["fps"] for result in pair), rel_tol=0.01) for pair in pairs):
                compared[name] |= {"low": None, "high": None, "note": "frame rates differ"}
        return compared

    @property
    def caution(self) -> str:
        """Say it when the recogniser cannot tell these people apart; '' if it can."""
        impostor, threshold = self.calibration.whole.impostor, self.instruments.threshold
        if impostor is None or impostor < threshold:
            return ""
        name = self.instruments.recognizer.name
        return (f"Different people resemble one another by {impostor:.3f} here, more than the {threshold:g} that should mean one person: "
                f"{name} hardly tells them apart. Read similarity against this number; rates of several people mean little.")  # fmt: skip

    def not_computed(self) -> dict[str, str]:
        """Return the labels of metrics that no run has, with what they need."""
        missing = {name: reason for name, reason in self.instruments.not_computed.items() if name not in self.metrics}
        reasons = dict.fromkeys(missing.values())
        return {", ".join(self._label(name) for name in missing if missing[name] == reason): reason for reason in reasons}

    def measured_with(self) -> dict[str, str]:
        """Describe weights and settings in words."""
        tools, limits = self.instruments, self.calibration.whole
        shown = METRICS["similarity"].shown
        settings = {
            "faces compared by": f"{tools.recognizer.name} ({tools.recognizer.file.parent.name}/{tools.recognizer.file.name})",
            "faces found by": tools.detector.name,
            "one person's faces": f"cosine from {tools.threshold:g}",
            "frames": f"{tools.num_frames} of each video, evenly spaced from first to last",
            "impostor similarity (other people)": shown(limits.impostor),
            "genuine similarity (other photos of a person)": shown(limits.genuine),
            "intervals": "95 %, Student's t over videos (a single video: over its frames)",
        }
        if tools.clip is not None:
            settings["images and prompts compared by"] = tools.clip.name
        if tools.parts is not None:
            settings["parts of faces told apart by"] = tools.parts.parser.name
        if tools.metrics:
            settings["your metrics"] = ", ".join(str(metric.file) for metric in tools.metrics)
        if self.training_overlap is not None:
            count, dropped = self.training_overlap["images"], len(self.training_overlap["dropped"])
            settings["training images"] = f"{count} with a face; {dropped} references closer than {TOO_CLOSE} left out"
        return settings


def amount(results: Sequence[dict[str, Any]]) -> str:
    """Count videos and images, which are videos of one frame, in words."""
    images = sum(result["frames"]["of"] == 1 for result in results)
    counts = {"video": len(results) - images, "image": images}
    return counted(**{word: count for word, count in counts.items() if count}) or "0 videos"


def _pairs(first: Run, second: Run) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Pair two runs' answers to each request: those of one name, such as takes of equal number, then the others in order."""
    answers: defaultdict[tuple[str, ...], tuple[list[dict[str, Any]], ...]] = defaultdict(lambda: ([], []))
    for number, run in enumerate((first, second)):
        for result in run.results:
            answers[request_of(result)][number].append(result)
    for ours, theirs in answers.values():
        for result in [*ours]:
            if namesake := next((other for other in theirs if other["name"] == result["name"]), None):
                yield result, namesake
                ours.remove(result)
                theirs.remove(namesake)
        yield from zip(ours, theirs, strict=False)


def request_of(result: dict[str, Any]) -> tuple[str, ...]:
    """Return what a video was asked for: its prompt, and its references by their files' digests."""
    return (result["prompt"], *result["digests"]["references"])
