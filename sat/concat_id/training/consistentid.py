"""ConsistentID's training: the frozen networks, the adapter that is trained, and the loss of batches of portraits.

As released: noise at a timestep drawn uniformly is predicted under the text in which a face's parts stand for words. In some batches the
background counts nothing, and attention to those words is drawn to their parts (the localisation of FastComposer, Xiao et al. 2023).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from concat_id.config.schema import Config
from concat_id.config.typed import mismatch
from concat_id.data.portraits import PortraitBatch, PortraitDataset, PortraitRecord, read_portraits
from concat_id.distributed import sent
from concat_id.errors import UserError
from concat_id.files.paths import resolve_path
from concat_id.models.consistentid.adapter import AdapterSizes, ConsistentIDAdapter, load_adapter
from concat_id.models.consistentid.base_model import (
    NOISE,
    ImageFeatures,
    check_base,
    decode_latents,
    encode_moments,
    load_base,
    make_scheduler,
)
from concat_id.models.consistentid.prompts import FacialPrompt, FacialTokenizer
from concat_id.training.checkpoint import SavedState
from concat_id.training.engine import Engine
from concat_id.training.objective import generator_of
from concat_id.training.preparation import list_paths
from concat_id.training.run import TrainingRun

TINY = 1e-5  # added to what is divided by, as released
TARGETS = ("epsilon", "v_prediction")  # what base models predict


def read_lists(config: Config) -> list[list[PortraitRecord]]:
    """Portraits for training and for validation; raises `UserError` for images that are no squares."""
    check_base(config.model)
    (height, width), cache = config.data.video_size, config.training.latent_cache
    if cache is not None:
        raise mismatch("args.latent_cache", cache, "none with portraits, which are encoded as they come", config.origins, "leave it out")
    if height != width or height % 8:
        raise mismatch("data.video_size", [height, width], "a square, [512, 512] as released, divisible by 8", config.origins)
    return [read_portraits(paths) if paths else [] for paths in list_paths(config)]


def make_dataset(run: TrainingRun, records: Sequence[PortraitRecord]) -> PortraitDataset:
    """Samples of portraits; those that cannot be read are noted in the run's folder."""
    return PortraitDataset(records, run.config.data.video_size[0], run.config.args.seed, run.folder / "bad_portraits.jsonl")


def load_frozen(config: Config, device: torch.device) -> tuple[Any, ImageFeatures]:
    """Load the base model and CLIP's image encoder in the type of the run; neither is trained or saved."""
    dtype: torch.dtype = getattr(torch, config.args.dtype_name)
    base, features = load_base(config.model, dtype).to(device), ImageFeatures(resolve_path(config.model.image_encoder), dtype)
    if (found := base.scheduler.config.prediction_type) not in TARGETS:
        raise UserError(f"{config.model.base}: prediction_type: found {found}, expected {' or '.join(TARGETS)}; take another base model")
    features.network.to(device)
    if config.training.checkpoint_activations:
        base.unet.enable_gradient_checkpointing()
        base.unet.train()  # else it would not; it has no dropout
    return base, features


def load_network(config: Config, base: Any, features: ImageFeatures, saved: SavedState | None) -> ConsistentIDAdapter:
    """Put the adapter into the base model: that of the checkpoint, of `args.load`, or a new one to pretrain."""
    model, dtype = config.model, getattr(torch, config.args.dtype_name)
    source = saved.folder if saved else config.args.load
    if source is not None:
        adapter = load_adapter(base.unet, resolve_path(source), dtype, config.args.trust_checkpoint)
        if (rank := adapter.sizes.rank) != model.rank:
            raise mismatch("model.rank", model.rank, f"{rank}, as the adapter in {source} has", config.origins)
    elif config.training.mode == "pretrain":
        sizes = AdapterSizes(base.unet.config.cross_attention_dim, features.width, rank=model.rank)
        with torch.random.fork_rng(()):
            torch.manual_seed(generator_of(config.args.seed, "weights").initial_seed())
            adapter = ConsistentIDAdapter(base.unet, sizes).to(dtype)
    else:
        raise UserError("args.load: missing, expected an adapter to go on with, or mode: pretrain to start a new one; set one of them")
    features.check(adapter.sizes.features, str(source))
    adapter.record(model.localization if model.localization_weight else None)
    return adapter.to(base.vae.device).train()


class Conditions(NamedTuple):
    """What B portraits are made under, as `forward` of the adapter takes it, and each one's masks (P, S, S) of the parts at its places."""

    text: Tensor
    vectors: Tensor
    features: Tensor
    parts: Tensor
    positions: list[list[int]]
    masks: list[Tensor]


class PortraitObjective:
    """The loss of batches of portraits; all that is random is decided by (seed, step, part of the batch)."""

    num_timesteps: int = NOISE["num_train_timesteps"]

    def __init__(self, config: Config, base: Any, features: ImageFeatures, device: torch.device):
        self.model, self.seed, self.device = config.model, config.args.seed, device
        self.dtype: torch.dtype = getattr(torch, config.args.dtype_name)
        self.base, self.features, self.tokenizer = base, features, FacialTokenizer(base.tokenizer)
        self.schedule = make_scheduler("ddim", base.scheduler.config.prediction_type)

    def training_loss(self, network: Engine, batch: PortraitBatch, step: int, part: int, parts: int) -> Tensor:
        """Loss of micro-batch `part` of the `parts` that make up a step."""
        generator, count, model = generator_of(self.seed, "training", step, part), len(batch.captions), self.model
        timesteps = torch.randint(self.num_timesteps, (count,), generator=generator)
        dropped = (torch.rand(count, generator=generator) < model.text_dropout).tolist()
        masked = torch.rand((), generator=generator).item() < model.mask_loss_prob
        mean, std = encode_moments(self.base, sent(batch.images, self.device))
        drawn, noise = (sent(torch.randn(mean.shape, generator=generator), self.device) for _ in range(2))
        conditions = self.conditions(batch, dropped)
        prediction, maps, target = self.predict(network, mean + std * drawn, noise, sent(timesteps, self.device), conditions)
        loss = denoising_loss(prediction, target, sent(batch.without_background, self.device) if masked else None)
        if not maps or not any(conditions.positions):
            return loss
        return loss + model.localization_weight * localization_losses(maps, conditions.masks, conditions.positions).mean()

    def validation_losses(self, network: ConsistentIDAdapter, batch: PortraitBatch, timesteps: list[int], key: int) -> list[float]:
        """Loss of a batch at fixed timesteps with fixed noise; nothing is dropped or masked, and attention does not count."""
        latents, losses = encode_moments(self.base, sent(batch.images, self.device))[0], []
        conditions = self.conditions(batch, [False] * len(batch.captions))
        for timestep in timesteps:
            noise = sent(torch.randn(latents.shape, generator=generator_of("validation", key, timestep)), self.device)
            at = torch.full((len(latents),), timestep, device=self.device)
            prediction, _, target = self.predict(network, latents, noise, at, conditions)
            losses.append(denoising_loss(prediction, target))
        return torch.stack(losses).tolist()  # the one wait for the device

    def predict(
        self, network: Any, latents: Tensor, noise: Tensor, timesteps: Tensor, conditions: Conditions
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Noise latents (B, 4, h, w) and return the prediction, the attention maps that were asked for, and the target."""
        noised = self.schedule.add_noise(latents, noise, timesteps).to(self.dtype)
        prediction, maps = network(noised, timesteps, *conditions[:5])
        if self.schedule.config.prediction_type == "v_prediction":
            return prediction, maps, self.schedule.get_velocity(latents, noise, timesteps)
        return prediction, maps, noise

    @torch.no_grad()
    def conditions(self, batch: PortraitBatch, dropped: Sequence[bool]) -> Conditions:
        """Encode texts, photos and the parts that are put into words; of a `dropped` sample only the face's vector stays."""
        prompts = [self.prompt(batch, sample, without) for sample, without in enumerate(dropped)]
        orders = [prompt.order(parts, self.model.pairing) for prompt, parts in zip(prompts, batch.parts, strict=True)]
        photos = batch.clip_pixels * ~torch.tensor(dropped)[:, None, None, None]
        of_parts = [pixels[order] for pixels, order in zip(batch.part_pixels, orders, strict=True)]
        photos, *seen = self.features(sent(torch.cat([photos, *of_parts]), self.device)).split([len(photos), *map(len, orders)])
        parts = photos.new_zeros(len(orders), max(1, *map(len, orders)), *photos.shape[1:])
        for own, values in zip(parts, seen, strict=True):
            own[: len(values)] = values
        return Conditions(
            text=self.base.text_encoder(torch.tensor([prompt.tokens for prompt in prompts], device=self.device))[0],
            vectors=sent(batch.identities[:, 0], self.device).to(self.dtype),
            features=photos,
            parts=parts,
            positions=[prompt.positions[: len(order)] for prompt, order in zip(prompts, orders, strict=True)],
            masks=[sent(masks[order], self.device) for masks, order in zip(batch.part_masks, orders, strict=True)],
        )

    def prompt(self, batch: PortraitBatch, sample: int, dropped: bool) -> FacialPrompt:
        """The words of a sample."""
        if dropped:
            return self.tokenizer.prompt("")
        return self.tokenizer.for_training(batch.captions[sample], batch.face_captions[sample], batch.parts[sample])

    def decode(self, latents: Tensor) -> np.ndarray:
        """Decode latents (1, 4, h, w) into one uint8 frame (1, H, W, 3)."""
        return decode_latents(self.base, sent(latents, self.device))

    def shown(self, batch: PortraitBatch) -> Tensor:
        """The photo (1, 3, S, S) of the first sample, which is shown beside what is made of it."""
        return batch.images[:1]


def denoising_loss(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error over all elements, of what `mask` (B, 1, S, S) leaves of both; as released, not divided by its area."""
    prediction, target = prediction.float(), target.float()
    if mask is not None:
        mask = F.interpolate(mask, size=prediction.shape[-2:], mode="bilinear")
        prediction, target = prediction * mask, target * mask
    return F.mse_loss(prediction, target)


def localization_losses(maps: Sequence[Tensor], masks: Sequence[Tensor], positions: Sequence[Sequence[int]]) -> Tensor:
    """Tell for each layer's attention maps (B, heads, pixels, L) how much more attention words get outside than inside of their parts.

    `masks` (P, S, S) are those of the parts at a sample's `positions`. The layers' losses are means over parts, heads and samples.
    """
    count = max(map(len, positions))
    places = torch.tensor([[*own, *[0] * (count - len(own))] for own in positions], device=maps[0].device)
    valid = torch.tensor([[place < len(own) for place in range(count)] for own in positions], device=maps[0].device)
    padded = torch.stack([F.pad(own.float(), (0, 0, 0, 0, 0, count - len(own))) for own in masks])
    return torch.stack([_localization(attention.float(), padded, places, valid) for attention in maps])


def _localization(attention: Tensor, masks: Tensor, places: Tensor, valid: Tensor) -> Tensor:
    heads, pixels, length = attention.shape[1:]
    side = math.isqrt(pixels)
    inside = F.interpolate(masks, size=(side, side), mode="bilinear", antialias=True).flatten(2)[:, None]  # (B, 1, P, pixels)
    # Under `self`, as released, a word's place stands for a pixel, of which a layer may have too few.
    valid, places = (valid & (places < length)).float()[:, None], places.clamp(max=length - 1)
    share = attention.gather(3, places[:, None, None].expand(-1, heads, pixels, -1)).transpose(2, 3)  # (B, heads, P, pixels)
    share = share / (share.max(dim=-1, keepdim=True).values + TINY)
    outside = 1 - inside
    means = [(share * area).sum(-1) / (area.sum(-1) + TINY) for area in (outside, inside)]
    return (((means[0] - means[1]) * valid).sum(-1) / (valid.sum(-1) + TINY)).mean()
