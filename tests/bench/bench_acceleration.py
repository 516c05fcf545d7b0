"""What each acceleration gains and costs: one table, on this machine.

    python tests/bench/bench_acceleration.py --model mini [--bf16 false] [--steps 50] [--pairs 3] [--json FILE]
    python tests/bench/bench_acceleration.py --model cogvideox_5b --random --steps 20      # 5B's sizes, random weights

Each option is timed against the default in ABBA pairs, in one process, denoising alone. Given are the median of the ratios and their
span; how far the latents are from the default's (PSNR, and the difference in relation to their size); with trained weights the
likeness of the decoded video by the report's own recogniser; weights on the device, and the share of steps that was computed.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "sat"))

from concat_id.startup import prepare_process  # noqa: E402

prepare_process()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from concat_id.config.loading import load_config  # noqa: E402
from concat_id.config.presets import files_of  # noqa: E402
from concat_id.distributed import choose_device  # noqa: E402
from concat_id.face.reference import load_face_models, prepare_reference  # noqa: E402
from concat_id.models import backbones  # noqa: E402
from concat_id.models.quantization import bytes_of, difference  # noqa: E402
from concat_id.sampling import magnitudes  # noqa: E402
from concat_id.sampling.pipeline import VideoPipeline, make_pipeline  # noqa: E402
from concat_id.video.writing import write_video  # noqa: E402
from concat_id.weights.loading import SatCheckpoint  # noqa: E402

EXACT = {"default again": {}, "network diffusers": {"network": "diffusers"}, "memory low, SAT": {"memory": "low"},
         "memory low, diffusers": {"memory": "low", "network": "diffusers"}}  # fmt: skip
CACHES = {"first_block": (0.05, 0.1, 0.2), "mag": (0.06, 0.12, 0.24), "dbcache": (0.08, 0.16, 0.32)}
LOSSY = {f"cache {kind} {each}": {"cache": kind, "cache_threshold": each} for kind, thresholds in CACHES.items() for each in thresholds}
LOSSY |= {f"quantize {kind}": {"quantize": kind} for kind in ("int8", "fp8")}
TABLES = {"Exact, against SAT's network": ({}, EXACT), "Lossy, against diffusers' network": ({"network": "diffusers"}, LOSSY)}
HEAD = "| option | s | times as fast | steps computed | latents' PSNR, difference | likeness | weights GB |\n|" + "---|" * 7
PROMPT, PHOTO = "A woman in a red shirt smiles in front of a blue wall.", ROOT / "examples" / "people" / "anna.png"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--random", action="store_true", help="random weights of the model's sizes, in place of files")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--bf16", choices=("true", "false"), help="(default: the model's)")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="WORD", help="options whose names have one of these words")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def random_checkpoint(config) -> SatCheckpoint:
    """Weights of CogVideoX's transformer that keep the size of what passes."""
    generator, dtype = torch.Generator().manual_seed(0), getattr(torch, config.args.dtype_name)
    shapes = {name: tensor.shape for name, tensor in backbones.new_transformer(config, "meta").state_dict().items()}
    made = {
        name: torch.empty(shape, dtype=dtype).normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.02, generator=generator)
        for name, shape in shapes.items()
    }
    return SatCheckpoint(made, "random weights", "")


class Bench:
    """One set of inputs, and pipelines that turn them into latents."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.folder, self.device = args, folder, choose_device("auto")
        config = self.config({})
        self.likeness = None
        if args.random:
            checkpoint = random_checkpoint(config)
            backbones.load_sat_checkpoint = lambda path, **_: checkpoint
            magnitudes.weight_digests = lambda config: {"transformer": "random"}
            model, generator = config.model, torch.Generator().manual_seed(1)
            sides = [side // model.autoencoder.spatial_factor for side in config.args.sampling_image_size]
            self.text = torch.randn(1, model.transformer.text_length, model.transformer.text_hidden_size, generator=generator)
            self.refs = torch.randn(1, 1, model.transformer.in_channels, *sides, generator=generator)
            return
        from concat_id.evaluation.ranking import TakeJudge

        judge, pipeline = TakeJudge(), make_pipeline(config, self.device)
        detector, parser, _ = load_face_models(config.model.faces, self.device)
        (self.text,) = pipeline.encode_prompts([PROMPT])
        self.refs = pipeline.encode_references([prepare_reference(PHOTO, config.args.sampling_image_size, detector, parser).image]).cpu()

        def likeness(latents: Tensor) -> float | None:
            write_video(folder / "video.mp4", pipeline.decode(latents), config.args.sampling_fps)
            return next(iter(judge.scores(folder / "video.mp4", [PHOTO], PROMPT).values()))

        self.likeness = likeness

    def config(self, overrides: dict):
        given = {"num_inference_steps": self.args.steps, "bf16": self.args.bf16}
        given = {name: value for name, value in given.items() if value is not None}
        return load_config(files_of(self.args.model), {"compile": False} | given | overrides)

    def pipeline(self, overrides: dict) -> VideoPipeline:
        pipeline = make_pipeline(self.config(overrides), self.device, self.folder / "cache")
        pipeline.negative_embeds = torch.zeros_like(self.text) if pipeline.config.model.negative_prompt is not None else None
        _ = pipeline.transformer, pipeline.step_cache
        return pipeline

    def sample(self, pipeline: VideoPipeline) -> tuple[Tensor, float]:
        begun = time.perf_counter()
        latents = pipeline.sample(self.text, self.refs, seed=0).cpu()  # which waits for the device
        return latents, time.perf_counter() - begun

    def row(self, overrides: dict, default: VideoPipeline, expected: Tensor) -> dict:
        pipeline = self.pipeline(overrides)
        latents, _ = self.sample(pipeline)  # to warm up
        ratios, seconds = [], []
        for _ in range(self.args.pairs):
            a, b, b2, a2 = (self.sample(each)[1] for each in (default, pipeline, pipeline, default))
            ratios.append((a + a2) / (b + b2))
            seconds.append((b + b2) / 2)
        error = (latents - expected).square().mean()
        steps, found = pipeline.config.model.sampler.num_inference_steps, {}
        if pipeline.step_cache:
            found["computed"] = len(pipeline.step_cache.computed) / steps
        if self.likeness:
            found["likeness"] = self.likeness(latents)
        return found | {
            "seconds": statistics.median(seconds), "faster": statistics.median(ratios), "span": [min(ratios), max(ratios)],
            "difference": difference(latents, expected), "psnr": float(10 * torch.log10((expected.max() - expected.min()) ** 2 / error)),
            "weights_gb": bytes_of(pipeline.transformer) / 1e9,
        }  # fmt: skip


def main() -> None:
    args, tables = options(), {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        for title, (default, rows) in TABLES.items():
            default = bench.pipeline(default)
            expected, _ = bench.sample(default)
            chosen = {name: row for name, row in rows.items() if not args.only or any(word in name for word in args.only)}
            seconds = statistics.median(bench.sample(default)[1] for _ in range(args.pairs))
            likeness = f", likeness {bench.likeness(expected):.3f}" if bench.likeness else ""
            print(f"\n{title}, {seconds:.2f} s{likeness}\n{HEAD}")
            for name, overrides in chosen.items():
                gc.collect()
                row = tables[name] = bench.row(overrides, default, expected)
                forms = {"computed": ".0%", "likeness": ".3f"}
                share, likeness = (f"{row[key]:{form}}" if row.get(key) is not None else "" for key, form in forms.items())
                low, high = row["span"]
                print(f"| {name} | {row['seconds']:.2f} | {row['faster']:.2f} ({low:.2f} to {high:.2f}) | {share} | "
                      f"{row['psnr']:.1f} dB, {row['difference']:.1e} | {likeness} | {row['weights_gb']:.3g} |", flush=True)  # fmt: skip
                if args.json:  # after every row, as a bench may be cut off
                    args.json.write_text(json.dumps(tables, indent=2))


if __name__ == "__main__":
    main()
