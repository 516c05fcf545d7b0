"""Command lines: numbers that are numbers, paths that can be, and one line for what is neither."""

from pathlib import Path

import pytest
from in_process import refused

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
    refused(f"^command line: --{option}: found ", parse, f"--{option}", str(most + 1))
    refused("^command line: --share: found '1e7', expected a number up to 1000000; see --help$", parse, "--share=1e7")


@pytest.mark.parametrize("option, texts", [
    ("count", [*BROKEN, "1.5", "1e3", "-5", "9" * 30]), ("share", BROKEN), ("output", ["~nosuchuser/x", "a\0b", "", "  "]),
])  # fmt: skip
def test_what_is_no_number_and_no_path_is_told(option, texts):
    for text in texts:
        refused(f"^command line: --{option}: ", parse, f"--{option}={text}")


@pytest.mark.parametrize("words, message", [
    (["--outputs=x"], "--outputs: unknown option; the nearest is --output"),
    (["--share"], "--share: expected one argument"),
    (["a", "woman"], "found 'a', expected an option; put text with spaces in quotes"),
])  # fmt: skip
def test_usage_is_told_in_one_line(words, message):
    refused(f"^command line: {message}", parse, *words)


def test_what_is_missing_is_named_after_what_is_unknown():
    parser = Parser(description="test")
    parser.add_argument("--output", required=True)
    refused("^command line: --output: missing; see --help$", parser.parse_args, [])
    refused("--ouput: unknown option; the nearest is --output", parser.parse_args, ["--ouput", "x"])
