"""Python and its packages, against what requirements.txt asks for; needs the standard library alone."""

import platform
import re
import sys
from collections.abc import Collection, Iterator
from importlib.metadata import PackageNotFoundError, version

from concat_id.doctor.findings import NOTE, OK, PROBLEM, Finding
from concat_id.files.paths import PROJECT_ROOT

PIN = re.compile(r"([\w.-]+)(?:\[\w+\])?==([\w.]+)[^#]*(?:#\s*(training|studio|acceleration|neighbours|curation|ray|people|heads)\b)?")
PYTHONS = (3, 11), (3, 13)
SET_UP = "bash scripts/setup.sh"
COMMANDS = {
    "": SET_UP, "training": "bash finetune_single_identity.sh, which installs it", "studio": "bash studio.sh, which installs it",
    **{part: f"{SET_UP} {part}" for part in ("acceleration", "neighbours", "curation", "ray", "people", "heads")},
}  # fmt: skip


def look_at_packages(needed: Collection[str] = ("",)) -> Iterator[Finding]:
    """Tell what is missing, a problem in the parts that are `needed`, what is of another version, and how many are as they should be."""
    good = PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]
    yield Finding(OK if good else PROBLEM, "Python", sys.version.split()[0], "" if good else f"install Python 3.11 to 3.13, then {SET_UP}")
    lines = (PROJECT_ROOT / "requirements.txt").read_text().splitlines()
    ours = [line for line in lines if "platform_machine" not in line or f'"{platform.machine()}"' in line]
    pins = [match.groups(default="") for match in map(PIN.match, ours) if match]
    found = {name: _installed(name) for name, _, _ in pins}
    same = [name for name, wanted, _ in pins if found[name] == wanted]
    yield Finding(OK, "packages", f"{len(same)} of {len(pins)} as requirements.txt says")
    for part, command in COMMANDS.items():
        if missing := [name for name, _, mark in pins if mark == part and not found[name]]:
            is_problem = part in needed and missing != ["peft"]  # which ConsistentID's low-rank weights alone need
            yield Finding(PROBLEM if is_problem else NOTE, f"for {part}" if part else "missing", f"lacks {', '.join(missing)}", command)
    if others := [f"{name} {found[name]} ({wanted})" for name, wanted, _ in pins if found[name] not in ("", wanted)]:
        yield Finding(NOTE, "other versions", ", ".join(others), f"if something fails: {SET_UP}")


def _installed(name: str) -> str:
    """The version without the part that names a build, such as +cpu; nothing for what is not installed."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return ""
