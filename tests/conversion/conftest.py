"""Small models converted once, and what the tests of their conversions share."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT

from concat_id.config.args import DataConfig
from concat_id.config.loading import load_config
from concat_id.config.schema import Config, to_dict
from concat_id.conversion.folders import to_hf
from concat_id.conversion.weight_sources import open_source
from concat_id.sampling.diffusers_cogvideox import ConcatIDPipeline
from concat_id.weights.loading import load_tensors

PROMPT = "a man in a red hat"


@dataclass
class Converted:
    """A tiny model: configuration, SAT checkpoint, diffusers folder and the YAML files that name the first."""

    config: Config
    checkpoint: Path
    folder: Path
    bases: list[str]

    def pipeline(self, folder: Path | None = None) -> ConcatIDPipeline:
        """Load the folder, or another, afresh."""
        pipe = ConcatIDPipeline.from_pretrained(folder or self.folder)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def convert(bases: list[str], target: Path) -> Converted:
    config = load_config(bases)
    to_hf(open_source(Path(config.args.load)), target, config.model)
    return Converted(config, Path(config.args.load), target, bases)


@pytest.fixture(scope="session")
def rotary(tiny_model, tmp_path_factory) -> Converted:
    """A model with rotary positions, as 5B."""
    return convert([str(ROOT / "configs" / "debug.yaml"), str(tiny_model)], tmp_path_factory.mktemp("hf") / "rotary")


@pytest.fixture(scope="session")
def sincos(tiny_model, tmp_path_factory) -> Converted:
    """A model with sin-cos positions, as 2B."""
    from tiny_model import write_transformer

    folder = tmp_path_factory.mktemp("hf")
    sizes = {"position_embedding": "sincos", "time_interpolation": 1.25, "height_interpolation": 1.5, "width_interpolation": 1.5}
    changes = {"args": {"load": str(folder / "checkpoint")}, "model": {"transformer": sizes, "schedule": {"shift": 3.0}}}
    (folder / "sincos.yaml").write_text(yaml.safe_dump(changes))
    bases = [str(ROOT / "configs" / "debug.yaml"), str(tiny_model), str(folder / "sincos.yaml")]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        write_transformer(folder / "checkpoint", load_config(bases).model.transformer)
    return convert(bases, folder / "sincos")


@pytest.fixture(scope="session")
def run(rotary, tmp_path_factory) -> Path:
    """A training run's folder: 5 with its averages beside it, and the configuration."""
    folder = tmp_path_factory.mktemp("run")
    weights = load_tensors(next(rotary.checkpoint.rglob("*.pt")))["module"]
    for name, factor in (("5", 1), ("5-ema", 2)):
        (folder / name).mkdir()
        module = {key: tensor * factor for key, tensor in weights.items()}
        torch.save({"module": module, "iteration": 5}, folder / name / "mp_rank_00_model_states.pt")
    (folder / "latest").write_text("5")
    config = replace(rotary.config, data=DataConfig((96, 64), fps=12, max_num_frames=5))
    (folder / "training_config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    return folder


@pytest.fixture(scope="session")
def latents_of(image):
    """Sample two steps from fixed noise with one reference: latents (1, 3, 16, 8, 12)."""

    def sample(pipe: ConcatIDPipeline, **options) -> torch.Tensor:
        start = torch.randn(1, 3, 16, 8, 12, generator=torch.Generator().manual_seed(3))
        settings = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(9), "output_type": "latent", "latents": start}
        return pipe(PROMPT, reference_images=[image()], **settings | options).frames

    return sample
