"""Two ways of the same on a CPU, by processor time in one process: what the project gains over plain operations.

    python tests/bench/bench_pairs.py [--rounds 10] [--quick] [--json FILE]

layer     the transformer's layer, against the operations of the released one, written out: text and video apart
decode    the shipped VAE's decoding in float32, with oneDNN's convolutions against those that PyTorch chooses
Both come with the largest difference. Each round is A B B A, and one is dropped if a matrix product before it and after it differs by
over a tenth. Then the start of sat/sample_video.py and one whole small video, in processes of their own. Numbers are medians with the
smallest and the largest.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "sat"))

from concat_id.startup import prepare_process  # noqa: E402

prepare_process()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from concat_id.config.cogvideox import TransformerConfig  # noqa: E402
from concat_id.config.loading import load_config  # noqa: E402
from concat_id.distributed import has_bfloat16  # noqa: E402
from concat_id.models import backbones  # noqa: E402
from concat_id.models.embeddings import rotary_table  # noqa: E402
from concat_id.models.transformer import DiffusionTransformer  # noqa: E402

DRIFT = 0.1  # of the probe within a round that counts
WHOLE = """
import atexit, json, sys, time
sys.path.insert(0, sys.argv.pop(1))
phases, report = {}, sys.argv.pop(1)
atexit.register(lambda: open(report, "w").write(json.dumps({**phases, "total": time.process_time(), "modules": len(sys.modules)})))
from concat_id.startup import prepare_process
prepare_process()
if "--help" not in sys.argv:
    import concat_id.sampling.run, concat_id.models.transformer, concat_id.models.autoencoder, concat_id.models.text_encoder
    from concat_id.sampling.pipeline import VideoPipeline
    phases["imports"] = time.process_time()
    def timed(call, phase):
        def timing(*arguments):
            start = time.process_time()
            result = call(*arguments)
            phases[phase] = phases.get(phase, 0) + time.process_time() - start
            return result
        return timing
    for name, phase in (("sample", "denoise"), ("decode", "decode")):
        setattr(VideoPipeline, name, timed(getattr(VideoPipeline, name), phase))
import sample_video
sys.exit(sample_video.main())
"""


def machine() -> dict:
    """What the numbers belong to."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    native = has_bfloat16(torch.device("cpu"))
    return {"processor": name, "threads": torch.get_num_threads(), "native_bfloat16": native, "torch": torch.__version__}


def processor_seconds(call: Callable) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "smallest": min(values), "largest": max(values)}


@torch.inference_mode()
def paired(ours: Callable[[], Tensor], plain: Callable[[], Tensor], rounds: int) -> dict:
    """Processor seconds of both, and how many times as long the plain way takes; `dropped` counts rounds of an unsteady machine."""
    matrix = torch.ones(512, 512)

    def probe() -> float:
        return processor_seconds(lambda: [matrix @ matrix for _ in range(20)])

    found, expected = ours(), plain()
    kept, dropped = [], 0
    probe()
    while len(kept) < rounds and dropped <= 3 * rounds:
        before = probe()
        times = [processor_seconds(call) for call in (ours, plain, plain, ours)]
        if abs(probe() / before - 1) > DRIFT:
            dropped += 1
        else:
            kept.append(((times[0] + times[3]) / 2, (times[1] + times[2]) / 2))
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    if not kept:
        return {"difference": difference, "dropped": dropped}
    first, second = ([pair[side] for pair in kept] for side in (0, 1))
    ratios = [plain / ours for ours, plain in kept]
    return {"ours_s": spread(first), "plain_s": spread(second), "ratio": spread(ratios), "difference": difference, "dropped": dropped}


def plain_layer(network: DiffusionTransformer, hidden: Tensor, emb: Tensor, text_length: int, table: tuple[Tensor, Tensor]) -> Tensor:
    """The first layer by the operations of the released one: text and video are modulated apart, and joined for attention and MLP."""
    mixin, layer, attention = network.get_mixin("adaln_layer"), network.transformer.layers[0], network.transformer.layers[0].attention
    cos, sin = (part.repeat_interleave(2, dim=-1) for part in table)

    def rotated(x: Tensor) -> Tensor:
        text, video = x[:, :, :text_length], x[:, :, text_length:]
        first, second = video.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((-second, first), dim=-1).flatten(-2)
        return torch.cat((text, (video.float() * cos + turned.float() * sin).to(x.dtype)), dim=2)

    def modulated(norm: nn.Module, shift: list[Tensor], scale: list[Tensor]) -> Tensor:
        parts = hidden[:, :text_length], hidden[:, text_length:]
        return torch.cat([norm(part) * (1 + scale[i]) + shift[i] for i, part in enumerate(parts)], dim=1)

    def gated(output: Tensor, gate: list[Tensor]) -> Tensor:
        text, video = hidden[:, :text_length], hidden[:, text_length:]
        return torch.cat((text + gate[0] * output[:, :text_length], video + gate[1] * output[:, text_length:]), dim=1)

    chunks = [chunk[:, None] for chunk in mixin.adaLN_modulations[0](emb).chunk(12, dim=1)]  # six for video, then for text
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = ([chunks[6 + i], chunks[i]] for i in range(6))
    heads = attention.query_key_value(modulated(layer.input_layernorm, shift, scale)).chunk(3, dim=-1)
    query, key, value = (part.unflatten(-1, (-1, mixin.head_size)).transpose(1, 2) for part in heads)
    query, key = rotated(mixin.query_layernorm_list[0](query)), rotated(mixin.key_layernorm_list[0](key))
    attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    hidden = gated(attention.dense(attended), gate)
    widened = layer.mlp.dense_h_to_4h(modulated(layer.post_attention_layernorm, shift_mlp, scale_mlp))
    return gated(layer.mlp.dense_4h_to_h(F.gelu(widened, approximate="tanh")), gate_mlp)


def layer_pair(quick: bool, rounds: int) -> dict:
    """A layer of the width of the shipped model; 49 frames of 96x144 with one reference."""
    grid, text_length = ((2, 4, 6) if quick else (14, 6, 9)), 32
    network = DiffusionTransformer(TransformerConfig(num_layers=1, hidden_size=256, num_attention_heads=4, time_embed_dim=256)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.2, generator=generator)
    hidden = torch.randn(2, text_length + grid[0] * grid[1] * grid[2], 256, generator=generator)
    emb, index = torch.randn(2, 256, generator=generator), torch.tensor(0)
    rotary = network.get_mixin("pos_embed").rotary(grid, text_length, hidden.device)
    forward, table = network.get_mixin("adaln_layer").layer_forward, rotary_table(grid, 64)
    return paired(
        lambda: forward(hidden, None, layer_id=index, emb=emb, text_length=text_length, rotary=rotary),
        lambda: plain_layer(network, hidden, emb, text_length, table), rounds,
    )  # fmt: skip


def decode_pair(quick: bool, rounds: int) -> dict:
    """17 frames of 96x144."""
    config = load_config(["configs/mini.yaml", "configs/inference/mini_single_identity.yaml"], {"bf16": False})
    ours, plain = (backbones.load_autoencoder(config) for _ in range(2))
    for module in plain.modules():
        vars(module).pop("_conv_forward", None)
    latents = torch.randn(1, 1 if quick else 5, 16, 12, 18, generator=torch.Generator().manual_seed(0))
    return paired(lambda: ours.decode(latents), lambda: plain.decode(latents), rounds)


def started(times: int, *arguments: str) -> dict:
    """Processor seconds of sat/sample_video.py by phase, and the modules at its end."""
    found = []
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            report, more = Path(folder) / "report.json", ["--output_dir", folder] if "--help" not in arguments else []
            command = [sys.executable, "-c", WHOLE, str(ROOT / "sat"), str(report), *arguments, *more]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"sat/sample_video.py failed: {done.stderr[-2000:]}")
            found.append(json.loads(report.read_text()))
    return {name: spread([report[name] for report in found]) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round: whether it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers into a file")
    args = parser.parse_args()
    os.chdir(ROOT)
    rounds, times = (1, 1) if args.quick else (args.rounds, 5)
    video = "--model", "mini", "--prompt", "a man in a green shirt speaks", "--image", "examples/people/ben.png", "--seed", "1"
    short = ("--sampling_num_frames", "1", "--num_inference_steps", "2") if args.quick else ()
    found = {
        "machine": machine(), "layer": layer_pair(args.quick, rounds), "decode": decode_pair(args.quick, rounds),
        "help": started(times, "--help"), "video": started(times, *video, *short),
    }  # fmt: skip
    text = json.dumps(found, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
