"""Options of the entry scripts: every key of `args:`, both spellings, only what was given, suggestions for the rest."""

import dataclasses
from pathlib import Path

import pytest

from concat_id.config.args import Args
from concat_id.config.command_line import MEMORY_HELP, build_parser, read_command_line
from concat_id.config.loading import load_config
from concat_id.errors import UserError

DEBUG = str(Path(__file__).resolve().parents[1] / "configs" / "debug.yaml")


def read(*words: str):
    return read_command_line("test", ["--base", DEBUG, *words])


def test_only_what_is_given_is_returned():
    assert read() == ([DEBUG], {})
    assert read_command_line("test", ["--base", "a.yaml", "b.yaml", "--seed", "7"]) == (["a.yaml", "b.yaml"], {"seed": "7"})
    assert read_command_line("test", ["--base", "a.yaml", "--seed=7", "--base", "b.yaml"])[0] == ["a.yaml", "b.yaml"]


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(Args)])
def test_every_key_is_an_option_in_both_spellings(name):
    values = {"sampling_image_size": ["64", "96"]}.get(name, ["1"])
    for spelling in (name, name.replace("_", "-")):
        given = read(f"--{spelling}", *values)[1]
        assert given in ({name: "1"}, {name: values})


def test_options_reach_the_typed_config():
    words = ["--prompt", "a woman laughs", "--image", "a.jpg", "b.jpg", "--image", "c.jpg", "--output", "out", "--memory", "low"]
    paths, overrides = read(*words, "--overwrite", "--bf16", "false", "--sampling-image-size", "32", "48", "--sampling_num_frames", "2")
    args = load_config(paths, overrides).args
    assert (args.prompt, args.image, args.output_dir, args.memory) == ("a woman laughs", ("a.jpg", "b.jpg", "c.jpg"), "out", "low")
    assert (args.overwrite, args.bf16, args.sampling_image_size, args.sampling_num_frames) == (True, False, (32, 48), 2)
    assert load_config(paths, {}).args.output_dir == "outputs/debug"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--sampling_num_frame", "3"], "--sampling_num_frame: unknown option; the nearest is --sampling_num_frames"),
        (["--sampling-num-frame=3"], "--sampling-num-frame: unknown option; the nearest is --sampling"),
        (["--imag", "a.jpg"], "the nearest is --image"),
        (["--prompt", "a", "woman"], "found 'woman', expected an option; put text with spaces in quotes"),
        (["--seed"], "--seed: expected one argument"),
        (["--sampling_image_size", "3"], "expected 2 arguments"),
    ],
)
def test_usage_errors_are_one_line(words, part):
    with pytest.raises(UserError) as caught:
        read(*words)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_base_is_required_after_the_other_options_are_understood():
    with pytest.raises(UserError, match="--base: missing"):
        read_command_line("test", [])
    with pytest.raises(UserError, match="--bas: unknown option; the nearest is --base"):
        read_command_line("test", ["--bas", "a.yaml"])


def test_help_tells_defaults_and_what_memory_costs(capsys):
    with pytest.raises(SystemExit) as caught:
        build_parser("Make videos.").parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert "Make videos." in text and "(default: 42)" in text
    assert all(" ".join(cost.split()) in text for cost in MEMORY_HELP.values())
    for item in dataclasses.fields(Args):
        assert f"--{item.name}" in text
        assert "_" not in item.name or f"--{item.name.replace('_', '-')} " not in text
