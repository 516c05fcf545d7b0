"""ConsisID's network: diffusers' CogVideoX whose frames attend to the features of a face after every other block."""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.transformers.consisid_transformer_3d import ConsisIDBlock, ConsisIDTransformer3DModel
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from torch import Tensor, nn

from concat_id.errors import UserError
from concat_id.weights.loading import load_strictly
from concat_id.weights.model_folders import built_from, made_on, read_diffusers, read_settings


class FaceAttendingCogVideoX(ConsisIDTransformer3DModel, CacheMixin):
    """Diffusers' network, whose attentions to the face belong to the blocks that they follow: what skips a block skips its attention too.

    Diffusers' step caches do not know ConsisID's blocks, and cache-dit takes all of them for one, after which the network attends to the
    face a single time: 0.26 of the output is lost before any step is skipped. The face is read once a video, not in every step.
    """

    face: Tensor  # (1, queries, D)

    def join_attentions(self) -> None:
        """Put the attentions to the face into the blocks."""
        self.is_train_face = False  # for the library's loop between the blocks
        TransformerBlockRegistry.register(ConsisIDBlock, TransformerBlockMetadata(0, 1))
        for block, attention in zip(self.transformer_blocks[:: self.cross_attn_interval], self.perceiver_cross_attention, strict=False):
            block.forward = partial(self._attending, block.forward, attention)

    def _attending(self, forward: Callable[..., Any], attention: nn.Module, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        frames, text = forward(*args, **options)
        return frames + self.local_face_scale * attention(self.face, frames), text

    def look_at(self, identity: Tensor, features: Sequence[Tensor], device: torch.device) -> None:
        """Read a face: its recogniser's and CLIP's vector (1, 1280) and CLIP's hidden states, each (1, 577, 1024)."""
        weight = self.local_facial_extractor.proj_out  # where it is: streamed weights come to the device in the network's own call alone
        inputs = [each.to(weight.device, weight.dtype) for each in (identity, *features)]
        self.face = self.local_facial_extractor(inputs[0], inputs[1:]).to(device)


class WatchedScheduler(CogVideoXDPMScheduler):
    """The released sampler, which keeps its last estimate of the clean latents."""

    estimate: Tensor

    @wraps(CogVideoXDPMScheduler.step)  # the pipeline passes its generator to a signature that has one
    def step(self, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Take a step; returns the latents and the estimate."""
        latents, self.estimate = super().step(*args, **options)
        return latents, self.estimate


def load_network(folder: Path, dtype: torch.dtype, trust: bool = False) -> FaceAttendingCogVideoX:
    """Read the network of a diffusers folder in `dtype`. Raises `UserError` for weights that do not fit its settings."""
    settings, state_dict = read_diffusers(folder, ConsisIDTransformer3DModel, "no other", "download it again", trust)
    if not (settings.get("is_train_face") and settings.get("use_rotary_positional_embeddings")):
        expected = "is_train_face and use_rotary_positional_embeddings, as the released one has"
        raise UserError(f"{folder / 'config.json'}: found a network without a face or without rotary positions, expected {expected}")
    with built_from(folder / "config.json", "ConsisID", state_dict), made_on("meta"):
        network = FaceAttendingCogVideoX.from_config(settings)
    load_strictly(network, state_dict, str(folder), dtype=dtype)
    network.join_attentions()
    return network.eval().requires_grad_(False)


def load_scheduler(folder: Path) -> WatchedScheduler:
    """Read the settings of the sampler. Raises `UserError` for another sampler's."""
    file = folder / "scheduler_config.json"
    settings = read_settings(file, "settings of a sampler", like=CogVideoXDPMScheduler.__init__)
    if settings.get("_class_name") != CogVideoXDPMScheduler.__name__:
        expected = f"{CogVideoXDPMScheduler.__name__}; take the file of BestWishYsh/ConsisID-preview"
        raise UserError(f"{file}: describes {settings.get('_class_name')!s:.80}, expected {expected}")
    return WatchedScheduler.from_config(settings)
