"""Time and peak memory of one transformer forward at CogVideoX-5B's width, with few layers and random weights.

    python tests/bench/bench_transformer.py [--layers 2] [--frames 13] [--height 480] [--width 720] [--refs 1] [...]

Prints tokens, floating-point operations per layer (24 S D^2 + 4 S^2 D), seconds a layer, and what 42 layers and two guidance
branches would take a denoising step at that rate.
"""

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "sat"))

from concat_id.startup import prepare_process

prepare_process()

import torch  # noqa: E402

from concat_id.config.cogvideox import TransformerConfig  # noqa: E402
from concat_id.distributed import choose_device  # noqa: E402
from concat_id.models.attention import KERNELS  # noqa: E402
from concat_id.models.backbones import initialize_weights  # noqa: E402
from concat_id.models.transformer import DiffusionTransformer  # noqa: E402

WIDTH, HEADS, TEXT = 3072, 48, 226
LAYERS_OF_5B, BRANCHES = 42, 2


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 2), ("frames", 13), ("height", 480), ("width", 720), ("refs", 1), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--kernel", default="auto", choices=KERNELS)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def seconds(function, device: torch.device, repeats: int) -> float:
    """Median of `repeats` runs after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        function()
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device's allocator, or of the whole process on a CPU."""
    if device.type == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return getattr(torch, device.type).max_memory_allocated()


@torch.inference_mode()
def main() -> None:
    args = options()
    device, dtype = choose_device(args.device), getattr(torch, args.dtype)
    config = TransformerConfig(num_layers=args.layers, hidden_size=WIDTH, num_attention_heads=HEADS)
    transformer = DiffusionTransformer(config)
    initialize_weights(transformer, torch.Generator().manual_seed(0))
    transformer = transformer.to(device, dtype).eval()
    transformer.get_mixin("adaln_layer").attention_kernel = args.kernel

    grid = args.height // 8, args.width // 8
    latents = torch.randn(1, args.frames, 16, *grid, device=device, dtype=dtype)
    refs = torch.randn(1, args.refs, 16, *grid, device=device, dtype=dtype)
    text = torch.randn(1, TEXT, 4096, device=device, dtype=dtype)
    timestep = torch.tensor([500], device=device)
    took = seconds(lambda: transformer(latents, timestep, text, refs), device, args.repeats)

    tokens = TEXT + (args.frames + args.refs) * grid[0] * grid[1] // 4
    operations = 24 * tokens * WIDTH**2 + 4 * tokens**2 * WIDTH
    per_layer = took / args.layers
    print(f"{device}, torch {torch.__version__}, {args.dtype}, kernel {args.kernel}, {torch.get_num_threads()} threads")
    rate = operations / per_layer / 1e12
    print(f"{tokens:,} tokens, {args.layers} layers: {took:.2f} s, {operations / 1e12:.2f} TFLOP a layer, {rate:.2f} TFLOP/s")
    print(f"peak memory {peak_memory(device) / 2**30:.2f} GiB")
    print(f"{LAYERS_OF_5B} layers x {BRANCHES} branches at that rate: {per_layer * LAYERS_OF_5B * BRANCHES:.1f} s a step")


if __name__ == "__main__":
    main()
