"""What a run is made of, as typed data: the sections that YAML files and command lines fill."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from concat_id.config.args import DataConfig, SamplingArgs, TrainingArgs
from concat_id.config.cogvideox import ModelConfig
from concat_id.config.neighbours import NEIGHBOURS, ConsisIDConfig, ConsistentIDConfig
from concat_id.config.typed import Origins
from concat_id.config.wan import WanModelConfig

BACKBONES = {"cogvideox": ModelConfig, "wan": WanModelConfig}  # of Concat-ID, by model.kind
MODELS = BACKBONES | NEIGHBOURS
TRAINED_BY = dict.fromkeys(BACKBONES, "train it with sat/train_video.py") | {
    "consistentid": "train it with sat/train_consistentid.py, convert it with to-consistentid", "consisid": "it is not trained here",
}  # fmt: skip
SECTIONS = ("model", "args", "data", "deepspeed")


@dataclass
class Config:
    """A whole run. The files' `args:` is both `args` and `training`; `deepspeed` is passed on to DeepSpeed as it is.

    `origins` tells where each value came from, and is no part of it.
    """

    model: ModelConfig | WanModelConfig | ConsisIDConfig | ConsistentIDConfig
    args: SamplingArgs = field(default_factory=SamplingArgs)
    training: TrainingArgs = field(default_factory=TrainingArgs)
    data: DataConfig = field(default_factory=DataConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)
    origins: Origins = field(default_factory=Origins, repr=False, compare=False)


def fields_of_args() -> dict[str, dataclasses.Field]:
    """Return every key of `args:` by name."""
    return {item.name: item for section in (SamplingArgs, TrainingArgs) for item in dataclasses.fields(section)}


def to_dict(config: Any, kept: Callable[[Mapping[str, Any]], bool] = lambda metadata: True) -> Any:
    """Return a config, or a part of one, as plain mappings, lists and scalars that JSON can hold; of a whole one, as its file would be.

    Keys are left out whose fields have metadata that are not `kept`.
    """
    if isinstance(config, Config):
        args = to_dict(config.args) | to_dict(config.training)
        return {"model": to_dict(config.model), "args": args, "data": to_dict(config.data), "deepspeed": to_dict(config.deepspeed)}
    if dataclasses.is_dataclass(config):
        return {item.name: to_dict(getattr(config, item.name), kept) for item in dataclasses.fields(config) if kept(item.metadata)}
    if isinstance(config, dict):
        return {name: to_dict(value) for name, value in config.items()}
    return [to_dict(value) for value in config] if isinstance(config, list | tuple) else config


def sampling_part(section: Any) -> dict[str, Any]:
    """Return what a sampled video depends on of a model's section, as plain data: no paths, nothing that only training reads."""
    return to_dict(section, lambda metadata: not metadata.get("training") and not metadata.get("path"))
