"""Configuration files: merging, types, errors that name file and key, and every YAML of the repository."""

import json
import textwrap
from itertools import chain
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from conftest import ROOT
from in_process import refused

from concat_id.config.args import SamplerName
from concat_id.config.cogvideox import AutoencoderConfig
from concat_id.config.loading import load_config
from concat_id.config.released_args import ACCEPTED_ARGS
from concat_id.config.schema import MODELS, fields_of_args, sampling_part, to_dict

CONFIGS = ROOT / "configs"
DEBUG = CONFIGS / "debug.yaml"
RUN_FILES = sorted([*(CONFIGS / "inference").glob("*.yaml"), *(CONFIGS / "training").glob("*.yaml")])


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "own.yaml") -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


def model_of(path: Path) -> Path:
    """The model file that goes with a file of `args`: its command says it."""
    command = next(line for line in path.read_text().splitlines() if line.startswith("# Command:"))
    return ROOT / next(word for word in command.split() if word.endswith(".yaml"))


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_yaml_of_the_repository_loads_and_opens_with_purpose_cost_and_command(path):
    opening = path.read_text().splitlines()[:3]
    assert [line.split(":")[0] for line in opening] == ["# Purpose", "# Cost", "# Command"]
    command = [word for word in opening[2].split() if word.endswith(".yaml")]
    assert str(path.relative_to(ROOT)) in command
    assert all((ROOT / word).is_file() for word in command)
    config = load_config([model_of(path), path] if path in RUN_FILES else [path])
    assert json.loads(json.dumps(to_dict(config))) == to_dict(config)


def test_the_large_model_is_the_one_of_the_paper():
    config = load_config([CONFIGS / "cogvideox_5b.yaml", CONFIGS / "inference" / "inference_single_identity.yaml"])
    transformer = config.model.transformer
    assert (transformer.num_layers, transformer.hidden_size, transformer.num_attention_heads) == (42, 3072, 48)
    assert config.model.max_latent_frames == 13
    assert (config.args.sampling_image_size, config.args.sampling_num_frames) == ((480, 720), 13)
    assert (config.args.dtype_name, config.model.scale_factor) == ("bfloat16", 0.7)
    assert AutoencoderConfig() == config.model.autoencoder.__class__(path="models/vae/3d-vae.pt")


@pytest.mark.parametrize("name, shift, sampler, scale_factor", [
    ("cogvideox_5b", 1.0, ("sde_dpmpp_2m", 50, "constant", 6.0), 0.7),
    ("cogvideox_2b", 3.0, ("sde_dpmpp_2m", 50, "dynamic", 6.0), 1.15258426),
    ("wan_1_3b", 5.0, ("euler", 50, "constant", 5.0), 1.0),
])  # fmt: skip
def test_numbers_that_released_weights_depend_on(name, shift, sampler, scale_factor):
    model = load_config([CONFIGS / f"{name}.yaml"]).model
    assert (model.schedule.num_timesteps, model.schedule.shift, model.scale_factor) == (1000, shift, scale_factor)
    assert tuple(getattr(model.sampler, key) for key in ("name", "num_inference_steps", "guidance", "guidance_scale")) == sampler
    assert (model.text_dropout, model.ref_image_dropout) == {"cogvideox_2b": (0.1, 0.0), "wan_1_3b": (0.0, 0.1)}.get(name, (0.1, 0.1))


def test_the_option_takes_the_samplers_of_all_models():
    """But ConsisID's, the only one that it has."""
    names = [get_type_hints(get_type_hints(model)["sampler"])["name"] for model in MODELS.values()]
    assert {*get_args(SamplerName), "released"} == set(chain.from_iterable(map(get_args, names)))


def test_later_files_and_the_command_line_win(write):
    first = write("args: {sampling_fps: 5, batch_size: 2, seed: 1}", "first.yaml")
    second = write("args: {sampling_fps: 6, seed: 2}\nmodel: {transformer: {max_refs: 2}}", "second.yaml")
    config = load_config([DEBUG, first, second], {"seed": "7", "num-inference-steps": "9", "guidance_scale": "2"})
    assert (config.args.batch_size, config.args.sampling_fps, config.args.seed) == (2, 6, 7)
    assert (config.model.transformer.max_refs, config.model.transformer.num_layers) == (2, 2)
    assert (config.model.sampler.num_inference_steps, config.model.sampler.guidance_scale) == (9, 2.0)


def test_numbers_may_be_written_the_ways_yaml_tempts_to(write):
    path = write("""
        args: {guidance_scale: 7, train_data: only.json}
        model: {schedule: {shift: "1e-2"}, scale_factor: 1e-1}
        data: {target: some.Dataset, params: {fps: 8., skip_frms_num: 3., video_size: [64, "96"]}}
        deepspeed: {zero_optimization: , optimizer: {params: {eps: 1e-8, betas: [0.9, 0.95]}}}
    """)
    config = load_config([DEBUG, path])
    assert (config.args.guidance_scale, config.model.schedule.shift, config.model.scale_factor) == (7.0, 0.01, 0.1)
    assert isinstance(config.args.guidance_scale, float)
    assert config.training.train_data == ("only.json",)
    assert (config.data.fps, config.data.skip_frms_num, config.data.video_size) == (8, 3, (64, 96))
    assert isinstance(config.data.skip_frms_num, int)
    assert config.deepspeed == {"optimizer": {"params": {"eps": 1e-8, "betas": [0.9, 0.95]}}}


WRONG = {  # YAML: parts of what is said
    "args:\n\u3000seed: 3": [r"unknown key '\u3000seed'; the nearest"],
    "args: {sampling_num_frame: 3}": ["args.sampling_num_frame: unknown key", "nearest known key is sampling_num_frames"],
    "seed: 3": ["seed: belongs under args"],
    "args: {sampling_num_frames: abc}": ["args.sampling_num_frames: found 'abc', expected an integer"],
    "args: {seed: true}": ["args.seed: found True, expected an integer"],
    "args: {compile: ture}": ["args.compile: found 'ture', expected true, false or auto"],
    "args: {bf16: atuo}": ["args.bf16: found 'atuo', expected true, false or auto"],
    "args: {seed: -1}": ["args.seed: found -1, expected 0 to"],
    "args: {guidance_scale: .nan}": ["args.guidance_scale: found nan, expected a number"],
    "args: {experiment_name: 7}": ["args.experiment_name: found 7, expected text; put it in quotes"],
    "args: {memory: lo}": ["found 'lo', expected one of low, balanced, high; the nearest is low"],
    "model: {lora: {rank: 2, alpha: 0}}": ["model.lora.alpha: found 0.0, expected 1e-06 to"],
    "model: {lora: {rank: 2, dropout: 1}}": ["model.lora.dropout: found 1.0, expected 0 to 0.99"],
    "model: {transformer: 3}": ["model.transformer: found 3, expected a mapping"],
    "- args": ["found a list, expected sections"],
    "args: {model_parallel_size: 2}": ["args.model_parallel_size: found 2, expected 1"],
    "args: {seed: 4294967296}": ["args.seed: found 4294967296, expected 0 to 4294967295"],
    "args: {epochs: 3, train_iters: 9}": ["args.epochs: found 3, expected none where args.train_iters is given; remove one of them"],
    "args: {image2video: true}": ["text-to-video with reference images"],
    "args: {input_type: cli}": ["--prompt"],
}
UNFIT = {  # to other keys
    "args: {sampling_image_size: [60, 96]}": ["found (60, 96)", "divisible by 16"],
    "args: {sampling_num_frames: 4}": ["found 4, expected 1 to 3 latent frames (3 are 9 frames of video, 1 is a portrait image)"],
    "args: {bf16: true, fp16: true}": ["args.fp16: found True, expected false"],
    "args: {num_inference_steps: 1001}": ["args.num_inference_steps: found 1001", "1000"],
    "model: {transformer: {hidden_size: 100}}": ["model.transformer.hidden_size: found 100", "divisible by 16"],
    "model: {transformer: {latent_width: 13}}": ["model.transformer.latent_width", "patch_size 2"],
    "model: {transformer: {num_frames: 10}}": ["1 more than a multiple of 4"],
    "model: {transformer: {text_length: 17}}": ["text_length 17"],
    "model: {transformer: {in_channels: 8}}": ["model.transformer.in_channels: found 8", "16 latent channels"],
    "model: {autoencoder: {block_out_channels: [32, 48, 64, 128]}}": ["multiples of norm_num_groups 32"],
    "data: {video_size: [64, 104]}": ["data.video_size", "divisible by 16"],
    "data: {max_num_frames: 13}": ["data.max_num_frames: found 13", "at most 9"],
}


def test_what_is_wrong_is_named_with_file_key_and_remedy(write):
    for text, parts in (WRONG | UNFIT).items():
        message = refused(parts[0], load_config, [DEBUG, path := write(text)])
        assert message.startswith(f"{path}: ") or text in UNFIT
        assert all(part in message for part in parts), message


def test_the_factor_of_the_sizes_follows_the_model(write):
    path = write("""
        model: {transformer: {patch_size: 1}, autoencoder: {block_out_channels: [32, 32, 32]}}
        args: {sampling_image_size: [28, 44]}
    """)
    assert load_config([DEBUG, path]).args.sampling_image_size == (28, 44)
    path = write("model: {transformer: {patch_size: 4}}\nargs: {sampling_image_size: [48, 96]}")
    refused("divisible by 32 (VAE 8 x patch 4)", load_config, [DEBUG, path])


def test_frames_a_latent_are_those_that_cogvideox_vae_makes(write):
    path = write("model: {transformer: {time_compressed_rate: 3, num_frames: 10}}")
    for base in (DEBUG, CONFIGS / "wan_mini.yaml"):
        refused("time_compressed_rate: found 3, expected 1, 2, 4 or another power of two", load_config, [base, path])


def test_the_file_named_is_the_one_the_value_came_from(write):
    first, second = write("args: {seed: abc}", "first.yaml"), write("args: {batch_size: 2}", "second.yaml")
    refused(f"^{first}: args.seed", load_config, [DEBUG, first, second])
    assert load_config([DEBUG, first, write("args: {seed: 3}", "third.yaml")]).args.seed == 3
    told = "^command line: --sampling_num_frames: found 'abc', expected an integer$"
    refused(told, load_config, [DEBUG, second], {"sampling_num_frames": "abc"})
    refused("command line: --num_inference_steps: found 5000", load_config, [DEBUG], {"num_inference_steps": "5000"})
    refused("command line: --sede: unknown key; the nearest known key is seed", load_config, [DEBUG], {"sede": 1})


def test_broken_files_say_where(write, tmp_path, capsys):
    load_config([DEBUG, write("# args:", "empty.yaml")])
    assert capsys.readouterr().err.startswith(f"warning: {tmp_path}/empty.yaml: found nothing in it, expected one of the sections model")
    refused("no such file", load_config, [tmp_path / "absent.yaml"])
    refused("found a folder, expected a YAML file", load_config, [tmp_path])
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00args")
    refused(str(binary), load_config, [DEBUG, binary])
    refused("--base", load_config, [])
    refused("no model section", load_config, [write("args: {seed: 1}")])
    refused("model.transformer: missing", load_config, [write("model: {scale_factor: 1}")])
    refused("model.transformer.num_layers: missing, expected an integer", load_config, [write("model: {transformer: {hidden_size: 64}}")])
    assert load_config([DEBUG, write("")]).args.seed == 42
    assert load_config([DEBUG, write("args:\nmodel:\n")]).args.seed == 42


def test_keys_without_effect_are_accepted_where_they_mean_what_they_meant(write):
    path = write("""
        args: {image2video: False, contextimage2video: True, input_type: txt, latent_channels: 16, force_inference: True,
               no_load_rng: True, split: "1,0,0", force_train: True}
    """)
    assert set(ACCEPTED_ARGS).isdisjoint(to_dict(load_config([DEBUG, path]))["args"])


def test_precision_follows_the_flags(write):
    assert load_config([DEBUG]).args.dtype_name == "float32"
    brain = write("args: {bf16: true}")
    assert load_config([DEBUG, brain]).args.dtype_name == "bfloat16"
    assert load_config([DEBUG, brain], {"fp16": "true"}).args.dtype_name == "float16"
    assert load_config([DEBUG, brain], {"fp16": "false"}).args.dtype_name == "bfloat16"
    assert load_config([DEBUG, brain], {"bf16": "false"}).args.dtype_name == "float32"
    training = write("deepspeed: {bf16: {enabled: True}, fp16: {enabled: False}}")
    assert load_config([DEBUG, training]).args.dtype_name == "bfloat16"
    assert load_config([DEBUG, training, write("args: {fp16: true}", "half.yaml")]).args.dtype_name == "float16"


PROCESSORS = {"flags\t: fpu avx512f avx512_bf16": "bfloat16", "Features\t: asimd bf16": "bfloat16", "flags\t: fpu avx2": "float32"}


@pytest.mark.parametrize("flags, dtype", PROCESSORS.items())
def test_automatic_precision_is_what_the_processor_is_fast_in(write, monkeypatch, flags, dtype):
    monkeypatch.setattr("concat_id.distributed.CPU_INFO", write(f"processor\t: 0\n{flags}\n", "cpuinfo"))
    config = load_config([DEBUG, write("args: {bf16: auto, device: cpu}")])
    assert config.args.dtype_name == dtype
    config = load_config([DEBUG, write("args: {fp16: true}", "half.yaml")], {"bf16": "auto", "fp16": "true", "device": "cpu"})
    assert config.args.dtype_name == dtype.replace("float32", "float16")
    assert load_config([DEBUG, write("args: {bf16: auto, fp16: false}")], {"bf16": "false"}).args.dtype_name == "float32"


def test_keys_of_the_original_that_are_replaced_are_told(write, capsys):
    told = {name: entry for name, entry in ACCEPTED_ARGS.items() if entry.told}
    assert {"log_image", "train_data_weights"} <= set(told)
    path = write("args:\n" + "".join(f"  {name}: 3\n" for name in told))
    assert load_config([DEBUG, path]) == load_config([DEBUG])
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"warning: {path}: args.{name}: has no effect; {entry.reason}" for name, entry in told.items()]
    assert not ACCEPTED_ARGS.keys() & fields_of_args().keys()


@pytest.mark.parametrize(("first", "second", "given", "expected"), [
    ("{train_iters: 9}", "{epochs: 3}", {}, (1000, 3, None, None)),
    ("{epochs: 3}", "{train_iters: 9}", {}, (9, None, None, None)),
    ("{epochs: 3}", "", {"train_iters": "9"}, (9, None, None, None)),
    ("{warmup_iters: 7, train_iters: 40}", "{warmup: 0.5}", {}, (40, None, None, 0.5)),
    ("{warmup: 0.1, train_iters: 40}", "{warmup_iters: 7}", {}, (40, None, 7, None)),
    ("{warmup_iters: 70, warmup_part: 0.5}", "{train_iters: 40}", {}, (40, None, 20, None)),
])  # fmt: skip
def test_the_later_of_two_keys_that_exclude_one_another_counts(write, first, second, given, expected):
    paths = [write(f"args: {text}", f"{number}.yaml") for number, text in enumerate((first, second))]
    args = load_config([DEBUG, *paths], given).training
    assert (args.train_iters, args.epochs, args.warmup_iters, args.warmup) == expected


@pytest.mark.parametrize(("taken", "seen", "expected"), [(0, 0, 8), (5, 5, 10), (2, 10, 5), (5, 20, 5)])
def test_epochs_become_steps(write, taken, seen, expected):
    """Three of 5 batches, two a step; also after steps of fewer or more batches."""
    args = load_config([DEBUG, write("args: {epochs: 3, save_interval: 0, eval_interval: null}")]).training
    args.count_steps(5, 2, taken, seen)
    assert (args.train_iters, args.epochs, args.save_interval, args.eval_interval) == (expected, None, 0, 2)


@pytest.mark.parametrize(
    ("model", "dropout", "fps"), [("transformer: {num_layers: 1, hidden_size: 64, num_attention_heads: 1}", 0.0, 8), ("kind: wan", 0.1, 16)]
)
def test_references_are_dropped_and_rates_chosen_as_a_file_or_the_model_says(write, model, dropout, fps):
    config = load_config([write(f"model: {{{model}}}")])
    assert (config.model.ref_image_dropout, config.args.sampling_fps, config.data.fps) == (dropout, fps, fps)
    given = load_config([write(f"model: {{{model}}}\nargs: {{sampling_fps: 10}}\ndata: {{fps: 12}}")])
    assert (given.args.sampling_fps, given.data.fps) == (10, 12)
    mine = load_config([write(f"model: {{{model}}}\ndata: {{fps: 12, video_size: [96, 64], max_num_frames: 13}}")]).args
    assert (mine.sampling_fps, mine.sampling_image_size, mine.sampling_num_frames) == (12, (96, 64), 4)
    assert load_config([write(f"model: {{ref_image_dropout: 0.3, {model}}}")]).model.ref_image_dropout == 0.3


def test_paths_are_those_of_files_beside_the_yaml_file_that_names_them(tmp_path, monkeypatch):
    folder, work, home = (tmp_path / name for name in ("lists", "work", "home"))
    for place in (folder, work, home):
        (place / "t5").mkdir(parents=True)
    for place in (folder / "one.json", work / "one.json", work / "two.json", work / "photo.png", folder / "vae.pt"):
        place.touch()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(home))
    (folder / "own.yaml").write_text("""
args: {train_data: [one.json, two.json, three.json], valid_data: one.json, load: ~/t5, resume: latest,
       output_dir: out, save: ~/runs, latent_cache: "~"}
model: {text_encoder: {path: t5}, autoencoder: {path: ./vae.pt}, faces: {detector: models/antelopev2}}
""")
    config = load_config([DEBUG, "../lists/own.yaml"], {"image": ["photo.png", "~/a.png"], "prompt": "p", "input_file": "one.json"})
    args, training, beside = config.args, config.training, "../lists/"
    assert (training.train_data, training.valid_data) == ((f"{beside}one.json", "two.json", "three.json"), (f"{beside}one.json",))
    assert (args.output_dir, training.save, training.latent_cache, args.load) == ("out", f"{home}/runs", str(home), f"{home}/t5")
    assert (args.image, args.input_file, training.resume) == (("photo.png", f"{home}/a.png"), "one.json", "latest")
    model = config.model
    assert (model.text_encoder.path, model.autoencoder.path) == (f"{beside}t5", f"{beside}vae.pt")
    assert model.faces.detector == "models/antelopev2"


@pytest.mark.parametrize("key", ["args.output_dir", "args.train_data", "model.faces.parser"])
def test_what_no_path_can_be_is_named_with_its_key(write, key):
    for path in ("~nosuchuser/x", '"a\\0b"', '""', '" "'):
        section, _, rest = key.partition(".")
        own = write(f"{section}: {{{rest.replace('.', ': {')}: {path}}}" + "}" * rest.count("."))
        refused(f"^{own}: {key}: ", load_config, [DEBUG, own])


def test_a_video_depends_on_no_path_and_on_nothing_that_only_training_reads():
    config = load_config([DEBUG])
    before = sampling_part(config.model)
    config.model.transformer.checkpoint_activations, config.model.text_dropout, config.model.autoencoder.path = True, 0.5, "elsewhere"
    assert sampling_part(config.model) == before
    config.model.sampler.guidance_scale += 1
    assert sampling_part(config.model) != before
