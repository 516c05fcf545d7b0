"""The options of inference_wan.py: the original's names, and what they mean as configuration files and keys of `args:`."""

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from concat_id.config.args import SamplingArgs
from concat_id.config.command_line import SAMPLING_GROUPS, add_option
from concat_id.config.loading import load_config
from concat_id.config.parser import Parser, number_within
from concat_id.config.presets import UNTRAINED, files_of
from concat_id.config.typed import LARGEST
from concat_id.errors import UserError, warn
from concat_id.files.paths import SEPARATOR

MODELS = {"wan_1_3b": ("wan_1_3b", "wan_adaln"), "wan_mini": ("wan_mini", "wan_mini_adaln")}  # without and with --use_adaln
MEMORY = {
    "high": "text encoder, transformer and autoencoder stay on the device, 14.5 GB",
    "balanced": "the text encoder (11.4 GB) leaves after the prompts; transformer (2.8 GB) and autoencoder (0.25 GB) stay, 3.1 GB",
    "low": "the text encoder runs on the CPU, the transformer passes through layer by layer (0.1 GB each), slowest",
}
# Options that have the names of keys of args:, below those of the original.
SHARED = (
    *("input_file", "overwrite", "photos", "strict_photos", "batch_size", "best_of", "load", "trust_checkpoint"),
    *("ref_guidance_scale", "sampler", "memory", "device", "attention_kernel", "compile", "bf16", "fp16"),
    *("parallel", "cache", "cache_threshold", "quantize"),
)
RENAMED = {"image_path": "image", "cfg_scale": "guidance_scale", "use_tiled": "tiled_decoding"}
OWN = ("model", "config", "use_adaln", "download", "height", "width", "num_frames")


@dataclass(frozen=True)
class WanRequest:
    """What was asked for: `options` says what keys of `overrides` are called on the command line."""

    model: str
    bases: list[str]
    overrides: dict[str, Any]
    options: dict[str, str]
    download: str | None


def build_parser(description: str) -> Parser:
    """Make the parser; only what is given ends up in its result."""
    parser = Parser(description=description, argument_default=None)
    parser.usage = "%(prog)s --image_path FILE --prompt TEXT [--output_dir FOLDER] [options]"
    groups = {name: parser.add_argument_group(title) for name, title in SAMPLING_GROUPS.items()}

    def add(group: str, name: str, text: str, **settings: Any) -> None:
        groups[group].add_argument(f"--{name}", help=text, **settings)

    add("input", "image_path", "photos of the people, left to right, one option each or joined by @@; a.jpg+b.jpg are of one",
        metavar="FILE", nargs="+", action="extend")  # fmt: skip
    add("input", "prompt", "text of the video", metavar="TEXT")
    add("input", "negative_prompt", "text to stay away from (default: '...', as released)", metavar="TEXT")
    add("input", "output_dir", "folder for the results (default: outputs/wan-...)", metavar="FOLDER")
    add("input", "seed", "seed of the noise; a negative one stands for any (default: 0)", metavar="N")
    add("model", "model", "the released model, or a small untrained one that shows the way (default: wan_1_3b)", choices=MODELS)
    add("model", "config", "your own YAML files, which change what the model's say", metavar="FILE", nargs="+", action="extend")
    add("model", "use_adaln", "the second stage, whose references have modulations of their own", action="store_true", default=None)
    add("model", "height", "height in pixels, divisible by 16 (default: 480)", metavar="N")
    add("model", "width", "width in pixels, divisible by 16 (default: 832)", metavar="N")
    add("model", "num_frames", "frames at 16 per second, 4 n + 1; 1 is a portrait image (default: 81)", metavar="N")
    add("model", "num_inference_steps", "denoising steps (default: 50)", metavar="N")
    add("model", "cfg_scale", "strength of the text (default: 5)", metavar="X")
    add("placement", "use_tiled", "decode in overlapping tiles: less memory", action="store_true", default=None)
    add("model", "download", "fetch the weights that are missing, 17 GB, from there; nothing is fetched without it",
        nargs="?", const="huggingface", choices=("huggingface", "modelscope"))  # fmt: skip
    hints, fields = get_type_hints(SamplingArgs), {item.name: item for item in dataclasses.fields(SamplingArgs)}
    for name in SHARED:
        add_option(groups[fields[name].metadata["group"]], fields[name], hints[name], MEMORY)
    return parser


def read_wan_command_line(description: str, argv: Sequence[str] | None = None) -> WanRequest:
    """Parse `argv` (the process's by default). Raises `UserError` for what contradicts itself; `load_config` checks the rest."""
    given = {name: value for name, value in vars(build_parser(description).parse_args(argv)).items() if value is not None}
    model = given.get("model", "wan_1_3b")
    bases = files_of(MODELS[model]["use_adaln" in given]) + given.get("config", [])
    overrides = {RENAMED.get(name, name): value for name, value in given.items() if name not in OWN}
    options = {key: f"--{name}" for name, key in RENAMED.items()}
    if "image" in overrides:
        overrides["image"] = [photo.strip() for text in overrides["image"] for photo in text.split(SEPARATOR)]
    if ("image" in overrides) != ("prompt" in overrides):
        found, absent = ("--image_path", "--prompt") if "image" in overrides else ("--prompt", "--image_path")
        raise UserError(f"command line: {found}: found it without {absent}, expected both (or --input_file with lines prompt@@photo)")
    if model in UNTRAINED and not {"load", "config"} & given.keys():
        warn("--model wan_mini: its weights are random and untrained; it shows that everything runs, its videos are noise")
    overrides |= _seed(given) | _frames(given, options) | _size(given, options, bases)
    return WanRequest(model, bases, overrides, options, given.get("download"))


def _seed(given: dict[str, Any]) -> dict[str, int]:
    if "seed" not in given:
        return {}
    seed = number_within("command line: --seed", given["seed"], -LARGEST, LARGEST)
    if seed < 0:
        seed = random.SystemRandom().randrange(2**31)
        warn(f"--seed {given['seed']}: {seed} was drawn; give it to make the same again")
    return {"seed": seed}


def _frames(given: dict[str, Any], options: dict[str, str]) -> dict[str, int]:
    if "num_frames" not in given:
        return {}
    frames = number_within("command line: --num_frames", given["num_frames"], 1)
    if frames % 4 != 1:
        near = 4 * round((frames - 1) / 4) + 1
        raise UserError(f"command line: --num_frames: found {frames}, expected 4 n + 1; the nearest is {near}")
    options["sampling_num_frames"] = f"--num_frames {frames}, in latent frames"
    return {"sampling_num_frames": (frames - 1) // 4 + 1}


def _size(given: dict[str, Any], options: dict[str, str], bases: list[str]) -> dict[str, list[int]]:
    """Height and width; one that is not given is the model's."""
    if "height" not in given and "width" not in given:
        return {}
    usual = load_config(bases).args.sampling_image_size
    asked = [(given.get(name), f"command line: --{name}") for name in ("height", "width")]
    sides = [side if text is None else number_within(name, text, 1) for (text, name), side in zip(asked, usual, strict=True)]
    options["sampling_image_size"] = "--height and --width"
    return {"sampling_image_size": sides}
