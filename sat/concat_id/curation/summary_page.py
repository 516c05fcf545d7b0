"""What sat/prepare_clips.py found as one page that needs nothing else: distributions, reasons of discards, a sample of the crops."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from concat_id.data.manifest import Appearance, read_clips
from concat_id.errors import one_line
from concat_id.files.paths import write_text
from concat_id.video.writing import data_url

SAMPLED_VIDEOS, SAMPLED_CROPS, CROP = 300, 48, 96  # whose vectors and crops are read; crops shown, and pixels of their side
REASONS = 15  # of discards, the most frequent ones
WIDTH, HEIGHT, BASE = 340, 130, 108  # of a drawing, and where its bars stand
STYLE = """:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:0 auto;padding:32px 24px}
h1{font-size:26px;margin:0}h2{font-size:18px;margin:36px 0 8px}p{margin:4px 0;opacity:.75}.row{display:flex;flex-wrap:wrap;gap:20px}
figure{margin:0;width:320px;max-width:100%}figcaption{font-size:14px;font-weight:600}small{display:block;font-weight:400;opacity:.7}svg{display:block}
rect{fill:#4a83e8}line{stroke:currentColor;opacity:.35}.mark{stroke:#c2410c;opacity:1;stroke-dasharray:4 3}
text{fill:currentColor;font-size:11px}td{padding:3px 24px 3px 0}td:first-child{text-align:right;font-variant-numeric:tabular-nums}
.crops{display:grid;grid-template-columns:repeat(auto-fill,96px);gap:6px}img{width:96px;height:96px;border-radius:6px}"""


def write_summary(file: Path, manifest: dict[str, Any], prepared: Sequence[Any], verdicts: str, threshold: float) -> None:
    """Write the page of all videos, each with a `folder` and a `record`; of many, the vectors and crops of an even sample are read.

    Equal results give equal pages.
    """
    clips, people, measured = [], [], defaultdict(list)
    for record in (video.record for video in prepared):
        clips.append(len(record["clips"]))
        people += [len(clip["people"]) for clip in record["clips"]]
        for crop in (crop for clip in record["clips"] for person in clip["people"] for crop in person.get("references") or ()):
            for name, value in crop.get("verdict", {}).get("measurements", {}).items():
                measured[name].append(value)
    with_clips = [video for video, number in zip(prepared, clips, strict=True) if number]
    sample = [appearance for video in _spread(with_clips, SAMPLED_VIDEOS)
              for clip in read_clips(video.record["clips"], video.folder, str(video.folder)) for appearance in clip.people]  # fmt: skip
    cosines, same_person = np.arange(-4, 21) / 20, {"one person": threshold}
    degrees, whole = np.arange(-90, 91, 10), np.arange(-0.5, 10)
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Prepared clips</title><style>{STYLE}</style></head><body><main>",
        f"<h1>Prepared clips</h1><p>{len(manifest['clips'])} clips of {len(prepared)} videos, {len(manifest['discarded'])} discarded.",
        f" Reference crops: {escape(verdicts or 'not judged')}.</p>",
        f"<h2>Likeness</h2><p>Cosines of face vectors by {escape(one_line(manifest['recognizer']))}; people of different clips may be ",
        "the same.</p><div class=row>",
        _histogram("crops of a person in a clip", _cosines_within(sample), cosines, same_person),
        _histogram("people of different clips", _cosines_between(sample), cosines, same_person),
        "</div><h2>Videos, faces and crops</h2><div class=row>",
        _histogram("clips of a video", clips, whole),
        _histogram("people in a clip", people, whole),
        _histogram("width of faces, pixels", measured["width"], np.linspace(0, 500, 26)),
        _histogram("yaw, degrees", measured["yaw"], degrees),
        _histogram("pitch, degrees", measured["pitch"], degrees),
        "</div>",
        _reasons(manifest["discarded"]),
        f"<h2>Some of the crops</h2><div class=crops>{''.join(map(_crop, _spread(sample, SAMPLED_CROPS)))}</div></main></body></html>\n",
    ]
    write_text(file, "".join(parts))


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """Choose evenly spaced ones."""
    return [items[number] for number in np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)]


def _cosines_within(sample: Iterable[Appearance]) -> list[float]:
    return [float(first @ second) for person in sample for first, second in combinations(person.vectors, 2)]


def _cosines_between(sample: Sequence[Appearance]) -> np.ndarray:
    """Products of mean vectors of people in different folders."""
    if len(sample) < 2:
        return np.empty(0)
    means = np.stack([person.mean / np.linalg.norm(person.mean) for person in sample])
    origins = np.array([str(person.image()).rpartition("_person_")[0] for person in sample])
    return (means @ means.T)[np.triu(origins[:, None] != origins)]


def _histogram(title: str, values: Iterable[float], edges: np.ndarray, marks: dict[str, float] | None = None) -> str:
    """Draw how many values are between the edges; what is beyond stands in the outermost bars."""
    values = np.array(list(values), dtype=float)
    counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
    step, highest = WIDTH / len(counts), max(counts.max(), 1)
    told = f"{len(values):,} values, median {np.median(values):.3g}" if len(values) else "no values"
    parts = [f'<figure><figcaption>{escape(title)} <small>{told}</small></figcaption><svg viewBox="-14 0 {WIDTH + 28} {HEIGHT}">']
    for number, count in enumerate(counts):
        tall, bounds = (BASE - 14) * count / highest, f"{edges[number]:.3g} to {edges[number + 1]:.3g}: {count}"
        parts.append(f'<rect x="{number * step + 1:.1f}" y="{BASE - tall:.1f}" width="{step - 2:.1f}" height="{tall:.1f}">'
                     f"<title>{bounds}</title></rect>")  # fmt: skip
    whole = edges[0] % 1 == 0.5  # each bar is a number
    for number in range(0, len(counts) + (not whole), max(1, len(counts) // 6)):
        x, value = (number + 0.5 * whole) * step, edges[number] + 0.5 * whole
        parts.append(f'<text x="{x:.1f}" y="{BASE + 14}" text-anchor="middle">{round(value, 2) + 0:g}</text>')
    for name, value in (marks or {}).items():
        x = WIDTH * (value - edges[0]) / (edges[-1] - edges[0])
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{BASE}"/>'
                     f'<text x="{x - 4:.1f}" y="9" text-anchor="end">{name}</text>')  # fmt: skip
    return "".join([*parts, f'<line x1="0" x2="{WIDTH}" y1="{BASE}" y2="{BASE}"/></svg></figure>'])


def _reasons(discarded: Iterable[dict[str, Any]]) -> str:
    counted = Counter(re.sub(r"\d+(\.\d+)?", "N", entry["reason"]) for entry in discarded).most_common(REASONS)
    rows = "".join(f"<tr><td>{count}</td><td>{escape(one_line(reason))}</td></tr>" for reason, count in counted)
    return f"<h2>Discarded</h2>{f'<table>{rows}</table>' if rows else '<p>Nothing.</p>'}"


def _crop(person: Appearance) -> str:
    crop = Image.open(person.image(0)).convert("RGB").resize((CROP, CROP), Image.Resampling.LANCZOS)
    name = escape(one_line("/".join(person.image(0).parts[-3:])), quote=True)
    return f'<img src="{data_url(crop)}" alt="{name}" title="{name}">'
