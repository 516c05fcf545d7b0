"""Running an entry script inside the tests' process, and looking at what it leaves behind."""

from pathlib import Path

from conftest import ROOT

SCRIPT = ROOT / "sat" / "sample_video.py"
PROMPT = "a man in a red hat smiles"


def results(tmp_path: Path) -> list[Path]:
    out = tmp_path / "out"
    return sorted(path for path in out.iterdir() if not path.name.startswith(".")) if out.exists() else []


def only_error(code: int, text: str) -> str:
    """The one line of a failure."""
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert code != 0 and "Traceback" not in text
    assert len(lines) == 1, text
    return lines[0]


def prompt_file(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(lines) + "\n")
    return path
