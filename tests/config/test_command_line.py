"""Options of sampling and training: both spellings, only what was given, suggestions for the rest, and models by name."""

import dataclasses
from pathlib import Path

import pytest
from conftest import ROOT
from in_process import refused

from concat_id.config.args import SamplingArgs, TrainingArgs
from concat_id.config.command_line import MEMORY_HELP, build_parser, read_command_line
from concat_id.config.loading import load_config

DEBUG = str(ROOT / "configs" / "debug.yaml")
SHARED = [item.name for item in dataclasses.fields(SamplingArgs) if item.metadata.get("shared")]


def read(*words: str, training: bool = False):
    return read_command_line("test", training, ["--base", DEBUG, *words])


def test_only_what_is_given_is_returned():
    assert read() == ([DEBUG], {})
    assert read_command_line("test", False, ["--base", "a.yaml", "b.yaml", "--seed", "7"]) == (["a.yaml", "b.yaml"], {"seed": "7"})
    assert read_command_line("test", False, ["--base", "a.yaml", "--seed=7", "--base", "b.yaml"])[0] == ["a.yaml", "b.yaml"]


@pytest.mark.parametrize("section", [SamplingArgs, TrainingArgs])
def test_every_key_is_an_option_in_both_spellings(section):
    names = [item.name for item in dataclasses.fields(section)] + (SHARED if section is TrainingArgs else [])
    for name in names:
        values = {"sampling_image_size": ["64", "96"]}.get(name, ["1"])
        for spelling in (name, name.replace("_", "-")):
            given = read(f"--{spelling}", *values, training=section is TrainingArgs)[1]
            assert given in ({name: "1"}, {name: values}), name


def test_options_reach_the_typed_config():
    words = ["--prompt", "a woman laughs", "--image", "a.jpg", "b.jpg", "--image", "c.jpg", "--output", "out", "--memory", "low"]
    paths, overrides = read(*words, "--overwrite", "--bf16", "false", "--sampling-image-size", "32", "48", "--sampling_num_frames", "2")
    args = load_config(paths, overrides).args
    assert (args.prompt, args.image, args.output_dir, args.memory) == ("a woman laughs", ("a.jpg", "b.jpg", "c.jpg"), "out", "low")
    assert (args.overwrite, args.bf16, args.sampling_image_size, args.sampling_num_frames) == (True, False, (32, 48), 2)
    assert load_config(paths, {}).args.output_dir == "outputs/debug"
    refused("^command line: --image: found .* expected the text of the video", load_config, paths, {"image": ["a.jpg"]})


def test_sampling_and_training_have_options_of_their_own():
    refused("--train_iters: is an option of sat/train_video.py", read, "--train_iters", "3")
    refused("--image: is an option of sat/sample_video.py", read, "--image", "a.png", training=True)


def test_options_of_the_original_and_of_launchers_are_taken(capsys):
    words = "--local_rank=0", "--deepspeed", "--input-type", "txt", "--no_load_rng", "--exit-interval", "5"
    load_config(*read(*words, training=True))
    assert "--exit_interval: has no effect; set args.train_iters" in capsys.readouterr().err
    refused("--image2video: found True, expected false; this project is text-to-video", load_config, *read("--image2video"))
    refused("--exit_interva: unknown option; the nearest is --save_interval", read, "--exit_interva", training=True)


def test_a_model_stands_for_its_files(capsys):
    paths, given = read_command_line("test", False, ["--model", "mini", "--task", "two_identities", "--seed", "7"])
    assert [Path(path).name for path in paths] == ["mini.yaml", "mini_two_identities.yaml"] and given == {"seed": "7"}
    assert [Path(path).name for path in read_command_line("test", True, [])[0]] == ["mini.yaml", "mini_single_identity.yaml"]
    assert capsys.readouterr().err == ""


def test_what_to_expect_of_small_models_is_told(capsys, monkeypatch):
    monkeypatch.setattr("concat_id.config.presets.default_model", lambda task, training: "mini")
    read_command_line("test", False, [])
    assert "96x144 demonstration model" in capsys.readouterr().err
    read_command_line("test", False, ["--model", "wan_mini"])
    assert "untrained" in capsys.readouterr().err


def test_help_tells_defaults_and_what_memory_costs(capsys):
    for training, section in ((False, SamplingArgs), (True, TrainingArgs)):
        with pytest.raises(SystemExit) as caught:
            build_parser("Make videos.", training).parse_args(["--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert caught.value.code == 0 and "Make videos." in text and "(default: 42)" in text
        assert training or all(" ".join(cost.split()) in text for cost in MEMORY_HELP.values())
        assert all(f"--{item.name}" in text for item in dataclasses.fields(section))
