"""Command lines: numbers that are numbers, paths that can be, and one line for what is neither."""

from pathlib import Path

import pytest
from conftest import refusal

from concat_id.config.parser import Parser

BROKEN = ["nan", "inf", "-inf", "1e400", "1_000", "１２", "²", "", " ", "0x10", "1,5", "x" * 10_000, "9" * 5000]


def parse(*words: str):
    parser = Parser(description="test")
    parser.add_argument("--count", type=int, nargs="+", default=[1])
    parser.add_argument("--seed", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--share", "--part", type=float, default=0.5)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args([*words, "--output=~/x"] if "--output" not in " ".join(words) else words)


def test_numbers_and_paths_arrive(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    parsed = parse("--count", "0", "12", "--share", "-0.0015")
    assert (parsed.count, parsed.share, parsed.output) == ([0, 12], -0.0015, Path("/home/somebody/x"))
    assert parse("--output", "a b/../c").output == Path("a b/../c")


@pytest.mark.parametrize("option, most", [("seed", 2**63 - 1), ("workers", 256), ("count", 10**6)])
def test_numbers_larger_than_any_use_are_told(option, most):
    assert getattr(parse(f"--{option}", str(most)), option) in (most, [most])
    assert refusal(parse, f"--{option}", str(most + 1)).startswith(f"command line: --{option}: found ")
    assert refusal(parse, "--share=1e7") == "command line: --share: found '1e7', expected a number up to 1000000; see --help"


@pytest.mark.parametrize("option, texts", [
    ("count", [*BROKEN, "1.5", "1e3", "-5", "9" * 30]), ("share", BROKEN), ("output", ["~nosuchuser/x", "a\0b", "", "  "]),
])  # fmt: skip
def test_what_is_no_number_and_no_path_is_told(option, texts):
    for text in texts:
        assert refusal(parse, f"--{option}={text}").startswith(f"command line: --{option}: ")


@pytest.mark.parametrize("words, message", [
    (["--outputs=x"], "--outputs: unknown option; the nearest is --output"),
    (["--outpu=x"], "--outpu: unknown option; the nearest is --output"),
    (["--share"], "--share: expected one argument"),
    (["x"], "found 'x', expected an option"),
    (["-q"], "-q: unknown option"),
    (["--output"], "--output: expected one argument"),
])  # fmt: skip
def test_usage_is_told_in_one_line(words, message):
    assert refusal(parse, *words).startswith(f"command line: {message}")


def test_what_is_missing_is_named_after_what_is_unknown():
    parser = Parser(description="test")
    parser.add_argument("--output", required=True)
    assert refusal(parser.parse_args, []) == "command line: --output: missing; see --help"
    assert "--ouput: unknown option; the nearest is --output" in refusal(parser.parse_args, ["--ouput", "x"])
