"""What docs/conversion.md says of diffusers' accelerations: its blocks are run as they stand, on tiny models with references."""

import contextlib
import copy
import re

import pytest
import torch
from conftest import ROOT, assert_close
from conversion_wan.conftest import SETTINGS, START, wan  # noqa: F401 - a fixture
from diffusers import DiffusionPipeline
from ranks import in_processes

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "conversion.md").read_text(encoding="utf-8"), re.DOTALL)
STEPS = 6
HERE = {'"cuda"': '"cpu"', "torch.bfloat16": "torch.float32", "fullgraph=True": 'fullgraph=True, backend="eager"', "=50": f"={STEPS}",
        "threshold=0.1": "threshold=1.0"}  # fmt: skip


class Small:
    """One of the models: the pipeline that the page's blocks see, whose calls are short."""

    def __init__(self, folder, is_wan: bool, image):
        self.pipe = DiffusionPipeline.from_pretrained(str(folder), custom_pipeline=str(folder), trust_remote_code=True)
        self.names = {"torch": torch, "DiffusionPipeline": DiffusionPipeline, "folder": str(folder), "face": image()}
        self.other = image(99)
        own = SETTINGS | {"latents": START} if is_wan else {"latents": START.transpose(1, 2)}
        self.options = own | {"num_inference_steps": STEPS}
        self.parallelism = "ContextParallelConfig" if is_wan else "cache_dit"

    def __getattr__(self, name):
        return getattr(self.pipe, name)

    def __call__(self, prompt, **options):
        self.pipe.set_progress_bar_config(disable=True)
        return self.pipe(prompt, **self.options | {"generator": torch.Generator().manual_seed(1)} | options)

    def run(self, word: str, **names) -> dict:
        """Execute the page's block that has a word; returns the names that it leaves."""
        (block,) = [block for block in BLOCKS if word in block]
        for theirs, ours in HERE.items():
            block = block.replace(theirs, ours)
        self.names |= names | {"pipe": self}
        exec(block, self.names)
        if self.names["pipe"] is not self:
            self.pipe = self.names["pipe"]
        return self.names

    def sample(self, image=None, **options) -> torch.Tensor:
        return self("a man", reference_images=[image or self.names["face"]], output_type="latent", **options).frames

    def sample_and_count(self) -> tuple[torch.Tensor, int]:
        """Latents, and how many blocks were computed for them."""
        calls = []
        with contextlib.ExitStack() as hooks:
            for module in self.transformer.modules():
                if module.__class__.__name__ in self.transformer._repeated_blocks:
                    hooks.enter_context(module.attn1.register_forward_hook(lambda *_: calls.append(1)))
            return self.sample(), len(calls)


@pytest.fixture(params=["cogvideox", "wan"])
def small(request, rotary, wan, image):  # noqa: F811
    is_wan = request.param == "wan"
    return Small(wan.folders["adaln"] if is_wan else rotary.folder, is_wan, image)


@pytest.mark.parametrize("word", ["FirstBlockCacheConfig", "calibrate=True"])
def test_caches_compute_fewer_blocks(small, word, capsys):
    plain, whole = small.sample_and_count()
    small.run(word)
    if word == "calibrate=True":
        ratios = [float(number) for number in re.search(r"\[([\d., e-]+)\]", capsys.readouterr().out)[1].split(",")]
        assert len(ratios) == STEPS and ratios[0] == 1
        small.run("mag_ratios", ratios=[1.0] * STEPS)  # random weights change from step to step
    cached, fewer = small.sample_and_count()
    assert fewer < whole and cached.shape == plain.shape and not torch.equal(cached, small.sample(small.other))


def test_quantised_weights_differ_little(small):
    pytest.importorskip("torchao")
    plain = small.sample()
    small.run("Int8WeightOnlyConfig")
    found = small.sample()
    error = ((found - plain).norm() / plain.norm()).item()
    assert 0 < error < 0.05 and not torch.allclose(found, small.sample(small.other), atol=1e-3)


@pytest.mark.parametrize("word", ["enable_group_offload", "compile_repeated_blocks"])
def test_offloaded_and_compiled_give_the_same(small, word):
    layers = next(module for module in small.transformer.children() if isinstance(module, torch.nn.ModuleList))
    layers.extend([copy.deepcopy(layer) for layer in layers])
    assert len(layers) >= 4
    plain, other = small.sample(), small.sample(small.other)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    small.run(word)
    assert_close(small.sample(), plain, 1e-5)
    assert_close(small.sample(small.other), other, 1e-5)
    assert not torch.equal(plain, other)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_processes_give_the_same(small):
    if small.parallelism == "cache_dit":
        pytest.importorskip("cache_dit")
    plain, other = small.sample(), small.sample(small.other)

    def compare(rank: int) -> None:
        small.run(small.parallelism)
        assert_close(small.sample(), plain, 1e-5)
        assert_close(small.sample(small.other), other, 1e-5)

    in_processes(2, compare)


def test_stronger_references(small):
    assert len(small.run("ref_guidance_scale=2.0")["video"]) == 9  # frames
    assert (small.sample(ref_guidance_scale=2.0) - small.sample()).abs().max() > 1e-3
