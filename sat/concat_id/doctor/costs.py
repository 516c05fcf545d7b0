"""What a video takes, reckoned from sizes alone: memory in each --memory mode, and time from a probe of this machine's speed.

Weights are counted, activations are multiples of a tensor's size, taken from what CogVideoX-5B was measured to need on an H100
(docs/performance.md): 25.8 GiB for a video, 15.6 GiB with --tiled_decoding, 12.2 GiB for its steps, compiled; and of eager steps from
what a CPU's allocator gave small models (tests/doctor/test_costs.py). Wan's decoding takes 4.0 and 1.4 GiB as traced without contents.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch

from concat_id.config.loading import load_config
from concat_id.config.presets import files_of
from concat_id.config.schema import Config
from concat_id.diffusion.guidance import count_branches
from concat_id.distributed import has_bfloat16
from concat_id.doctor.findings import NOTE, OK, PROBLEM, Finding, gib
from concat_id.doctor.machine import Capacity
from concat_id.models.autoencoder import TILE_SIZE, tiles_of
from concat_id.models.operations import count_tokens, count_weights, forward_operations, weights_per_token
from concat_id.models.wan.autoencoder import TILE_SIZE as WAN_TILE

TEXT_ENCODERS = {"t5": 4.76e9, "umt5": 5.68e9}  # parameters of the XXL sizes, whose width is
XXL, KEPT_WIDE = 4096, 1.01e9  # and parameters that stay in float32 beside float16: 24 layers' `wo`
AUTOENCODERS = {"cogvideox": (5041, 2706), "wan": (13770, 0)}  # parameters by the square of the first width, and more per layer of a block
COMPILED_STEP, EAGER_STEPS = 8.2, {"cogvideox": 14, "wan": 18}  # copies of the hidden states
DECODE = {"cogvideox": (20.1, 9), "wan": (3.7, 15)}  # copies of the widest layer's frames, and how many of these are decoded at once
USABLE = 0.95  # of the memory; the rest is the driver's and the libraries'
MODES = {  # --memory, whether decoding is tiled, layers on the GPU with low, whether weights are in 8 bits; exact ones first
    "--memory high": ("high", False), "--memory high --tiled_decoding": ("high", True),
    "--memory balanced": ("balanced", False), "--memory balanced --tiled_decoding": ("balanced", True),
    "--memory low": ("low", True), "--memory low --network diffusers": ("low", True, 2),
    "--quantize int8 --memory balanced --tiled_decoding": ("balanced", True, 2, True),
    "--quantize int8 --memory low": ("low", True, 2, True),
}  # fmt: skip
PATIENCE = 3 * 3600  # seconds for a video that one may wait
COMPILED, EAGER = 37, 79  # times that a layer reads and writes its tokens: tests/models/test_compilation.py
SLACK = 1.2  # on an H100, 1.48 s (compiled) and 1.62 s (eager) are reckoned, 1.52 s and 1.80 s measured
SLACK_ON_CPU = 1.5  # of a small model, whose operations take longer to start; of a large one nearly none is needed
LONG_ENOUGH = 0.2  # seconds of one probe


@dataclass(frozen=True)
class Costs:
    """Bytes of the weights, of what compiled steps, one branch of eager ones, and decoding hold above them.

    The text encoder is read whole and quantised on its device, so that 8 bits do not lower its peak.
    """

    transformer: int
    quantized: int
    text_encoder: int
    autoencoder: int
    compiled: int
    eager: int
    decoding: int
    tiled: int
    branches: int
    num_layers: int

    def needs(self, on_gpu: bool, memory: str, tiled: bool, layers: int = 1, is_quantized: bool = False) -> tuple[int, int]:
        """Bytes on the device, and beside it in the machine's memory."""
        decoding, transformer = self.tiled if tiled else self.decoding, self.quantized if is_quantized else self.transformer
        steps = self.eager if memory == "low" else self.compiled if on_gpu else self.branches * self.eager
        if memory == "low" and on_gpu:
            streamed = layers * transformer // self.num_layers
            return max(streamed + steps, self.autoencoder + decoding), transformer + self.text_encoder
        resident = transformer + self.autoencoder + max(steps, decoding)
        return (resident + self.text_encoder if memory == "high" else max(resident, self.text_encoder)), 0


@dataclass(frozen=True)
class Speed:
    """Operations a second in matrix products and in attention, and bytes a second that simple operations read and write."""

    products: float
    attention: float
    bandwidth: float


def config_for(name: str, device: torch.device) -> Config:
    """Read a model's files as a device is to run them, in float16 where a GPU lacks bfloat16."""
    config = load_config(files_of(name), {"device": device.type})
    if config.args.bf16 and device.type != "cpu" and not has_bfloat16(device):
        config.args.bf16, config.args.fp16 = False, True
    return config


def costs_of(config: Config) -> Costs:
    """Reckon a video of the configuration's size with one reference."""
    model, network, section, sampler = config.model, config.model.transformer, config.model.autoencoder, config.model.sampler
    bytes_each = getattr(torch, config.args.dtype_name).itemsize
    branches = count_branches(sampler.guidance, sampler.guidance_scale, sampler.ref_guidance_scale)
    (height, width), widest = config.args.sampling_image_size, section.block_out_channels[0]
    hidden, frames = _tokens(config) * network.hidden_size, network.time_compressed_rate * (config.args.sampling_num_frames - 1) + 1
    copies, most = DECODE[model.kind]
    decoding = copies * min(frames, most) * height * width * widest
    sides = model.latent_sides((height, width))
    tiles = [min(side, limit) if model.kind == "wan" else tiles_of(side, limit)[0].stop
             for side, limit in zip(sides, WAN_TILE if model.kind == "wan" else TILE_SIZE, strict=True)]  # fmt: skip
    video = 3 * frames * height * width * torch.float32.itemsize / bytes_each if tiles != sides else 0
    tiled = math.prod(tiles) / math.prod(sides) * decoding + video
    (fixed, each), encoder = AUTOENCODERS[model.kind], TEXT_ENCODERS[getattr(model.text_encoder, "kind", "t5")]
    encoder += KEPT_WIDE * (config.args.dtype_name == "float16")
    weights = count_weights(network), encoder * (network.text_hidden_size / XXL) ** 2, (fixed + each * section.layers_per_block) * widest**2
    counts = *weights, COMPILED_STEP * branches * hidden, EAGER_STEPS[model.kind] * hidden, decoding, tiled
    transformer, *others = (int(count * bytes_each) for count in counts)
    quantized = transformer - network.num_layers * weights_per_token(network) * (bytes_each - 1)  # modulations and ways in and out stay
    return Costs(transformer, quantized, *others, branches, network.num_layers)


def memory_modes(config: Config, capacity: Capacity) -> list[Finding]:
    """Tell of each of `MODES` what it needs and whether that fits."""
    costs, findings = costs_of(config), []
    for flags, mode in MODES.items():
        device, beside = costs.needs(capacity.gpu > 0, *mode)
        fits = device <= USABLE * capacity.device and beside <= capacity.ram
        found = f"about {gib(device)} of {gib(capacity.device)} GiB" + (f", and {gib(beside)} GiB beside the GPU" if beside else "")
        found += "" if fits else ": too much"
        findings.append(Finding(OK if fits else NOTE, flags, found, numbers={"bytes": device, "beside": beside}))
    return findings


def best_mode(name: str, config: Config, capacity: Capacity, is_asked: bool) -> Finding:
    """Tell with which flags a model fits this machine, if possible with those of the default."""
    modes = memory_modes(config, capacity)[2:]
    fitting = [mode for mode in modes if mode.mark == OK]
    if not fitting:
        return replace(modes[-1], mark=PROBLEM if is_asked else NOTE, what=name, advice="fewer frames: --sampling_num_frames 5")
    return replace(fitting[0], what=name, advice="" if fitting[0] is modes[0] else fitting[0].what)


def _tokens(config: Config) -> int:
    return count_tokens(config.model, config.args.sampling_num_frames + 1, config.args.sampling_image_size)  # 1 reference


def time_of_video(name: str, config: Config, device: torch.device) -> Finding:
    """Reckon the denoising of a video from the speed of this device; reading weights and decoding come on top."""
    network, sampler = config.model.transformer, config.model.sampler
    dtype, tokens = getattr(torch, config.args.dtype_name), _tokens(config)
    speed = probe(device, dtype, network.hidden_size, network.num_attention_heads, tokens)
    passes = costs_of(config).branches
    products, attention = forward_operations(network, tokens)
    hidden = network.num_layers * tokens * network.hidden_size * dtype.itemsize
    computing = passes * (products / speed.products + attention / speed.attention)
    on_cpu = device.type == "cpu"
    steps = [computing + passes * times * hidden / speed.bandwidth for times in (EAGER if on_cpu else COMPILED, EAGER)]
    steps[1] *= SLACK_ON_CPU if on_cpu else SLACK
    videos = [step * sampler.num_inference_steps for step in steps]
    rates = f"{speed.products / 1e12:.2g} TFLOP/s in products, {speed.attention / 1e12:.2g} in attention, {config.args.dtype_name}"
    found = f"about {span(*videos)}: {sampler.num_inference_steps} steps of {span(*steps)} ({rates})"
    slow = "" if videos[0] < PATIENCE else "use a GPU" if on_cpu else "fewer steps: --num_inference_steps 30"
    return Finding(NOTE if slow else OK, name, found, slow, {"seconds": videos, **asdict(speed)})


def probe(device: torch.device, dtype: torch.dtype, width: int, heads: int, tokens: int) -> Speed:
    """Measure products, attention and a simple operation at a transformer's sizes, with as many tokens as take a fraction of a second."""
    weight = torch.randn(width, 4 * width, device=device, dtype=dtype)

    def product(count: int) -> tuple[Callable[[], object], int]:
        inputs = torch.randn(count, width, device=device, dtype=dtype)
        return (lambda: inputs @ weight), 8 * count * width**2

    def attention(count: int) -> tuple[Callable[[], object], int]:
        each = [torch.randn(1, heads, count, width // heads, device=device, dtype=dtype) for _ in "qkv"]
        return (lambda: torch.nn.functional.scaled_dot_product_attention(*each)), 4 * count**2 * width

    def simple(count: int) -> tuple[Callable[[], object], int]:
        inputs = torch.randn(count, 4 * width, device=device, dtype=dtype)
        return (lambda: torch.nn.functional.silu(inputs)), 8 * count * width * dtype.itemsize  # read and written

    with torch.inference_mode():
        return Speed(*(_rate(make, tokens, device) for make in (product, attention, simple)))


def _rate(make: Callable[[int], tuple[Callable[[], object], int]], tokens: int, device: torch.device) -> float:
    """Operations a second with `tokens`, or with the half, the quarter, ... that takes long enough."""
    wait = (lambda: None) if device.type == "cpu" else torch.get_device_module(device).synchronize
    sizes = [tokens >> shift for shift in range(tokens.bit_length() - 1, -1, -1) if tokens >> shift >= min(tokens, 64)]
    for count in sizes:
        compute, operations = make(count)
        compute()
        seconds, end = [], time.perf_counter() + LONG_ENOUGH
        while not seconds or time.perf_counter() < end and (count == sizes[-1] or seconds[0] > LONG_ENOUGH / 4):
            wait()
            start = time.perf_counter()
            compute()
            wait()
            seconds.append(time.perf_counter() - start)
        if time.perf_counter() >= end:
            break
    return operations / statistics.median(seconds)


def span(low: float, high: float) -> str:
    """Write two times in one unit."""
    units = (("days", 86400, 2), ("h", 3600, 2), ("min", 60, 2), ("s", 1, 1), ("ms", 0.001, 0))
    unit, size = next((unit, size) for unit, size, count in units if high >= count * size)
    return " to ".join(f"{value / size:.{0 if value >= 10 * size else 1}f}" for value in (low, high)) + f" {unit}"
