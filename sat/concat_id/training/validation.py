"""How good the network is at a step: the loss at fixed timesteps and noise, and videos or portraits with their references beside them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from concat_id.config.schema import Config
from concat_id.data.dataset import ReplacingDataset
from concat_id.distributed import rank, world_size
from concat_id.errors import UserError, warn
from concat_id.files.paths import safe_name, written_whole
from concat_id.training.engine import Engine, all_reduce
from concat_id.training.objective import Objective
from concat_id.video.transforms import to_pil
from concat_id.video.writing import contact_sheet, write_image, write_video

PARTS = 4  # validation timesteps: the middles of so many equal parts of the range

SampleLatents = Callable[[nn.Module, Any], Tensor]
"""(network, batch of one sample) -> latents (1, T, C, h, w) of a video or (1, C, h, w) of an image."""


class Validation:
    """Validates on the first clips of a data set; the processes share them and each takes part equally often, as ZeRO-3 needs."""

    def __init__(self, config: Config, clips: ReplacingDataset, objective: Objective, sample: SampleLatents, folder: Path):
        self.args, self.fps = config.training, config.data.fps
        self.clips, self.objective, self.sample, self.folder = clips, objective, sample, folder
        self.clips.any_kind = True
        steps = objective.num_timesteps
        self.timesteps = [steps * (2 * part + 1) // (2 * PARTS) for part in range(PARTS)]

    def loss(self, engine: Engine) -> float:
        """Mean over `eval_iters` x `eval_batch_size` clips and the fixed timesteps; the same for any number of processes."""
        count = min(self.args.eval_iters * self.args.eval_batch_size, len(self.clips))
        total, number = 0.0, 0
        with engine.evaluating() as network:
            for index in _turns(count):
                losses = self.objective.validation_losses(network, self._batch(index % count), self.timesteps, index % count)
                if index < count:
                    total, number = total + sum(losses), number + len(losses)
        total, number = all_reduce([total, number], engine.device)
        return total / number

    def write_samples(self, engine: Engine, step: int) -> dict[str, Image.Image]:
        """Write one video or portrait for each of the first clips; returns the first process's contact sheets by name."""
        sheets = {}
        everyone = engine.settings.zero_stage == 3
        with engine.evaluating() as network:
            for index in _turns(self.args.eval_samples * world_size()):
                if index < len(self.clips) or everyone:
                    sheet = self._write_sample(network, step, index % len(self.clips), write=index < len(self.clips))
                    if sheet is not None:
                        sheets[f"samples/{index}"] = sheet
        dist.barrier()
        return sheets if rank() == 0 else {}

    def _write_sample(self, network: nn.Module, step: int, index: int, write: bool) -> Image.Image | None:
        batch = self._batch(index)
        caption = batch.captions[0]
        try:
            latents = self.sample(network, batch)
            if write:
                return self._write_files(self.folder / f"{step:06d}" / f"{index:04d}_{safe_name(caption)}", latents, batch, caption)
        except UserError as error:  # as NaN; the network may recover, and the losses tell
            warn(f"step {step}: no sample for validation entry {index}: {error}")
        return None

    def _write_files(self, name: Path, latents: Tensor, batch: Any, caption: str) -> Image.Image | None:
        if self.args.only_log_video_latents:
            with written_whole(name.with_suffix(".safetensors")) as temporary:
                temporary.write_bytes(safetensors.torch.save({"latents": latents.cpu().contiguous()}))
            return None
        frames = self.objective.decode(latents)
        sheet = contact_sheet([to_pil(image) for image in self.objective.shown(batch)], frames, caption)
        if latents.ndim == 5:  # with a time
            write_video(name.with_suffix(".mp4"), frames, self.fps)
        write_image(name.with_suffix(".png"), sheet)
        return sheet

    def _batch(self, index: int) -> Any:
        return self.clips[0, index].as_floats()


def _turns(count: int) -> Sequence[int]:
    """Indices of this process, equally many for all: those from `count` on are there to keep the others company."""
    rounds = -(-count // world_size())
    return range(rank(), rounds * world_size(), world_size())
