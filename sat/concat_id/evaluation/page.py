"""The report as one page that needs nothing else: no script, no font, no file."""

from __future__ import annotations

from html import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from concat_id.errors import one_line
from concat_id.evaluation.charts import interval_bar, similarity_chart
from concat_id.evaluation.measuring import COLOURS, read_pictures
from concat_id.evaluation.metrics import METRICS, shown
from concat_id.evaluation.runs import Run, attribute_rates

if TYPE_CHECKING:
    from concat_id.evaluation.report import Report

STYLE = Path(__file__).with_name("page.css")
OPEN_VIDEOS = 24  # the pictures of more videos are shown when asked for
SHOWN_REQUESTS = 150  # of more, those that the first run answers worst are on the page
LONGEST = 600  # characters of a prompt, a name or a remark
HEADLINE = ("similarity", "similarity_as_published", "copy_paste", "detection_rate", "match_rate", "clip_text")
ARROWS = {"more": "↑", "less": "↓", "": ""}


def render_page(report: Report) -> str:
    """Return the page as HTML."""
    count = sum(len(run.results) for run in report.runs)
    title = f"Concat-ID evaluation: {', '.join(run.name for run in report.runs)}"
    parts = [
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{_text(title)}</title>",
        '<meta name=viewport content="width=device-width, initial-scale=1"><meta name=color-scheme content="light dark">',
        f"<style>{STYLE.read_text(encoding='utf-8')}</style></head><body><main>",
        f"<header><p class=eyebrow>Concat-ID evaluation</p><h1>{_text(' · '.join(run.name for run in report.runs))}</h1>",
        f"<p class=lead>{_videos(count)} measured. Faces are compared by {escape(report.instruments.recognizer.name)}; "
        "its scores cannot be compared with those of other recognisers.</p></header>",
        _problems(report),
        _scores(report),
        _comparisons(report),
        _attributes(report),
        "<section><h2>Videos</h2>",
        *_requests(report, count <= OPEN_VIDEOS),
        "</section>",
        _method(report),
        "</main></body></html>\n",
    ]
    return "".join(parts)


def _text(text: str) -> str:
    """Write a text of any length and kind for the page; report.json has all of it."""
    text = one_line(text)
    return escape(text if len(text) <= LONGEST else f"{text[:LONGEST]} …")


def _videos(count: int) -> str:
    return "1 video" if count == 1 else f"{count} videos"


def _problems(report: Report) -> str:
    problems = [problem for run in report.runs for problem in run.problems]
    if not problems:
        return ""
    items = "".join(f"<li>{_text(problem)}</li>" for problem in problems)
    head = "1 video is" if len(problems) == 1 else f"{len(problems)} videos are"
    return f"<section class=alert><h2>{head} not in these numbers</h2><ul>{items}</ul></section>"


def _scores(report: Report) -> str:
    """Write a table with one row a metric and one column a run."""
    head = "".join(f"<th scope=col>{_text(run.name)}<small>{_videos(len(run.results))}</small></th>" for run in report.runs)
    rows = []
    for group, names in groupby(report.metrics, key=lambda name: METRICS[name].group):
        rows.append(f"<tr class=group><th colspan={len(report.runs) + 1}>{group}</th></tr>")
        for name in names:
            metric = METRICS[name]
            known = [summary[name] for summary in report.summaries if name in summary]
            highest = max(max(values["mean"], values["high"] or 0) for values in known)
            limits = (min(0.0, *(values["mean"] for values in known), 0.0), 1.0 if highest <= 1 and metric.places == 3 else highest)
            cells = "".join(_cell(name, summary.get(name), limits) for summary in report.summaries)
            rows.append(f"<tr><th scope=row>{escape(report.label(name))} <span class=arrow>{ARROWS[metric.better]}</span>"
                        f"<small>{escape(metric.meaning)}</small></th>{cells}</tr>")  # fmt: skip
    missing = "".join(f"<li><b>{escape(names)}</b> not computed: {escape(reason)}</li>" for names, reason in report.not_computed())
    caution = f"<p class=alert>{escape(report.caution)}</p>" if report.caution else ""
    return (f"<section><h2>Scores</h2>{caution}<div class=scroll><table class=scores><thead><tr><th></th>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table></div>{f'<ul class=quiet>{missing}</ul>' if missing else ''}</section>")  # fmt: skip


def _cell(name: str, values: dict[str, Any] | None, limits: tuple[float, float]) -> str:
    if values is None:
        return "<td class=none>–</td>"
    low, high = values["low"], values["high"]
    interval = "" if low is None else f"<small>{shown(name, low)} – {shown(name, high)}</small>"
    return f"<td><b>{shown(name, values['mean'])}</b>{interval}{interval_bar(values['mean'], low, high, limits)}</td>"


def _comparisons(report: Report) -> str:
    tables = []
    for first, second, compared in report.comparisons:
        rows = []
        for name, values in compared.items():
            sure = values["low"] is not None and (values["low"] > 0 or values["high"] < 0)
            good = (values["difference"] > 0) == (METRICS[name].better == "more")
            verdict = "" if not sure or not METRICS[name].better else "better" if good else "worse"
            interval = "–" if values["low"] is None else f"{shown(name, values['low'], True)} to {shown(name, values['high'], True)}"
            rows.append(f"<tr class='{verdict}'><th scope=row>{escape(report.label(name))} {ARROWS[METRICS[name].better]}</th>"
                        f"<td><b>{shown(name, values['difference'], True)}</b></td><td>{interval}</td><td>{values['pairs']}</td>"
                        f"<td>{verdict or 'not clear' if METRICS[name].better else ''}</td></tr>")  # fmt: skip
        head = "<thead><tr><th></th><th>difference</th><th>95 % interval</th><th>pairs</th><th></th></tr></thead>"
        table = f"<div class=scroll><table>{head}<tbody>{''.join(rows)}</tbody></table></div>"
        table = table if rows else "<p>No request (prompt and references) in common.</p>"
        tables.append(f"<section><h2>{_text(second)} minus {_text(first)}</h2>"
                      f"<p class=lead>Paired over the requests that both answered.</p>{table}</section>")  # fmt: skip
    return "".join(tables)


def _attributes(report: Report) -> str:
    rates = [attribute_rates(run) for run in report.runs]
    names = sorted({name for rate in rates for name in rate})
    if not names:
        return ""
    head = "".join(f"<th scope=col>{_text(run.name)}</th>" for run in report.runs)
    rows = []
    for name in names:
        found = [rate.get(name, {"rate": None, "videos": 0}) for rate in rates]
        cells = "".join(f"<td>{shown('obedience', one['rate'])}<small>{_videos(one['videos'])}</small></td>" for one in found)
        rows.append(f"<tr><th scope=row>{_text(name)}</th>{cells}</tr>")
    return (f"<section><h2>Obedience by attribute</h2><div class=scroll><table><thead><tr><th></th>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table></div></section>")  # fmt: skip


def _requests(report: Report, is_open: bool) -> list[str]:
    groups, note = _by_request(report.runs), ""
    if len(groups) > SHOWN_REQUESTS:
        note = f"<p class=lead>The {SHOWN_REQUESTS} of {len(groups)} requests with the lowest similarity; report.csv has all.</p>"
        groups = sorted(groups, key=lambda group: group[0][1]["scores"]["similarity"])[:SHOWN_REQUESTS]
    return [note, *(_request(report, group, is_open) for group in groups)]


def _by_request(runs: Any) -> list[list[tuple[Run, dict[str, Any]]]]:
    """Put the answers of all runs to one request beside one another."""
    groups: dict[tuple[str, ...], list[tuple[Run, dict[str, Any]]]] = {}
    for run in runs:
        for result in run.results:
            groups.setdefault((result["prompt"], *result["digests"]["references"]), []).append((run, result))
    return list(groups.values())


def _request(report: Report, group: list[tuple[Run, dict[str, Any]]], is_open: bool) -> str:
    result = group[0][1]
    faces = "".join(
        f'<img class=face style="border-color:{COLOURS[number % len(COLOURS)]}" src="{escape(picture)}" alt="reference {number + 1}">'
        for number, picture in enumerate(read_pictures(result)["references"])
    )
    videos = "".join(_video(report, run, one, len(report.runs) > 1) for run, one in group)
    prompt = _text(result["prompt"]) or "<i>no prompt</i>"
    return (f"<details{' open' if is_open else ''}><summary><span class=faces>{faces}</span><span><b>{_text(result['name'])}</b>"
            f"<span class=prompt>{prompt}</span></span></summary>{videos}</details>")  # fmt: skip


def _video(report: Report, run: Run, result: dict[str, Any], with_name: bool) -> str:
    pictures = zip(read_pictures(result)["frames"], result["frames"]["indices"], strict=False)
    frames = "".join(f'<img src="{escape(picture)}" alt="frame {index}" loading=lazy>' for picture, index in pictures)
    names = [name for name in METRICS if result["scores"].get(name) is not None]
    names.sort(key=lambda name: HEADLINE.index(name) if name in HEADLINE else len(HEADLINE))
    bounds = " – ".join(shown("similarity", bound) for bound in result["interval"] or ())
    spread = {"similarity": f" ({bounds} over frames)" if bounds else ""}
    chips = "".join(f"<li{' class=main' if name in HEADLINE else ''}><b>{shown(name, result['scores'][name])}</b>"
                    f"<span>{escape(report.label(name))}{spread.get(name, '')}</span></li>" for name in names)  # fmt: skip
    notes = "".join(f"<li>{_text(note)}</li>" for note in result["notes"])
    size = result["frames"]["size"]
    about = f"{result['frames']['of']} frames of {size[0]}×{size[1]}, {result['frames']['fps']:g} fps · {_text(result['video'])}"
    return (f"<article>{f'<h3>{_text(run.name)}</h3>' if with_name else ''}<div class=strip>{frames}</div>"
            f"{similarity_chart(result, report.instruments.threshold)}<ul class=chips>{chips}</ul>"
            f"{f'<ul class=quiet>{notes}</ul>' if notes else ''}<p class=about>{about}</p></article>")  # fmt: skip


def _method(report: Report) -> str:
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in report.measured_with().items())
    return f"<section><h2>How it was measured</h2><dl>{rows}</dl></section>"
