"""The report as one page that needs nothing else: no script, no font, no file."""

from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from concat_id.errors import one_line
from concat_id.evaluation.charts import interval_bar, similarity_chart
from concat_id.evaluation.measuring import COLOURS, read_thumbnails
from concat_id.evaluation.metrics import Metric
from concat_id.evaluation.runs import Run
from concat_id.evaluation.summary import Summary, amount, request_of

STYLE = Path(__file__).with_name("page.css")
OPEN_VIDEOS = 24  # the frames of more videos are shown when asked for
SHOWN_REQUESTS = 150  # of more, those that the first run answers worst are on the page
LONGEST = 600  # characters of a prompt, a name or a remark
HEADLINE = ("similarity", "similarity_as_published", "copy_paste", "detection_rate", "match_rate", "clip_text")
ARROWS = {"more": "↑", "less": "↓", "": ""}


def render_page(summary: Summary) -> str:
    """Return the page as HTML."""
    results = [result for run in summary.runs for result in run.results]
    title = f"Concat-ID evaluation: {', '.join(run.name for run in summary.runs)}"
    parts = [
        f"<!doctype html><html lang=en><head><meta charset=utf-8><title>{_text(title)}</title>",
        '<meta name=viewport content="width=device-width, initial-scale=1"><meta name=color-scheme content="light dark">',
        f"<style>{STYLE.read_text(encoding='utf-8')}</style></head><body><main>",
        f"<header><p class=eyebrow>Concat-ID evaluation</p><h1>{_text(' · '.join(run.name for run in summary.runs))}</h1>",
        f"<p class=lead>{amount(results)} measured. Faces are compared by {escape(summary.instruments.recognizer.name)}; "
        "its scores cannot be compared with those of other recognisers.</p></header>",
        _problems(summary),
        _scores(summary),
        _comparisons(summary),
        "<section><h2>Videos</h2>",
        *_requests(summary, len(results) <= OPEN_VIDEOS),
        "</section>",
        _method(summary),
        "</main></body></html>\n",
    ]
    return "".join(parts)


def _text(text: str) -> str:
    """Write a text of any length and kind for the page; report.json has all of it."""
    text = one_line(text)
    return escape(text if len(text) <= LONGEST else f"{text[:LONGEST]} …")


def _problems(summary: Summary) -> str:
    items = [f"<li>{_text(problem)}</li>" for run in summary.runs for problem in run.problems]
    return f"<section class=alert><h2>Not in these numbers: {len(items)}</h2><ul>{''.join(items)}</ul></section>" if items else ""


def _scores(summary: Summary) -> str:
    """Write a table with one row a metric and one column a run."""
    head = "".join(f"<th scope=col>{_text(run.title)}<small>{amount(run.results)}</small></th>" for run in summary.runs)
    rows = []
    for group, named in groupby(summary.metrics.items(), key=lambda item: item[1].group):
        rows.append(f"<tr class=group><th colspan={len(summary.runs) + 1}>{group}</th></tr>")
        for name, metric in named:
            known = [means[name] for means in summary.means if name in means]
            low, high = (extreme(values["mean"] for values in known) for extreme in (min, max))
            limits = (min(0.0, low), 1.0 if high <= 1 and metric.places == 3 else max(high, *(values["high"] or high for values in known)))
            cells = "".join(_cell(metric, means.get(name), limits) for means in summary.means)
            rows.append(f"<tr><th scope=row>{escape(metric.label)} <span class=arrow>{ARROWS[metric.better]}</span>"
                        f"<small>{escape(metric.meaning)}</small></th>{cells}</tr>")  # fmt: skip
    missing = "".join(f"<li><b>{escape(names)}</b> not computed: {escape(reason)}</li>" for names, reason in summary.not_computed().items())
    caution = f"<p class=alert>{escape(summary.caution)}</p>" if summary.caution else ""
    return (f"<section><h2>Scores</h2>{caution}<div class=scroll tabindex=0 role=region aria-label=Scores><table class=scores>"
            f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
            f"{f'<ul class=quiet>{missing}</ul>' if missing else ''}</section>")  # fmt: skip


def _cell(metric: Metric, values: dict[str, Any] | None, limits: tuple[float, float]) -> str:
    if values is None:
        return "<td class=none>–</td>"
    mean, low, high = values["mean"], values["low"], values["high"]
    interval = "" if low is None else f"<small>{metric.shown(low)} – {metric.shown(high)}</small>"
    return f"<td><b>{metric.shown(mean)}</b>{interval}{interval_bar(mean, low, high, limits)}</td>"


def _comparisons(summary: Summary) -> str:
    tables = []
    for first, second, compared in summary.comparisons:
        rows = []
        for name, values in compared.items():
            metric = summary.metrics[name]
            sure = values["low"] is not None and (values["low"] > 0 or values["high"] < 0)
            good = (values["mean"] > 0) == (metric.better == "more")
            verdict = "" if not sure or not metric.better else "better" if good else "worse"
            mean, low, high = (metric.shown(values[part], signed=True) for part in ("mean", "low", "high"))
            interval = "–" if values["low"] is None else f"{low} to {high}"
            rows.append(f"<tr class='{verdict}'><th scope=row>{escape(metric.label)} {ARROWS[metric.better]}</th>"
                        f"<td><b>{mean}</b></td><td>{interval}</td><td>{values['n']}</td>"
                        f"<td>{verdict or values.get('note', 'not clear') if metric.better else ''}</td></tr>")  # fmt: skip
        head = "<thead><tr><th></th><th>difference</th><th>95 % interval</th><th>pairs</th><th></th></tr></thead>"
        table = f"<div class=scroll tabindex=0 role=region aria-label=Differences><table>{head}<tbody>{''.join(rows)}</tbody></table></div>"
        table = table if rows else "<p>No request (prompt and references) in common.</p>"
        tables.append(f"<section><h2>{_text(second)} minus {_text(first)}</h2>"
                      f"<p class=lead>Paired over the requests that both answered.</p>{table}</section>")  # fmt: skip
    return "".join(tables)


def _requests(summary: Summary, is_open: bool) -> list[str]:
    asked: dict[tuple[str, ...], list[tuple[Run, dict[str, Any]]]] = {}  # the answers of all runs to one request
    for run in summary.runs:
        for result in run.results:
            asked.setdefault(request_of(result), []).append((run, result))
    groups, note = list(asked.values()), ""
    if len(groups) > SHOWN_REQUESTS:
        note = f"<p class=lead>The {SHOWN_REQUESTS} of {len(groups)} requests with the lowest similarity; report.csv has all.</p>"
        groups = sorted(groups, key=lambda group: group[0][1]["scores"]["similarity"])[:SHOWN_REQUESTS]
    return [note, *(_request(summary, group, is_open) for group in groups)]


def _request(summary: Summary, group: list[tuple[Run, dict[str, Any]]], is_open: bool) -> str:
    result = group[0][1]
    faces = "".join(
        f'<img class=face style="border-color:{COLOURS[number % len(COLOURS)]}" src="{escape(url)}" alt="reference {number + 1}">'
        for number, url in enumerate(read_thumbnails(result)["references"])
    )
    videos = "".join(_video(summary, run, one, len(summary.runs) > 1) for run, one in group)
    prompt = _text(result["prompt"]) or "<i>no prompt</i>"
    return (f"<details{' open' if is_open else ''}><summary><span class=faces>{faces}</span><span><b>{_text(result['name'])}</b>"
            f"<span class=prompt>{prompt}</span></span></summary>{videos}</details>")  # fmt: skip


def _video(summary: Summary, run: Run, result: dict[str, Any], with_name: bool) -> str:
    urls = zip(read_thumbnails(result)["frames"], result["frames"]["indices"], strict=False)
    frames = "".join(f'<img src="{escape(url)}" alt="frame {index}" loading=lazy>' for url, index in urls)
    names = [name for name in summary.metrics if result["scores"].get(name) is not None]
    names.sort(key=lambda name: HEADLINE.index(name) if name in HEADLINE else len(HEADLINE))
    bounds = " – ".join(summary.metrics["similarity"].shown(bound) for bound in result["interval"] or ())
    spread = {"similarity": f" ({bounds} over frames)" if bounds else ""}
    chips = "".join(f"<li{' class=main' if name in HEADLINE else ''}><b>{summary.metrics[name].shown(result['scores'][name])}</b>"
                    f"<span>{escape(summary.metrics[name].label)}{spread.get(name, '')}</span></li>" for name in names)  # fmt: skip
    notes = "".join(f"<li>{_text(note)}</li>" for note in result["notes"])
    size, is_image = result["frames"]["size"], result["frames"]["of"] == 1
    chart = "" if is_image else similarity_chart(result, summary.instruments.threshold)
    kind = "image" if is_image else f"{result['frames']['of']} frames, {result['frames']['fps']:g} fps"
    about = f"{kind}, {size[0]}×{size[1]} · {_text(result['video'])}"
    return (f"<article>{f'<h3>{_text(run.title)}</h3>' if with_name else ''}<div class=strip>{frames}</div>"
            f"{chart}<ul class=chips>{chips}</ul>"
            f"{f'<ul class=quiet>{notes}</ul>' if notes else ''}<p class=about>{about}</p></article>")  # fmt: skip


def _method(summary: Summary) -> str:
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in summary.measured_with().items())
    return f"<section><h2>How it was measured</h2><dl>{rows}</dl></section>"
