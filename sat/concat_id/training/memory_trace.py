"""Memory and operations of the networks, found by running them on tensors that have shapes and types but no contents."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from concat_id.config.schema import Config
from concat_id.models.backbones import new_autoencoder, new_transformer
from concat_id.models.operations import count_tokens, forward_operations
from concat_id.training.lora import choose_trained
from concat_id.training.objective import generator_of


class Ledger(TorchDispatchMode):
    """Counts the bytes of the storages that operations inside the block make, until these are freed: `live` now, `peak` at most."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._storages: set[int] = set()

    def start(self) -> int:
        """Forget the peak so far; returns what is alive."""
        self.peak = self.live
        return self.live

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run an operation and enter the storages that are new."""
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._enter(tensor.untyped_storage())
        return result

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            self._storages.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._leave, key, size)

    def _leave(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size


def empty_network(config: Config) -> nn.Module:
    """The transformer that would be trained, low-rank products included, on the meta device."""
    network = new_transformer(config, "meta")
    choose_trained(network, config.model, generator_of("sizes"))
    return network


def trace_network(config: Config, batch: int, num_refs: int) -> int:
    """Bytes above the weights of forward and backward of a micro-batch; gradients of parameters are let go of at once."""
    model, transformer, dtype = config.model, config.model.transformer, getattr(torch, config.args.dtype_name)
    size = model.latent_frames(config.data.max_num_frames), transformer.in_channels, *model.latent_sides(config.data.video_size)
    network = empty_network(config)
    with _without_contents(network, dtype) as ledger:
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_forget_gradient)
        before = ledger.start()
        latents = torch.empty(batch, *size, dtype=dtype)
        refs = torch.empty(batch, num_refs, *size[1:], dtype=dtype)
        text = torch.empty(batch, transformer.text_length, transformer.text_hidden_size, dtype=dtype)
        loss = network(latents, torch.zeros(batch, dtype=torch.int64), text, refs).float().square().mean()
        loss.backward()
        return ledger.peak - before


def trace_encoder(config: Config) -> tuple[int, int]:
    """Bytes above the weights, and operations, of encoding one clip, as whole as training encodes it."""
    dtype, (height, width) = getattr(torch, config.args.dtype_name), config.data.video_size
    autoencoder = new_autoencoder(config)
    with _without_contents(autoencoder, dtype) as ledger:
        before = ledger.start()
        with FlopCounterMode(display=False) as counter:
            autoencoder.encode_moments(torch.empty(1, 3, config.data.max_num_frames, height, width))
        return ledger.peak - before, counter.get_total_flops()


def network_flops(config: Config, num_refs: int) -> int:
    """Operations of the transformer for one clip and one step: 24 S D^2 + 4 S^2 D a layer, three times for forward and backward.

    S tokens of text, video and references, D the width; once more the forward where activations are recomputed.
    """
    transformer, frames = config.model.transformer, config.model.latent_frames(config.data.max_num_frames) + num_refs
    forward = sum(forward_operations(transformer, count_tokens(config.model, frames, config.data.video_size)))
    return forward * (4 if transformer.checkpoint_activations else 3)


@contextmanager
def _without_contents(network: nn.Module, dtype: torch.dtype) -> Iterator[Ledger]:
    """Give a network of the meta device weights that claim to be on a CPU, whose attention keeps what fused kernels keep."""
    with FakeTensorMode(), Ledger() as ledger:
        for module in network.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                stand_in = nn.Parameter(torch.empty(parameter.shape, dtype=dtype), parameter.requires_grad)
                module.register_parameter(name, stand_in)
        yield ledger


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None
