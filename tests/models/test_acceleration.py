"""CogVideoX by diffusers' network, and what libraries do for it: equal to SAT's, or off by what is said."""

import dataclasses
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, assert_close
from in_process import refused
from safetensors.torch import save_file
from tiny_pipelines import latents_of

from concat_id.config.loading import load_config
from concat_id.conversion.gguf_files import to_gguf
from concat_id.models.acceleration import BACKENDS
from concat_id.models.attention import KERNELS, attention, can_run, fastest
from concat_id.models.diffusers_transformer import DiffusersTransformer
from concat_id.models.quantization import blocks_of, bytes_of, difference, is_kept
from concat_id.models.transformer import DiffusionTransformer
from concat_id.sampling import magnitudes
from concat_id.sampling.magnitudes import FILE
from concat_id.weights.low_rank import DIFFUSERS_FILE

BOTH = ("debug", "wan_mini")
CACHED = {"num_inference_steps": 12, "sampling_num_frames": 1, "sampling_image_size": (48, 32)}
FAR = {"first_block": 0.5, "mag": 0.5, "dbcache": 1.0}  # thresholds that leave much out


@pytest.mark.parametrize("positions", ["rotary", "sincos"])
def test_diffusers_network_is_sats(positions):
    config = dataclasses.replace(load_config([ROOT / "configs/debug.yaml"]).model.transformer, position_embedding=positions)
    sat, diffusers = DiffusionTransformer(config), DiffusersTransformer(config)
    generator = torch.Generator().manual_seed(0)
    for name, weight in sat.named_parameters():
        torch.nn.init.normal_(weight, 1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.05, generator)
    diffusers.load_sat_tensors(sat.state_dict(), "test")
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    for num_refs, frames, size in ((0, 1, (8, 12)), (1, 3, (8, 12)), (2, 1, (4, 6)), (3, 2, (12, 4))):
        latents, refs = draw(2, frames, 16, *size), draw(2, num_refs, 16, *size) if num_refs else None
        inputs = latents, torch.tensor([900, 20]), draw(2, config.text_length, config.text_hidden_size), refs
        with torch.inference_mode():
            assert_close(diffusers(*inputs), sat(*inputs), 2e-6, f"{num_refs} references")


def test_what_is_equal_by_name_is_mapped_and_not_copied():
    config = load_config([ROOT / "configs/debug.yaml"]).model.transformer
    tensors, diffusers = DiffusionTransformer(config).state_dict(), DiffusersTransformer(config)
    diffusers.load_sat_tensors(tensors, "test")
    attention, whole = diffusers.network.transformer_blocks[0].attn1, tensors["transformer.layers.0.attention.query_key_value.weight"]
    for index, layer in enumerate((attention.to_q, attention.to_k, attention.to_v)):
        assert layer.weight.data_ptr() == whole.chunk(3)[index].data_ptr()
    refused("test: 1 tensors are missing: time_embed.0.bias", lambda: DiffusersTransformer(config).load_sat_tensors(
        {name: tensor for name, tensor in tensors.items() if name != "time_embed.0.bias"}, "test"))  # fmt: skip


@pytest.mark.parametrize("name", BOTH)
def test_exact_options_change_nothing(pipeline_of, name):
    expected = latents_of(pipeline_of(name), shades=(0, 60))
    options = [{"memory": "low"}, {"memory": "high"}, {"attention_kernel": "math"}, {"attention_kernel": "flash"}]
    others = [{}, *options[::2], {"cache": "first_block", "cache_threshold": 0}]
    for overrides in options + [{"network": "diffusers"} | each for each in others]:
        assert_close(latents_of(pipeline_of(name, **overrides), shades=(0, 60)), expected, 2e-5, str(overrides))


@pytest.mark.parametrize("cache", FAR)
@pytest.mark.parametrize("name", BOTH)
def test_caches_skip_steps_alike_in_every_video(pipeline_of, name, cache, tmp_path, monkeypatch):
    def make(**overrides):
        return pipeline_of(name, tmp_path / "cache", **CACHED | overrides)

    cached = {"cache": cache, "cache_threshold": FAR[cache]}
    exact, pipeline = latents_of(make()), make(**cached)
    found, steps = latents_of(pipeline), set(pipeline.step_cache.computed)
    assert 0 in steps and len(steps) < CACHED["num_inference_steps"]
    assert 1e-5 < difference(found, exact) < 0.5
    latents_of(pipeline, seed=1)
    assert torch.equal(latents_of(pipeline), found) and pipeline.step_cache.computed == steps  # the video between has left nothing
    assert difference(latents_of(pipeline, shades=(90,)), found) > 1e-4  # references are seen
    if cache == "mag":
        (tmp_path / FILE).read_text()
        for rank in (0, 1):  # measured once for all processes
            monkeypatch.setattr(magnitudes, "rank", lambda rank=rank: rank)
            again = make(**cached)
            again.denoise = lambda *args, denoise=again.denoise, **options: denoise(*args, **options) if len(args) > 4 else 1 / 0
            assert torch.equal(latents_of(again), found)


@pytest.mark.parametrize("cache", ["first_block", "mag"])
def test_branches_share_nothing_in_any_order(pipeline_of, cache):
    pipeline = pipeline_of("debug", **CACHED, cache=cache, cache_threshold=0.5)
    pipeline.load()
    steps, transformer = pipeline.step_cache, pipeline.transformer
    latents, text, timestep = torch.randn(1, 1, 16, 6, 4), torch.randn(1, 16, 32), torch.tensor([500])
    inputs = {"a": latents, "b": -2 * latents}

    def outputs(*order: str) -> list[torch.Tensor]:
        steps.begin()
        found = []
        for number in range(6):
            for branch in order:
                with steps.branch(branch), torch.inference_mode():
                    found += [transformer(inputs[branch] + 0.1 * number, timestep, text)] if branch == "a" else []
                    _ = branch == "b" and transformer(inputs[branch] - 0.1 * number, timestep, text)
        return found

    alone = outputs("a")
    for order in (("a", "b"), ("b", "a")):
        assert all(torch.equal(one, other) for one, other in zip(outputs(*order), alone, strict=True)), order


@pytest.mark.parametrize("name", BOTH)
def test_quantised_weights_take_less_and_change_little(pipeline_of, name, capsys):
    expected = latents_of(pipeline_of(name))
    for kind, most in (("int8", 0.01), ("fp8", 0.04)):
        pipeline = pipeline_of(name, quantize=kind)
        assert 1e-5 < difference(latents_of(pipeline), expected) < most
        assert f"the transformer's weights are in {kind}: " in capsys.readouterr().out
        network = pipeline.transformer.network
        for layer, module in network.named_modules():
            if isinstance(module, torch.nn.Linear):
                assert hasattr(module.weight, "__tensor_flatten__") != is_kept(layer), layer
        block = blocks_of(network)[0]
        whole = blocks_of(pipeline_of(name, network="diffusers").transformer.network)[0]
        assert bytes_of(block) < 0.75 * bytes_of(whole)
        assert_close(latents_of(pipeline_of(name, quantize=kind, memory="low")), latents_of(pipeline), 1e-4)


def test_embeddings_of_quantised_encoders_are_kept_apart_and_it_is_told_how_far_off_they_are(pipeline_of, tmp_path, capsys):
    plain, quantised = (pipeline_of("debug", tmp_path, **overrides) for overrides in ({}, {"quantize": "int8"}))
    (expected,), (found,) = (pipeline.encode_prompts(["a man in a red hat"]) for pipeline in (plain, quantised))
    assert 0 < difference(found, expected) < 0.05
    told = r"the text encoder's weights are in int8: (\S+) to (\S+) GB, its output on a fixed input is off by (\S+)%"
    whole, less, off = map(float, re.search(told, capsys.readouterr().err).groups())
    assert less < whole and 0 < off < 5


@pytest.mark.parametrize("name, overrides, expected", [
    ("debug", {"network": "sat", "cache": "mag"}, "--cache: found 'mag', expected none with network: sat, which has none"),
    ("debug", {"network": "sat", "quantize": "int8"}, "--quantize: found 'int8', expected none with network: sat"),
    ("debug", {"network": "sat", "parallel": "video"}, "--parallel: found 'video', expected prompts or guidance with network: sat"),
    ("debug", {"quantize": "int4"}, "--quantize: found 'int4', expected int8, fp8 or gguf:FILE"),
    ("debug", {"cache_threshold": 0.1}, "--cache_threshold: found 0.1, expected none without cache"),
    ("debug", {"cache": "dbcache", "memory": "low"}, "--cache: found 'dbcache', expected first_block or mag with memory: low"),
    ("debug", {"cache": "dbcache", "parallel": "video"}, "expected first_block or mag with parallel: video"),
    ("debug", {"attention_kernel": "math", "parallel": "video"}, "expected auto, cudnn, flash, flash3 or sage with parallel: video"),
    ("wan_mini", {"network": "sat"}, "--network: found 'sat', expected auto or diffusers with Wan"),
    ("debug", {"cache": "teacache"}, "first_block, mag, dbcache"),
])  # fmt: skip
def test_what_cannot_work_together_is_refused(name, overrides, expected):
    refused(expected, lambda: load_config([ROOT / "configs" / f"{name}.yaml"], overrides))


@pytest.mark.parametrize("overrides, package", [
    ({"quantize": "fp8"}, "torchao"), ({"quantize": "gguf:a.gguf"}, "gguf"), ({"cache": "dbcache"}, "cache_dit"),
])  # fmt: skip
def test_a_library_that_is_not_there_is_named(pipeline_of, monkeypatch, overrides, package):
    monkeypatch.setattr("concat_id.sampling.pipeline.find_spec", lambda name: None)
    expected = f"found no package {package}, which it needs; run bash scripts/setup.sh acceleration"
    refused(expected, lambda: pipeline_of("debug", **overrides))


def test_gguf_files_are_written_and_read(pipeline_of, tmp_path):
    source = pipeline_of("debug", network="diffusers")
    network = source.transformer.network
    (tmp_path / "transformer").mkdir()
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()},
              tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")  # fmt: skip
    assert to_gguf(tmp_path, tmp_path / "8.gguf", "Q8_0") == sum(
        isinstance(layer, torch.nn.Linear) and not is_kept(name) for name, layer in network.named_modules()
    )
    expected = latents_of(source)
    for memory in ("balanced", "low"):
        assert 1e-5 < difference(latents_of(pipeline_of("debug", quantize=f"gguf:{tmp_path}/8.gguf", memory=memory)), expected) < 0.01
    refused("8.gguf: exists already", lambda: to_gguf(tmp_path, tmp_path / "8.gguf", "Q8_0"))
    (tmp_path / DIFFUSERS_FILE).touch()
    refused("expected whole weights; convert again without --lora keep$", lambda: to_gguf(tmp_path, tmp_path / "new.gguf", "Q8_0"))
    whole = (tmp_path / "8.gguf").read_bytes()
    for content, message in ((whole[: len(whole) // 2], "found no whole GGUF file"), (b"no gguf", "found no whole GGUF file")):
        (tmp_path / "bad.gguf").write_bytes(content)
        refused(f"bad.gguf: {message}", lambda: pipeline_of("debug", quantize=f"gguf:{tmp_path}/bad.gguf").load())
    refused("8.gguf: does not fit ConcatIDWanTransformer", lambda: pipeline_of("wan_mini", quantize=f"gguf:{tmp_path}/8.gguf").load())


@pytest.mark.parametrize("name", BOTH)
def test_gguf_files_of_others_have_few_bits_anywhere(pipeline_of, tmp_path, name):
    """In biases, convolutions and what embeds the timestep."""
    gguf, source = pytest.importorskip("gguf"), pipeline_of(name, network="diffusers")
    writer = gguf.GGUFWriter(tmp_path / "all.gguf", "others")
    for key, tensor in source.transformer.network.state_dict().items():
        kind = gguf.GGMLQuantizationType.BF16 if tensor.shape[-1] % 32 else gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(key, gguf.quants.quantize(tensor.float().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = latents_of(source)
    assert 1e-5 < difference(latents_of(pipeline_of(name, quantize=f"gguf:{tmp_path}/all.gguf")), expected) < 0.03


def test_a_kernel_that_cannot_run_here_is_named(pipeline_of):
    assert BACKENDS.keys() == KERNELS.keys()
    for network in ("sat", "diffusers"):
        for kernel in ("sage", "cudnn"):
            refused(f"attention_kernel: {kernel} cannot run on cpu", lambda kernel=kernel, network=network: pipeline_of(
                "debug", network=network, attention_kernel=kernel).load())  # fmt: skip


def test_the_fastest_kernel_is_the_one_that_takes_least(monkeypatch):
    times, probe = {"cudnn": 3.0, "flash": 2.0}, torch.zeros(1, 1, 4, 8)
    monkeypatch.setattr("concat_id.models.attention.can_run", lambda kernel, *_: kernel in times)
    monkeypatch.setattr("concat_id.models.attention._milliseconds", lambda probe, kernel: times[kernel])
    assert fastest(probe) == ("flash", "attention kernel: flash (cudnn 3.0 ms, flash 2.0 ms a layer)")
    times.clear()
    assert fastest(probe) == ("auto", None)


def test_sage_attends_to_all_tokens_and_the_end_of_the_memory_is_no_reason_against_a_kernel(monkeypatch):
    package, qkv = SimpleNamespace(sageattn=lambda *qkv, **options: options), torch.zeros(3, 1, 1, 4, 8)
    monkeypatch.setitem(sys.modules, "sageattention", package)
    assert attention(*qkv, "sage") == {"tensor_layout": "HND", "is_causal": False}

    def full(*qkv, **options):
        raise torch.OutOfMemoryError

    package.sageattn = full
    with pytest.raises(torch.OutOfMemoryError):
        can_run("sage", qkv.device, qkv.dtype, 8)
