"""What is used of diffusers' CogVideoX VAE, whose packages would bring all other networks, transformers' image processing and SciPy."""

import importlib
import sys

import torch

from concat_id.imports import import_lazily
from concat_id.models.deferred import deferred, replaced


def _prepare() -> None:
    """Import the helpers that bring most, each without what the VAE has no need of."""
    unused = {} if sys.modules.keys() & {"diffusers", "torch._dynamo"} else {"torch._dynamo": None}
    with replaced(unused):  # half of PyTorch, for a mark on classes that are compiled; diffusers goes on without it
        torch_utils = importlib.import_module("diffusers.utils.torch_utils")
    import_lazily("diffusers.models.autoencoders", "diffusers.models.unets", "diffusers.models.transformers")
    with deferred("diffusers.quantizers", "diffusers.quantizers.quantization_config"):  # which bring torchao where it is installed
        importlib.import_module("diffusers.models.modeling_utils")
    # The latter two for checkpoints of whole pipelines in single files.
    with deferred("diffusers.quantizers", "diffusers.schedulers", "transformers"):
        importlib.import_module("diffusers.loaders.single_file_model")
    importlib.import_module("diffusers.models.autoencoders.vae")
    if unused:
        torch_utils.maybe_allow_in_graph = torch.compiler.allow_in_graph  # classes that are imported later get the mark


_prepare()
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX, CogVideoXCausalConv3d  # noqa: E402

__all__ = ["AutoencoderKLCogVideoX", "CogVideoXCausalConv3d"]
