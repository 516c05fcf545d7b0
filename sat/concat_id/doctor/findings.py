"""Findings of one line each, by headings: printed as they come, in colour on a terminal, or as JSON at the end."""

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from concat_id.errors import UserError, one_line, shortened
from concat_id.files.paths import PROJECT_ROOT

OK, NOTE, PROBLEM = "ok", "note", "problem"
COLOURS = {OK: "\033[32m", NOTE: "\033[33m", PROBLEM: "\033[31m"}
BOLD, PLAIN = "\033[1m", "\033[0m"
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `found`, what to type next if anything, and `numbers` for machines."""

    mark: str
    what: str
    found: str
    advice: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)


def from_error(what: str, error: UserError) -> Finding:
    """Turn the line of a refusal, "found, expected; remedy", into a finding."""
    text = one_line(error).replace(f"{PROJECT_ROOT}/", "")
    found, _, advice = text.rpartition("; ") if "; " in text else (text, "", "")
    return Finding(PROBLEM, what, shortened(found, 300), advice)


class Findings:
    """Findings by headings, and the exit code that they come to."""

    def __init__(self, as_json: bool = False):
        self.as_json = as_json
        self.sections: list[dict[str, Any]] = []
        self.failed = False

    def add(self, title: str, findings: Iterable[Finding], decisive: Iterable[Finding] | None = None) -> None:
        """Take what was found under a heading and print it. Problems fail the report, or only those of the `decisive` findings."""
        findings = list(findings)
        self.failed |= any(finding.mark == PROBLEM for finding in (findings if decisive is None else decisive))
        self.sections.append({"title": title, "findings": [asdict(finding) for finding in findings]})
        if not self.as_json and findings:
            print("\n".join(_lines(title, findings)), "\n", sep="", flush=True)

    def finish(self, asked: str) -> int:
        """Print the verdict, or everything as JSON; returns the exit code."""
        if self.as_json:
            print(json.dumps({"model": asked, "can_run": not self.failed, "sections": self.sections}, indent=2))
        else:
            verdict = f"{asked} cannot run here yet; see the problems above" if self.failed else f"{asked} can run here"
            print(_painted(verdict, COLOURS[PROBLEM if self.failed else OK]))
        return int(self.failed)


def _lines(title: str, findings: list[Finding]) -> list[str]:
    """A heading, and a line for each finding, in columns."""
    width = max(len(finding.what) for finding in findings)
    lines = [_painted(title, BOLD)]
    for finding in findings:
        mark = _painted(f"{finding.mark:7}", COLOURS[finding.mark])
        advice = f"  -> {finding.advice}" if finding.advice else ""
        lines.append(f"  {mark}  {finding.what:{width}}  {finding.found}{advice}")
    return lines


def _painted(text: str, colour: str) -> str:
    """Colour a text if standard output is a terminal whose user has nothing against it (https://no-color.org)."""
    is_colourful = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"{colour}{text}{PLAIN}" if is_colourful else text


def gib(size: float) -> str:
    """Write a size in GiB with the digits that count."""
    return f"{size / GIB:.{0 if size >= 100 * GIB else 1 if size >= GIB / 2 else 2}f}"
