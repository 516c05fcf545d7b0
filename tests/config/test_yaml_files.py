"""YAML of any content: values as OmegaConf reads them, or one line with file, line and column, soon and in little memory."""

import random
import time
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import refused
from odd_input import result_or_line
from omegaconf import OmegaConf

from concat_id.config.loading import load_config
from concat_id.config.schema import Config
from concat_id.config.typed import Origins
from concat_id.config.yaml_files import merge, read_yaml, resolve_references

RELEASED = ROOT.parent / "shared" / "released_configs"
FILES = sorted([*(ROOT / "configs").rglob("*.yaml"), *RELEASED.rglob("*.yaml")])
LAUGHS = f"a: &a [{'x,' * 9}]\n" + "".join(f"{new}: &{new} [{f'*{old} ,' * 9}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True))


def read(tmp_path: Path, text: str):
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    return read_yaml(tmp_path / "own.yaml", "own.yaml")


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_mean_what_omegaconf_reads(path):
    assert read_yaml(path, "") == OmegaConf.to_container(OmegaConf.load(path))


@pytest.mark.parametrize("text", [
    "1e-5", "1e5", "8.", ".5", "-1.5e+3", "1_000", "1_0.5", "0x1f", "010", "0b11", "1:30", "1:30.5", ".inf", "-.INF", "yes", "Off", "~",
    "null", "''", "2001-01-01", "<", "12.jpg", "1e5x", "1.2.3", "e5", "1e", "+5", "[1, [2]]", "{a: {b: 1}}", '"\\x41"', "|\n  two\n  lines",
    "!!str 5", "!!int '5'",
])  # fmt: skip
def test_scalars_mean_what_omegaconf_reads(tmp_path, text):
    expected = OmegaConf.to_container(OmegaConf.create(f"a: {text}"))
    assert repr(read(tmp_path, f"a: {text}")) == repr(expected)


def test_anchors_and_merge_keys(tmp_path):
    text = "p: {q: &b {<<: &a {x: 1, y: 1}, x: 2}}\nc: {<<: *b, y: 3}\nd: [*a, *a]\n"
    assert read(tmp_path, text) == {"p": {"q": {"x": 2, "y": 1}}, "c": {"x": 2, "y": 3}, "d": [{"x": 1, "y": 1}] * 2}


@pytest.mark.parametrize("text, message", [
    ("a: " + "[" * 150 + "]" * 150, "line 1, column 43: not valid YAML (found more than 40 lists and mappings within one another)"),
    (LAUGHS, "line 5, column 12: not valid YAML (found more than 20,000 keys and values)"),
    ("a: &x [*x]", "line 1, column 8: not valid YAML (found the alias 'x' of nothing"),
    ("a: !!int abc", "line 1, column 4: not valid YAML (found 'abc', which is no int)"),
    ("a: !!python/object/apply:os.system [id]", "the tag !!python/object/apply:os.system"),
    ("a:\n  b: " + "9" * 5000, "line 2, column 6: not valid YAML (found a number of 5,000 characters)"),
    ("a: 1\na: 2", "line 2, column 1: not valid YAML (found the duplicate key 'a')"),
    ("? [a]\n: b", "the key that is a list or a mapping"),
    ("a: '\x1b[2J'", "line 1: not valid YAML (the character U+001B)"),
    ('a: "\\UFFFFFFFF"', "line 1, column"),
    ("a: 1\n---\nb: 2", "line 2, column 1"),
    ("%YAML " + "9" * 5000 + ".1\n---\na: 1", "not valid YAML"),
    ("#" + "x" * 2**21, "found 2,097,153 characters"),
])  # fmt: skip
def test_what_no_file_needs_is_refused_at_its_place(tmp_path, text, message):
    began = time.monotonic()
    told = refused(message, read, tmp_path, text)
    assert told.startswith("own.yaml: ") and len(told) < 300
    assert time.monotonic() - began < 10


def test_references_mean_what_they_say(monkeypatch):
    monkeypatch.setenv("FOLDER", "/data")
    tree = {
        "args": {"save": "${oc.env:FOLDER}/runs", "load": "${args.save}/last", "none": "${oc.env:ABSENT,x}", "numbers": [1, 2],
                 "seed": "${.numbers[1]}", "copy": "${data}", "literal": r"\${args.save}"},
        "data": {"size": ["${args.numbers.0}", "${args.numbers}"], "up": "${.size.0} of ${..args.seed}"},
    }  # fmt: skip
    assert resolve_references(tree, Origins()) == {
        "args": {"save": "/data/runs", "load": "/data/runs/last", "none": "x", "numbers": [1, 2], "seed": 2,
                 "copy": {"size": [1, [1, 2]], "up": "1 of 2"}, "literal": "${args.save}"},
        "data": {"size": [1, [1, 2]], "up": "1 of 2"},
    }  # fmt: skip


@pytest.mark.parametrize("tree", [
    {"a": "${a}"}, {"a": "${b}", "b": "x${a}"}, {"a": {"b": "${a}"}}, {"a": "${}"}, {"a": "${"}, {"a": "${b${c}}"},
    {"a": "${b.c.d}", "b": [1]}, {"a": "${oc.env:ABSENT}"}, {"a": "${oc.nothing:1}"}, {"a": {"b": "???"}}, {"a": "${b}", "b": "x" * 70_000},
    {str(n): f"${{{n + 1}}}" * 2 for n in range(30)} | {"30": "x" * 1000},
    {str(n): [f"${{{n + 1}}}"] * 9 for n in range(30)} | {"30": "x"},
    {str(n): f"${{{n + 1}}}" for n in range(500)} | {"500": "x"}, {"x": 1} | {str(n): "${x}" for n in range(201)},
])  # fmt: skip
def test_references_that_lead_nowhere_or_everywhere_are_refused(tree):
    refused("found .*, expected", resolve_references, tree, Origins())


def test_many_references_to_single_values_are_fine():
    tree = {"size": 8, "layers": {f"layer{n}": {"width": "${size}"} for n in range(200)}}
    assert resolve_references(tree, Origins())["layers"]["layer199"] == {"width": 8}


@pytest.mark.parametrize("first, second, expected", [
    ({"a": {"b": {"c": 1}}}, {"a": {"b": [1]}}, "mapping"), ({"a": {"b": [1]}}, {"a": {"b": {}}}, "list"),
])  # fmt: skip
def test_lists_and_mappings_do_not_replace_one_another(first, second, expected):
    refused(rf"a\.b: found .*, expected a {expected} as before", merge, first, second, Origins())


HOSTILE = [
    "null", "[]", "{}", "[[]]", "{a: b}", ".nan", ".inf", "1e400", "-1", "0", "1e-400", "9" * 400, "1" + "0" * 290, "!!int abc",
    "!!bool x", "!!set {a}", "1:59:59", "1_000", "１２", "²", '"\\0"', '"\\ud800"', '"a\\nb"', "*x", "&x [*x]", "[1, 2, 3]", "[.nan, 1]",
    '["a", 1]', '"${args.seed}"', '"${args}"', '"${"', '"???"', "~nosuch/x", "/dev/zero", "''", "x" * 300, "wan", "auto", "2.5", '"1e3"',
    "[" * 60 + "]" * 60, "<<", "!!map []", "@", "18446744073709551616", "yes",
]  # fmt: skip
BASES = [ROOT / "configs" / name for name in ("mini.yaml", "training/mini_single_identity.yaml")]
RELEASED_FORM = [RELEASED / name for name in ("cogvideox_5b.yaml", "training/sft_single_identity.yaml")]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(random=st.randoms(use_true_random=False), released=st.booleans())
def test_any_file_makes_a_configuration_or_one_line(tmp_path_factory, random: random.Random, released):
    bases = RELEASED_FORM if released and RELEASED.is_dir() else BASES
    texts = [path.read_text() for path in bases]
    changed = random.randrange(2)
    lines = texts[changed].splitlines()
    for _ in range(random.randint(1, 3)):
        at = random.choice([number for number, line in enumerate(lines) if ":" in line and not line.lstrip().startswith("#")])
        key, value = lines[at].split(":", 1)
        place = random.randrange(len(key) + 1)
        hostile = f"{key}: {random.choice(HOSTILE)}"
        lines[at] = random.choice([hostile, hostile, f"{key[:place]}x{key[place:]}:{value}", f"  {lines[at]}", f"{lines[at]}\n{lines[at]}"])
    texts[changed] = "\n".join(lines)
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / f"{number}.yaml" for number in range(2)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    assert isinstance(result_or_line(f".*{folder}", load_config, paths), Config | None)
