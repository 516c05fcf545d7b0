"""What one layer moves and launches, eager and compiled for CUDA, and when blocks are compiled at all."""

import dataclasses
import os
import tempfile
import types
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.utils.stateless as stateless
from conftest import COMPILES
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
from torch._inductor import codecache
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from concat_id.config.loading import load_config
from concat_id.models import backbones, compilation, mixins
from concat_id.models.transformer import DiffusionTransformer

BATCH, TEXT, TOKENS = 2, 226, 226 + 14 * 1350  # 49 frames of 480x720 with one reference
UNIT = 3072 * BATCH * TOKENS * 2  # bytes of the tokens in bfloat16
DEVICE_OF_INDUCTOR = types.SimpleNamespace(  # an H100, as far as inductor asks
    multi_processor_count=132, major=9, minor=0, regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048,
    max_threads_per_block=1024, warp_size=32, name="H100", total_memory=80 * 2**30, L2_cache_size=50 * 2**20,
    shared_memory_per_block_optin=232448, gcnArchName="",
)  # fmt: skip


@pytest.fixture
def layer():
    """One layer of 5B as a function of tensors, and a function that makes these tensors on a device."""
    config = dataclasses.replace(load_config(["configs/cogvideox_5b.yaml"]).model.transformer, num_layers=1)
    network = DiffusionTransformer(config, device="meta").to(torch.bfloat16).requires_grad_(False)
    mixin = network.get_mixin("adaln_layer")
    parts = torch.nn.ModuleList([network.transformer.layers[0], mixin.query_layernorm_list[0], mixin.key_layernorm_list[0]])
    names = [name for name, _ in parts.named_parameters()]
    shapes = [(BATCH, 12 * 3072), (BATCH, TOKENS, 3072), *(parameter.shape for parameter in parts.parameters())]

    def call(modulation, hidden_states, rotary, *parameters):
        with stateless._reparametrize_module(parts, dict(zip(names, parameters, strict=True))):
            return mixin.block(*parts, modulation, hidden_states, TEXT, rotary)

    def tensors(device: str):
        made = [torch.empty(shape, dtype=torch.bfloat16, device=device) for shape in shapes]
        return [*made[:2], torch.empty(TOKENS, 1, 32, 2, device=device), *made[2:]]

    return call, tensors


class Traffic(TorchDispatchMode):
    """Counts the operations that are more than a view, and the bytes that they read and write."""

    def __init__(self):
        super().__init__()
        self.operations = self.moved = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.namespace == "aten" and not function.is_view and "empty" not in function.__name__:
            tensors = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.operations += 1
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def test_an_eager_layer_moves_less_than_the_release_does(layer):
    call, tensors = layer
    with FakeTensorMode(), torch.no_grad(), Traffic() as traffic:
        call(*tensors("cpu"))
    assert traffic.operations <= 30 and traffic.moved / UNIT <= 80  # the release: 67 to 91, and 148


def test_a_compiled_layer_is_nine_kernels_that_move_37_times_its_tokens(layer, monkeypatch):
    """Inductor's own plan for CUDA, made without one; it counts a strided third of queries, keys and values as all of them."""
    if not torch.__version__.startswith("2.13."):
        pytest.skip("asks inductor of torch 2.13 for what it does not publish")
    kernels = planned_kernels(layer, monkeypatch)
    assert len(kernels) <= 10 and sum(kernels) / UNIT <= 38, [round(size / UNIT, 2) for size in kernels]


def planned_kernels(layer, monkeypatch) -> list[int]:
    """Bytes that each kernel of the compiled block would read and write."""
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor import config
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch._inductor.runtime.hints import DeviceProperties
    from torch._inductor.scheduler import NopKernelSchedulerNode
    from torch._inductor.virtualized import V
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._triton import has_triton

    has_triton()  # remembers its answer: not the one of the device below
    properties = DeviceProperties("cuda", 0, 132, 90, 9, 65536, 2048, 1024, 32)
    for target in (torch.cuda, CudaInterface, CudaInterface.Worker):
        monkeypatch.setattr(target, "get_device_properties", lambda *_: DEVICE_OF_INDUCTOR)
    for name, value in {"get_device_capability": (9, 0), "current_device": 0, "is_available": True, "device_count": 1}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(CudaInterface, "get_compute_capability", lambda *_: 90)
    monkeypatch.setattr(DeviceProperties, "create", lambda device: properties)
    monkeypatch.setattr("torch._inductor.scheduler.has_triton", lambda: True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    fused = torch.ops.aten._scaled_dot_product_cudnn_attention
    monkeypatch.setattr(mixins, "attention", lambda query, key, value, kernel: fused(query, key, value, None, False)[0])
    with FakeTensorMode() as fakes, torch.no_grad(), config.patch(compilation.options()):
        tensors = layer[1]("cuda")
        module = make_fx(layer[0], decomposition_table=select_decomp_table(), tracing_mode="fake")(*tensors)
        module.graph.eliminate_dead_code()
        graph = GraphLowering(module, example_inputs=tensors)
        with V.set_graph_handler(graph), V.set_fake_mode(fakes), V.set_debug_handler(mock.MagicMock()):
            graph.run(*tensors)
            graph._update_scheduler()
            nodes = [node for node in graph.scheduler.nodes if not isinstance(node, NopKernelSchedulerNode)]
            return [size for node in nodes if (size := node.get_read_write_buffers_sizes()) and "MultiOutput" not in kinds(node)]


def kinds(node) -> str:
    return " ".join(type(part.node).__name__ for part in node.get_nodes())


def small_network(base="configs/debug.yaml", **changes):
    config = load_config([base], {"compile": "true"})
    config.model.transformer = dataclasses.replace(config.model.transformer, **changes)
    network = backbones.new_transformer(config)
    backbones.initialize_weights(network, generator := torch.Generator().manual_seed(0))
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return config, network.requires_grad_(False).eval()


def sample_of(config, batch: int, frames: int, refs: int):
    model, generator = config.model.transformer, torch.Generator().manual_seed(1)
    make = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    refs = make(batch, refs, model.in_channels, 8, 12) if refs else None
    text = make(batch, config.model.text_encoder.max_length, model.text_hidden_size)
    return make(batch, frames, model.in_channels, 8, 12), torch.full((batch,), 500), text, refs


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache folder of the test's own, where no code for another processor's vectors is; nothing says where code is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    return tmp_path / "cache" / "concat-id" / "torchinductor"


def chosen_folder(monkeypatch, named=None) -> Path:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    if named:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(named))
    compilation.choose_folder()
    return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])


def test_code_is_kept_where_nobody_else_can_write(own_cache, tmp_path, monkeypatch):
    shared = Path(default_cache_dir())
    assert chosen_folder(monkeypatch) == own_cache == chosen_folder(monkeypatch, shared)
    assert {folder.stat().st_mode & 0o777 for folder in (own_cache, own_cache.parent)} == {0o700}
    assert chosen_folder(monkeypatch, tmp_path / "mine") == tmp_path / "mine"
    others = [lambda: own_cache.chmod(0o777), lambda: (own_cache.chmod(0o700), own_cache.parent.chmod(0o770)),
              lambda: (own_cache.parent.chmod(0o700), monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)),
              lambda: (monkeypatch.undo(), monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null"))]  # fmt: skip
    for change in others:
        change()
        folder = chosen_folder(monkeypatch)
        assert folder.match(f"{tempfile.gettempdir()}/concat-id-*") and folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert chosen_folder(monkeypatch) == tmp_path / "home" / ".cache" / "concat-id" / "torchinductor"


@COMPILES
def test_one_graph_serves_all_layers_and_lengths_and_one_more_a_batch_of_one(own_cache, monkeypatch):
    if " " in str(own_cache):
        pytest.skip("PyTorch splits the compiler's command at spaces")
    config, network = small_network(num_layers=3)
    cases = [sample_of(config, *case) for case in ((2, 3, 1), (2, 2, 3), (1, 3, 1), (2, 1, 0), (1, 2, 2))]
    with torch.inference_mode():
        expected = [network(*case) for case in cases]
        counters.clear()
        backbones.compile_blocks(config, network, torch.device("cpu"), steps=2)
        for case, output in zip(cases, expected, strict=True):
            torch.testing.assert_close(network(*case), output, atol=1e-5, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
    assert list(own_cache.glob("*/*.cpp")) and Path(codecache._HEADER_DIR).parent == own_cache


@pytest.mark.parametrize("error", [TorchDynamoException("no compiler\nwas found"), OSError("no compiler was found")])
def test_blocks_that_cannot_be_compiled_run_as_they_are_and_one_line_says_so(error, monkeypatch, capsys):
    config, network = small_network()
    case = sample_of(config, 2, 2, 1)
    expected = network(*case)

    def broken(*_, **__):
        raise error

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    backbones.compile_blocks(config, network, torch.device("cpu"), steps=2)
    assert torch.equal(network(*case), expected) and torch.equal(network(*case), expected)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "warning: the transformer runs uncompiled, as compiling it failed: no compiler was found"


@pytest.mark.parametrize("kind, steps, parameters, worth", [
    ("cuda", 10, 10**9, True), ("cpu", 50, 10**10, False), ("cuda", 9, 10**10, False), ("cuda", 50, 10**9 - 1, False)
])  # fmt: skip
def test_compiling_is_worth_its_while_for_large_networks_on_cuda(kind, steps, parameters, worth):
    network = torch.nn.Module()
    network.weight = torch.nn.Parameter(torch.empty(parameters, device="meta"), requires_grad=False)
    assert compilation.worth_compiling(network, torch.device(kind), steps) is worth


@pytest.mark.parametrize("base", ["configs/debug.yaml", "configs/wan_mini.yaml"])
def test_compiled_blocks_have_the_gradients_of_uncompiled_ones_and_recompute_what_they_need(base, monkeypatch, capsys):
    """Graphs are captured, split and run; generating machine code from them is PyTorch's affair."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiler(function, fullgraph=True, backend="aot_eager"))
    gradients, kept = {}, {}
    for case in ((False, False), (True, False), (True, True)) if base == "configs/debug.yaml" else ((False, False), (True, True)):
        compiling, recompute = case
        config, network = small_network(base, num_layers=2, checkpoint_activations=recompute)
        network.requires_grad_(True).train()
        if compiling:
            backbones.compile_blocks(config, network, torch.device("cpu"), steps=2)
        gradients[case], kept[case] = gradients_and_kept_bytes(config, network)
    for case, found in gradients.items():
        for name, gradient in gradients[False, False].items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=lambda text: f"{case}, {name}: {text}")  # noqa: B023
    assert kept[True, True] < 0.5 * kept[False, False]
    assert not capsys.readouterr().err


def gradients_and_kept_bytes(config, network) -> tuple[dict, int]:
    """Gradients by names, and the bytes that the second forward pass keeps for them, weights left out."""
    weights, kept = {parameter.data_ptr() for parameter in network.parameters()}, {}
    case = sample_of(config, 2, 2, 1)
    network(*case).square().mean().backward()
    network.zero_grad()

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = network(*case).square().mean()
    loss.backward()
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("factor", [float("nan"), 1.5])
def test_blocks_whose_compiled_gradients_are_wrong_run_as_they_are(factor, monkeypatch, capsys):
    config, network = small_network()
    network.requires_grad_(True)
    expected, _ = gradients_and_kept_bytes(config, network)

    def miscompile(function, **_):
        def wrong(*arguments):
            output = function(*arguments)
            output.register_hook(lambda gradient: gradient * factor)
            return output

        return wrong

    network.zero_grad()
    monkeypatch.setattr(torch, "compile", miscompile)
    backbones.compile_blocks(config, network, torch.device("cpu"), steps=2)
    found, _ = gradients_and_kept_bytes(config, network)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the transformer runs uncompiled, as compiling it failed: its first gradients are off by")
