"""The parts of the suite: each yields (what, found) as it goes. Weights are random where they are of the released size."""

import dataclasses
import gc
import math
import tempfile
import time
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from measuring import CUDA, GIB, difference, kernels, once, paired, peak_gib, seconds, waits
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from concat_id.config.loading import load_config
from concat_id.doctor.costs import costs_of
from concat_id.errors import UserError
from concat_id.models import attention, backbones, compilation
from concat_id.models.diffusers_transformer import DiffusersTransformer
from concat_id.models.embeddings import rotary_table
from concat_id.sampling import magnitudes

DEVICE, DTYPE = torch.device("cuda" if CUDA else "cpu"), torch.bfloat16 if CUDA else torch.float32
MINI = ["configs/mini.yaml", "configs/inference/mini_single_identity.yaml"]
ROOT = Path(__file__).resolve().parents[2]
Found = Iterator[tuple[str, object]]


def config_of(*bases: str, **args: object):
    """Configuration of YAML files; of the released size on a GPU, of two narrow layers elsewhere."""
    config = load_config([str(ROOT / base) for base in bases], {"device": DEVICE.type, "bf16": str(CUDA).lower(), **args})
    transformer, small = config.model.transformer, {}
    if not CUDA and transformer.hidden_size > 1000:
        heads = 2 if config.model.kind == "cogvideox" else 1
        small = {"num_layers": 2, "hidden_size": 128, "num_attention_heads": heads, "text_hidden_size": 32, "time_embed_dim": 64}
        small |= {"ffn_dim": 256} if config.model.kind == "wan" else {}
        config.args.sampling_image_size, config.args.sampling_num_frames = (64, 96), 3
        config.model.autoencoder = dataclasses.replace(config.model.autoencoder, block_out_channels=(32, 32, 64, 64), layers_per_block=1)
    config.model.transformer = dataclasses.replace(transformer, **small)
    return config


def config_5b(**args: object):
    return config_of("configs/cogvideox_5b.yaml", "configs/inference/inference_single_identity.yaml", **args)


@torch.no_grad()
def random_network(config) -> torch.nn.Module:
    """The transformer of a configuration, with random weights."""
    network = backbones.new_transformer(config, "meta").to(DTYPE).to_empty(device=DEVICE)
    backbones.initialize_weights(network, torch.Generator(DEVICE).manual_seed(0))
    for parameter in network.parameters():
        if parameter.dim() > 1 and not parameter.any():  # a modulation or an output of zero would hide what is before it
            parameter.normal_(std=0.02)
    return network.requires_grad_(False).eval()


def inputs(config, refs: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Arguments of the transformer for a video of the configuration."""
    model, factor = config.model.transformer, config.model.autoencoder.spatial_factor
    height, width = (side // factor for side in config.args.sampling_image_size)
    make = lambda *shape: torch.randn(*shape, device=DEVICE, dtype=DTYPE)  # noqa: E731
    latents = make(batch, config.args.sampling_num_frames, model.in_channels, height, width)
    text = make(batch, config.model.text_encoder.max_length, model.text_hidden_size)
    return latents, torch.full((batch,), 500, device=DEVICE), text, make(batch, refs, model.in_channels, height, width) if refs else None


def pipeline_of(config, network: torch.nn.Module | None = None):
    """The pipeline that samples, with a network that is there already."""
    from concat_id.sampling.pipeline import make_pipeline

    pipeline = make_pipeline(config, DEVICE)
    if network is not None:
        pipeline.__dict__["transformer"] = network  # in place of what the cached property would load
    return pipeline


def conditions(config, refs: int) -> tuple[Tensor, Tensor]:
    """Prompt embeddings and reference latents, on the CPU and the same on every device."""
    generator, (_, _, text, references) = torch.Generator().manual_seed(1), inputs(config, refs, batch=1)
    return torch.randn(text.shape, generator=generator), torch.randn(references.shape, generator=generator)


def card(folder: Path) -> Found:
    """Matrix product, copy and attention kernels: their speed at the real shape, and their errors against the math kernel."""
    yield "torch", torch.__version__
    side, tokens = (8192, 19126) if CUDA else (256, 300)
    a, b = (torch.randn(side, side, device=DEVICE, dtype=DTYPE) for _ in range(2))
    yield "product, TFLOP/s", 2 * side**3 / seconds(lambda: a @ b, 5)["median"] / 1e12
    if CUDA:
        yield "card", torch.cuda.get_device_name()
        block = torch.empty(GIB, device=DEVICE, dtype=torch.int8)
        yield "copy, TB/s", 2 * GIB / seconds(block.clone, 5)["median"] / 1e12
    few = [torch.randn(1, 4, 1000, 64, device=DEVICE, dtype=DTYPE) for _ in range(3)]
    exact = attention.attention(*(each.double() for each in few), "math")
    query = torch.randn(2, 48 if CUDA else 2, tokens, 64, device=DEVICE, dtype=DTYPE)
    for kernel in [kernel for kernel in attention.KERNELS if attention.can_run(kernel, DEVICE, DTYPE, 64)]:
        attention.activate(kernel)
        error = difference(attention.attention(*few, kernel), exact)
        assert error < 1e-2, f"{kernel} is off by {error}"
        found = {"error": error}
        if kernel != "math" or not CUDA:  # which would need 146 GB there
            took = seconds(lambda: attention.attention(query, query, query, kernel))["median"]  # noqa: B023
            found["TFLOP/s"] = 4 * query.shape[0] * query.shape[1] * tokens**2 * 64 / took / 1e12
        yield f"attention by {kernel}", found
    if CUDA:
        yield "chosen", attention.fastest(query)[1]


def small_model(folder: Path) -> Found:
    """The shipped model on the GPU against the CPU: float32, bfloat16, float16, one frame and several, references, --memory; waits."""
    steps = {"num_inference_steps": "4"}
    for kind, refs, frames, precision, memory, limit in (
        ("float32", 1, 3, {"bf16": "false"}, "balanced", 2e-4), ("float32", 3, 1, {"bf16": "false"}, "high", 2e-4),
        ("float32", 2, 2, {"bf16": "false"}, "low", 2e-4), ("bfloat16", 2, 3, {"bf16": str(CUDA).lower()}, "balanced", 0.05),
        ("float16", 1, 3, {"bf16": "false", "fp16": str(CUDA).lower()}, "balanced", 0.05),
    ):  # fmt: skip
        latents, pixels = {}, {}
        for device in dict.fromkeys(("cpu", DEVICE.type)):
            exact = {"device": device, "bf16": "false"} if device == "cpu" else {"memory": memory, **precision}
            config = config_of(*MINI, **steps, sampling_num_frames=str(frames), **exact)
            pipeline = pipeline_of(config)
            if device == "cpu":
                pipeline.device = pipeline.placement.device = torch.device("cpu")
            latents[device] = pipeline.sample(*conditions(config, refs), seed=3).cpu()
            pixels[device] = torch.from_numpy(pipeline.decode(latents["cpu"])).float()
        error = difference(latents[DEVICE.type], latents["cpu"])
        shades = float((pixels[DEVICE.type] - pixels["cpu"]).abs().max())
        yield f"{kind}, {refs} references, {frames} latent frames, memory {memory}", {"latents": error, "shades of 255": shades}
        assert error < limit, f"{kind}: latents are off by {error}"
    for name, base in (("mini", MINI), ("wan_mini", ["configs/wan_mini.yaml", "configs/inference/wan_mini.yaml"])):
        config = config_of(*base, **steps)
        pipeline, given = pipeline_of(config), conditions(config, 1)
        pipeline.sample(*given, seed=3)
        with waits() as found:
            pipeline.sample(*given, seed=3)
        yield f"waits of {name} in four steps", dict(found)
        assert sum(found.values()) <= 1, "a step waits for the device"  # one check is after them


@torch.inference_mode()
def step_5b(folder: Path) -> Found:
    """One guided step of 5B: eager and compiled, 0 to 3 references, batch 1, kernels; diffusers' transformer beside it."""
    config = config_5b()
    network, given = random_network(config), inputs(config, 1)
    yield "attention", backbones.choose_kernel(config, network, DEVICE) or "PyTorch's choice"
    mixin = network.get_mixin("adaln_layer")
    plain, eager = mixin.block, network(*given)
    config.args.compile = True
    backbones.compile_blocks(config, network, DEVICE, 50)
    fused = mixin.block
    yield "first compiled step, s", once(lambda: network(*given))

    def step(block):
        mixin.block = block
        return network(*given)

    yield "compiled against eager", difference(step(fused), eager)
    yield "eager (first), compiled (second)", paired(lambda: step(plain), lambda: step(fused))
    mixin.block = fused
    for refs in (0, 2, 3):
        others = inputs(config, refs)
        yield f"compiled, {refs} references", {"first": once(lambda: network(*others)), **seconds(lambda: network(*others), 2, warm=0)}  # noqa: B023
    alone = tuple(each[:1] for each in given)
    yield "compiled, one branch", {"first": once(lambda: network(*alone)), **seconds(lambda: network(*alone), 2, warm=0)}
    yield "peak, GiB", peak_gib(lambda: network(*given))
    yield "kernels, compiled", kernels(lambda: network(*given))
    yield "two layers against float32", rounding(config_5b(compile="true"))
    yield "a layer by the release's operations (first), compiled (second)", against_the_release(config, network)
    yield "diffusers' at 0 references, compiled", diffusers_step(config)


def rounding(config) -> dict[str, float]:
    """What eager and compiled blocks lose against float32, on two layers."""
    config.model.transformer = dataclasses.replace(config.model.transformer, num_layers=2)
    network, given = random_network(config), inputs(config, 1)
    found = {"eager": network(*given)}
    backbones.compile_blocks(config, network, DEVICE, 50)
    found["compiled"] = network(*given)
    del network.get_mixin("adaln_layer").block
    exact = network.float()(*(each.float() if each.is_floating_point() else each for each in given))
    return {name: difference(output, exact) for name, output in found.items()}


def against_the_release(config, network) -> dict[str, float]:
    """Seconds of one layer by the operations of the released one, written out for the comparison, and by the compiled block."""
    from bench.bench_pairs import plain_layer

    model, (latents, *_, text, refs) = config.model.transformer, inputs(config, 1)
    grid = latents.shape[1] + refs.shape[1], latents.shape[3] // model.patch_size, latents.shape[4] // model.patch_size
    hidden = torch.randn(2, text.shape[1] + math.prod(grid), model.hidden_size, device=DEVICE, dtype=DTYPE)
    emb, number = torch.randn(2, model.time_embed_dim, device=DEVICE, dtype=DTYPE), torch.tensor(0)
    table = [part.to(DEVICE) for part in rotary_table(grid, model.hidden_size // model.num_attention_heads)]
    rotary = network.get_mixin("pos_embed").rotary(grid, text.shape[1], DEVICE)
    forward = network.get_mixin("adaln_layer").layer_forward
    return paired(
        lambda: plain_layer(network, hidden, emb, text.shape[1], table),
        lambda: forward(hidden, None, layer_id=number, emb=emb, text_length=text.shape[1], rotary=rotary),
    )


def diffusers_step(config) -> dict[str, float]:
    """Seconds of a step of diffusers' own CogVideoX transformer without references, compiled its own way."""
    from diffusers import CogVideoXTransformer3DModel

    model = config.model.transformer
    latents, at, text, _ = inputs(config, 0)
    settings = {
        "num_attention_heads": model.num_attention_heads, "attention_head_dim": model.hidden_size // model.num_attention_heads,
        "num_layers": model.num_layers, "time_embed_dim": model.time_embed_dim, "text_embed_dim": model.text_hidden_size,
        "max_text_seq_length": text.shape[1], "use_rotary_positional_embeddings": True, "in_channels": model.in_channels,
        "out_channels": model.out_channels, "sample_height": latents.shape[3], "sample_width": latents.shape[4],
    }  # fmt: skip
    with torch.device("meta"):
        network = CogVideoXTransformer3DModel(**settings)
    network = network.to(DTYPE).to_empty(device=DEVICE).requires_grad_(False).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    tokens = latents.shape[1] * latents.shape[3] * latents.shape[4] // 4
    table = torch.randn(2, tokens, model.hidden_size // model.num_attention_heads, device=DEVICE)
    call = lambda: network(latents, text, at, image_rotary_emb=(table[0], table[1]), return_dict=False)  # noqa: E731
    eager = seconds(call, 2)["median"]
    for block in network.transformer_blocks:
        block.compile(fullgraph=True)
    return {"eager": eager, **seconds(call, 2)}


@torch.inference_mode()
def video_5b(folder: Path) -> Found:
    """A whole video of 5B by the pipeline: references encoded, 50 steps, decoded, with random weights."""
    from diffusers import AutoencoderKLCogVideoX
    from PIL import Image

    from concat_id.models.autoencoder import VideoAutoencoder, released_settings

    config = config_5b(num_inference_steps="50" if CUDA else "4")
    network = random_network(config)
    pipeline = pipeline_of(config, network)
    with torch.device(DEVICE):
        autoencoder = AutoencoderKLCogVideoX.from_config(released_settings(config.model.autoencoder))
    pipeline.__dict__["autoencoder"] = VideoAutoencoder(autoencoder.to(DTYPE).requires_grad_(False).eval(), config.model.scale_factor)
    yield "attention", backbones.choose_kernel(config, network, DEVICE) or "PyTorch's choice"
    backbones.compile_blocks(config, network, DEVICE, config.model.sampler.num_inference_steps)
    images = [Image.linear_gradient("L").convert("RGB").resize(config.args.sampling_image_size[::-1])]
    made = {}
    yield "references, s", once(lambda: made.update(refs=pipeline.encode_references(images)))
    times = []
    text = conditions(config, 1)[0]
    yield "steps, s", once(lambda: made.update(latents=pipeline.sample(text, made["refs"], 3, lambda step: times.append(time.monotonic()))))
    between = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    yield "a step after the first, s", sorted(between)[len(between) // 2]
    yield "decoding, s", once(lambda: made.update(frames=pipeline.decode(made["latents"])))
    yield "frames", list(made["frames"].shape)
    if CUDA:
        yield "peak, GiB", torch.cuda.max_memory_allocated() / GIB
    yield "decoding in tiles: GiB", peak_gib(lambda: autoencoder_tiled(pipeline, made["latents"]))


def autoencoder_tiled(pipeline, latents: Tensor) -> None:
    pipeline.autoencoder.decode(latents.to(DEVICE), tiled=True)


def training(folder: Path) -> Found:
    """A training step of 5B's width, and of 5B: eager and compiled, kept and recomputed; gradients agree, memory as planned."""
    for layers, recompute in ((6, False), (42, True)) if CUDA else ((2, False), (2, True)):
        with mock.patch.object(compilation, "warn", side_effect=AssertionError):  # none runs uncompiled
            case = f"{layers} layers, {'recomputed' if recompute else 'kept'}"
            yield from ((f"{case}: {key}", value) for key, value in step_of(layers, recompute))
        torch.compiler.reset()
        gc.collect()


def step_of(layers: int, recompute: bool) -> Found:
    """Training steps of so many layers without an optimizer, eager and compiled."""
    from concat_id.training.memory_trace import trace_network

    config = config_5b(compile="true")
    changed = {"num_layers": layers, "checkpoint_activations": recompute}
    config.model.transformer = dataclasses.replace(config.model.transformer, **changed)
    network, given = random_network(config).requires_grad_(True).train(), inputs(config, 1, batch=1)
    mixin = network.get_mixin("adaln_layer")
    eager = partial(checkpoint, mixin.block, use_reentrant=False) if recompute else mixin.block
    backbones.compile_blocks(config, network, DEVICE, 50)
    fused = mixin.block

    def step(block) -> None:
        mixin.block = block
        network.zero_grad()
        network(*given).square().mean().backward()

    yield "first compiled step, s", once(lambda: step(fused))
    yield "eager (first), compiled (second)", paired(lambda: step(eager), lambda: step(fused))
    weights = sum(parameter.nbytes for parameter in network.parameters()) / GIB
    planned = 2 * weights + trace_network(config, 1, 1) / GIB
    yield "GiB", {"compiled": peak_gib(lambda: step(fused)), "eager": peak_gib(lambda: step(eager)), "planned, eager": planned}
    gradients = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    step(fused)
    sizes = torch.stack([gradient.float().norm() for gradient in gradients.values()])
    errors = torch.stack([(network.get_parameter(name).grad - gradient).float().norm() for name, gradient in gradients.items()])
    errors /= sizes.clamp_min(sizes.max() / 100)  # what is smaller may be all rounding
    yield "gradients of compiled", {"largest difference": float(errors.max()), "median": float(errors.median())}
    assert errors.max() < (0.05 if CUDA else 1e-4), "gradients are off"


@torch.inference_mode()
def wan(folder: Path) -> Found:
    """A guided step of Wan 1.3B, plain and AdaLN: eager and compiled."""
    for name, base in (("first stage", "wan_single_identity"), ("AdaLN", "wan_adaln")):
        config = config_of("configs/wan_1_3b.yaml", f"configs/inference/{base}.yaml")
        network, given = random_network(config), inputs(config, 1)
        eager = network(*given)
        took = seconds(lambda: network(*given), 2)  # noqa: B023
        config.args.compile = True
        backbones.compile_blocks(config, network, DEVICE, 50)
        first = once(lambda: network(*given))  # noqa: B023
        yield f"{name}: compiled against eager", difference(network(*given), eager)
        yield name, {"eager": took["median"], "compiled": seconds(lambda: network(*given), 2)["median"], "first": first}  # noqa: B023
        if CUDA:
            yield f"{name}: kernels, compiled", kernels(lambda: network(*given))  # noqa: B023
        torch.compiler.reset()


def engine(folder: Path) -> Found:
    """Training by DeepSpeed on the device with one process: float32, bfloat16 and float16; a resumed run equals one that was not cut."""
    import yaml
    from tiny_model import write_tiny_model
    from training import alone

    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        (base / "training.yaml").write_text(yaml.safe_dump(alone.TRAINING))
        bases = [str(ROOT / "configs/debug.yaml"), str(write_tiny_model(base / "model")), str(base / "training.yaml")]
        for precision in ("float32", "bf16", "fp16") if CUDA else ("float32",):
            given = {} if precision == "float32" else {"bf16": "false", precision: "true"}
            settings = {"save": str(base / precision), "train_iters": 4, "save_interval": 2, "device": DEVICE.type}
            config = load_config(bases, settings | given)
            try:
                whole, _ = alone.train_in_parts(config, base / precision, DEVICE)
                yield f"{precision}: losses, equal after resuming", alone.losses(whole)
                assert all(map(math.isfinite, alone.losses(whole)))
            except UserError as error:
                yield f"{precision}: refused", str(error)


def acceleration(folder: Path) -> Found:
    """Videos of 5B's width in four steps by diffusers' network, and what libraries do for it. What fails loses itself alone.

    "Off" are the latents against those of the plain network of as many layers.
    """
    kernels_here = [name for name in ("cudnn", "flash", "flash3", "sage", "efficient") if attention.can_run(name, DEVICE, DTYPE, 64)]
    low = {"memory": "low"}
    deep = {"plain": {}, "compiled": {"compile": "true"}, "cache mag": {"cache": "mag"}}
    few = {"plain": {}, **{f"attention by {name}": {"attention_kernel": name} for name in kernels_here}, "streamed": low}
    few |= {f"{kind}, streamed": {"quantize": kind, **low} for kind in ("int8", "fp8")} | {"int8": {"quantize": "int8"}}
    few |= {f"cache {kind}": {"cache": kind} for kind in ("first_block", "dbcache")}
    failed = []
    for layers, cases in ((21, deep), (8, few)):
        expected = None
        for case, args in cases.items():
            name = f"{layers} layers, {case}"
            try:
                found, latents = accelerated(layers, {"attention_kernel": kernels_here[0] if CUDA else "auto", **args})
                expected = latents if case == "plain" else expected
                yield name, found | ({} if expected is None else {"off": difference(latents, expected)})
            except Exception:
                failed.append(name)
                yield f"{name}: failed", traceback.format_exc()[-600:]
            torch.compiler.reset()
            gc.collect()
    assert not failed, failed


def accelerated(layers: int, args: dict) -> tuple[dict, Tensor]:
    """Seconds of the second video, the most memory in it beside what is reckoned, and the latents, of random weights on the CPU."""
    config = config_5b(**{"network": "diffusers", "compile": "false", "num_inference_steps": "4", **args})
    config.model.transformer = dataclasses.replace(config.model.transformer, num_layers=min(layers, config.model.transformer.num_layers))
    torch.manual_seed(0)
    network = DiffusersTransformer(config.model.transformer)
    network.load_sat_tensors(random_network(config).state_dict(), "random weights", DTYPE)
    pipeline, given, digests = pipeline_of(config), conditions(config, 1), {"transformer": "random"}
    loaded = mock.patch.object(backbones, "load_transformer", lambda *_: network.cpu())
    with loaded, mock.patch.object(magnitudes, "weight_digests", lambda _: digests):
        pipeline.sample(*given, seed=3)
    found, made = {}, []
    if peak := peak_gib(lambda: found.update(s=once(lambda: made.append(pipeline.sample(*given, seed=3).cpu())))):
        costs = dataclasses.replace(costs_of(config), autoencoder=0, tiled=0, text_encoder=0)
        found |= {"GiB": peak, "GiB reckoned": costs.needs(True, config.args.memory, True, 2, bool(config.args.quantize))[0] / GIB}
    if pipeline.step_cache:
        found["steps computed"] = len(pipeline.step_cache.computed)
    return found, made[0]
