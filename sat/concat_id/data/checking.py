"""What is wrong with a training list, found before the machines for training are paid for."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import local
from types import MappingProxyType
from typing import Any

from tqdm.contrib.concurrent import thread_map

from concat_id.data.clips import SQUARE, ClipReader, UnreadableClipError, Window
from concat_id.data.records import Record, inspect_records
from concat_id.errors import UserError, shortened
from concat_id.files.paths import copies_among
from concat_id.video.transforms import load_image

TO_SQUARE = 'ffmpeg -i FILE -vf "scale=trunc(iw*sar/2)*2:ih,setsar=1" -crf 17 NEW.mp4'


@dataclass
class Report:
    """Problems keep entries from being used as they should; notes are worth a look. `clips` describes those that can be read.

    `entries` is how many the lists have, `records` are those that name what is there.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    clips: dict[Path, dict[str, Any]] = field(default_factory=dict)
    entries: int = 0


def check_lists(
    paths: Sequence[str | Path],
    window: Window,
    max_refs: int = 3,
    workers: int = 4,
    timeout_s: float = 60.0,
    whole: bool = False,
    unseen: Mapping[str, Callable[[str], str]] = MappingProxyType({}),
) -> Report:
    """Check every entry of the lists: files, images, captions, and whether clips decode and are long enough for `window`.

    `whole` decodes every frame. Each of `unseen` returns a part of a caption that the text encoder does not see; its key
    says why, as in "too long for".
    """
    records, problems, notes = inspect_records(paths)
    report = Report(problems, notes, records, entries=len(records) + len(problems))
    _check_clips(report, window, workers, timeout_s, whole)
    _check_images(report, workers)
    _check_people(report, max_refs)
    _check_repetitions(report)
    for record in records:
        for reason, part_of in unseen.items():
            if part := part_of(record.caption):
                report.notes.append(f"{record.source}: caption: {reason} the text encoder, which does not see {shortened(part, 57)!r}")
    if not records and not problems:
        report.problems.append(f"{', '.join(map(str, paths))}: no clips found")
    return report


def _check_clips(report: Report, window: Window, workers: int, timeout_s: float, whole: bool) -> None:
    own, readers = local(), []

    def probe(clip: Path) -> dict[str, Any] | str:
        if not hasattr(own, "reader"):
            own.reader = ClipReader(timeout_s)
            readers.append(own.reader)
        try:
            if clip in images:
                width, height = load_image(clip).size
                size = {"height": height, "width": width, "sar": SQUARE}
                return {"frames": 1, "seconds": 0.0, "fps": window.fps, "varies": False, "held": 0} | size
            return own.reader.probe(clip, window, whole)
        except (UnreadableClipError, UserError) as error:
            return str(error).removeprefix(f"{clip}: ")

    users = _users(report.records, lambda record: [record.video])
    images = {record.video for record in report.records if record.is_image}
    try:
        found = _in_parallel(probe, users, "clips", workers)
    finally:
        for reader in readers:
            reader.close()
    wanted = (window.num_frames - 1) / window.fps
    for clip, facts in found.items():
        source = users[clip][0].source
        if isinstance(facts, str):
            report.problems.append(f"{source}: video_path: {clip} cannot be read: {facts}")
            continue
        report.clips[clip] = facts
        if facts["held"]:
            report.problems.append(
                f"{source}: video_path: {clip} is too short: {facts['seconds']:.2f} s, expected {wanted:.2f} s and {window.skip} frames"
                f" more at both ends; its last frame would be held {facts['held']} times"
            )
        if facts["sar"] != SQUARE:
            report.problems.append(
                f"{source}: video_path: {clip} has pixels of {facts['sar']}, expected square ones, as people would be out of shape;"
                f" convert it with `{TO_SQUARE}`"
            )
        if facts["fps"] < 0.99 * window.fps:
            report.notes.append(f"{source}: {clip} has {facts['fps']:.3g} frames a second, fewer than {window.fps:g}: some would repeat")
        if facts["height"] < window.size[0] or facts["width"] < window.size[1]:
            size, wanted_size = f"{facts['width']}x{facts['height']}", f"{window.size[1]}x{window.size[0]}"
            report.notes.append(f"{source}: {clip} is {size}, smaller than {wanted_size}: it would be enlarged")


def _check_images(report: Report, workers: int) -> None:
    def size(path: Path) -> tuple[int, int] | str:
        try:
            return load_image(path).size
        except UserError as error:
            return str(error)

    def files(record: Record) -> list[Path]:
        images = () if record.shows_itself else record.images
        return [path for people in (images, record.masks) for person in people for path in person]

    users = _users(report.records, files)
    found = _in_parallel(size, users, "images", workers)
    report.problems += [f"{users[path][0].source}: {facts}" for path, facts in found.items() if isinstance(facts, str)]
    for record in report.records:
        pairs = () if record.shows_itself else zip(record.images, record.masks, strict=bool(record.masks))
        for image, mask in (pair for images, masks in pairs for pair in zip(images, masks, strict=bool(masks))):
            sizes = found[image], found[mask]
            if not any(isinstance(facts, str) for facts in sizes):
                (width, height), (mask_width, mask_height) = sizes
                if abs(width * mask_height - height * mask_width) > 0.02 * height * mask_width:
                    shape = f"{mask_width}x{mask_height}"
                    report.problems.append(f"{record.source}: mask_path: {mask} is {shape}, expected the shape of {width}x{height}")


def _check_people(report: Report, max_refs: int) -> None:
    counts = Counter(record.num_refs for record in report.records)
    for record in report.records:
        if record.num_refs > max_refs:
            report.problems.append(f"{record.source}: image_path: {record.num_refs} reference images, the model takes at most {max_refs}")
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        first = next(record for record in report.records if record.num_refs != usual)
        parts = ", ".join(f"{number} with {count}" for count, number in sorted(counts.items()))
        report.notes.append(f"{first.source}: clips with different numbers of references ({parts}) never share a batch")


def _check_repetitions(report: Report) -> None:
    first: dict[Any, Record] = {}
    for record in report.records:
        entry = record.video.resolve(), record.caption, record.images, record.masks, record.kinds
        earlier = first.setdefault(entry, record)
        if earlier is not record:
            report.problems.append(f"{record.source}: the same clip, caption and images as {earlier.source}")
    users = _users(report.records, lambda record: [record.video])
    for clip, other in copies_among(report.clips).items():
        if other.resolve() != clip.resolve():
            report.notes.append(f"{users[clip][0].source}: {clip} has the same content as {other}")


def summary(report: Report) -> list[str]:
    """Describe what can be used: clips, seconds, frame rates, sizes and people."""
    clips = [report.clips[record.video] for record in report.records if record.video in report.clips]
    seconds = sum(facts["seconds"] for facts in report.clips.values())
    rates = Counter(f"{'about ' if facts['varies'] else ''}{facts['fps']:.4g}" for facts in clips)
    sizes = Counter(f"{facts['width']}x{facts['height']}" for facts in clips)
    people = Counter(people_in_words(record.kinds.count("face")) for record in report.records)
    kinds = Counter(kind for record in report.records for kind in record.kinds)
    alternatives = sum(len(person) > 1 for record in report.records for person in record.images)
    return [
        f"entries   {report.entries}, of which {len(clips)} can be read, {len(report.clips)} different clips",
        f"duration  {seconds:.1f} s, {seconds / max(len(report.clips), 1):.1f} s a clip",
        f"fps       {_shares(rates)}",
        f"sizes     {_shares(sizes)}",
        f"people    {_shares(people)}; {alternatives} of them with alternative images",
        *([f"kinds     {_shares(kinds)}"] if set(kinds) - {"face"} else []),
        f"masks     {sum(any(record.masks) for record in report.records)} entries",
    ]


def _in_parallel(function: Callable[[Path], Any], items: Iterable[Path], title: str, workers: int) -> dict[Path, Any]:
    items = list(items)
    found = thread_map(function, items, max_workers=workers, desc=title, disable=None, leave=False)
    return dict(zip(items, found, strict=True))


def _users(records: Sequence[Record], files: Callable[[Record], Iterable[Path]]) -> dict[Path, list[Record]]:
    users = defaultdict(list)
    for record in records:
        for file in files(record):
            users[file].append(record)
    return users


def _shares(counts: Counter, shown: int = 6) -> str:
    parts = [f"{number} x {name}" for name, number in counts.most_common(shown)]
    return ", ".join(parts + ([f"{len(counts) - shown} others"] if len(counts) > shown else [])) or "none"


def people_in_words(count: int) -> str:
    """Say how many people there are."""
    return "1 person" if count == 1 else f"{count} people"
