"""Training in this process, on batches made of seeded noise; `python tests/training/alone.py` writes the golden losses."""

import dataclasses
import json
import shutil
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent / "sat"), str(TESTS)]

import torch  # noqa: E402

GOLDEN = TESTS / "golden" / "training_losses.json"
CPU = torch.device("cpu")
TRAINING = {
    "args": {
        "mode": "finetune", "experiment_name": "run", "train_iters": 10, "lr_decay_style": "constant", "warmup_iters": 0,
        "save_interval": 5, "log_interval": 1, "eval_interval": 1000,
        "eval_iters": 0, "eval_samples": 0, "num_workers": 0, "bf16": False, "ema_decay": 0.9, "tensorboard": False,
    },
    "data": {"video_size": [32, 48], "fps": 8, "max_num_frames": 5, "skip_frms_num": 0},
    "deepspeed": {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 2},
        "optimizer": {"type": "sat.ops.FusedEmaAdam", "params": {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 1e-4}},
    },
}  # fmt: skip
SMALL = {"frames": 1, "size": (16, 32)}  # bfloat16 is emulated on many processors, at a hundredth of the speed


def noise(*key, shape) -> torch.Tensor:
    from concat_id.training.objective import generator_of

    return torch.randn(shape, generator=generator_of("test", *key))


def batch_of(video, refs, captions: list[str] | None = None):
    """A batch as a loader makes it, of videos (B, 3, F, H, W) and references (B, R, 3, H, W)."""
    from concat_id.data.dataset import Batch

    count = len(refs)
    captions = captions or [f"caption {number}" for number in range(count)]
    return Batch(captions, refs, video, [None] * count, [None] * count, list(range(count)), [False] * count, [0] * count)


def batches(start: int = 0, frames: int = 5, num_refs: int = 1, size: tuple[int, int] = (64, 96)):
    """Batches without end; `start` leaves out those used before."""
    number = start
    while True:
        video, refs = noise("video", number, shape=(1, 3, frames, *size)), noise("refs", number, shape=(1, num_refs, 3, *size))
        yield batch_of(video.tanh(), refs.tanh(), [f"caption {number}"])
        number += 1


def embed(prompts: list[str]) -> torch.Tensor:
    return torch.stack([noise("text", prompt, shape=(16, 32)) for prompt in prompts])


def make_trainer(config, folder: Path, saved=None, validation=None, device=CPU):
    """A trainer of the small random model that `config` names; the autoencoder, which is not trained, computes in float32 always."""
    from concat_id.data.sampler import EpochSampler
    from concat_id.models.backbones import load_autoencoder
    from concat_id.training.engine import Engine, start_processes
    from concat_id.training.objective import Objective
    from concat_id.training.preparation import load_network
    from concat_id.training.settings import engine_settings
    from concat_id.training.trainer import Trainer

    start_processes(device)
    folder.mkdir(parents=True, exist_ok=True)
    exact = dataclasses.replace(config, args=dataclasses.replace(config.args, bf16=False))
    objective = Objective(config, load_autoencoder(exact, device), embed, device)
    engine = Engine(load_network(config, saved, device), engine_settings(config, 1), device)
    return Trainer(config, folder, engine, objective, EpochSampler([1] * 4), validation and validation(objective), saved)


def train_in_parts(config, folder: Path, device=CPU) -> tuple[Path, Path]:
    """Train four steps at a stretch, and again from the checkpoint of two; returns the folders of both runs, whose losses are equal."""
    from concat_id.training.checkpoint import open_checkpoint

    whole, parts = folder / "whole", folder / "parts"
    make_trainer(config, whole, device=device).train(batches(**SMALL))
    shutil.copytree(whole / "2", parts / "2")
    shutil.copy(whole / "metrics.jsonl", parts)
    make_trainer(config, parts, open_checkpoint(parts), device=device).train(batches(start=2, **SMALL))
    assert losses(parts) == losses(whole) and len(losses(whole)) == 4
    return whole, parts


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics(run) if "loss" in line]


def states(run: Path, step: int) -> dict[str, torch.Tensor]:
    """What the optimizer had at a checkpoint, by the names of its tensors."""
    from safetensors.torch import load_file

    return {name: tensor for file in (run / str(step) / "training").glob("states*.safetensors") for name, tensor in load_file(file).items()}


def weights(run: Path, tag: str) -> dict[str, torch.Tensor]:
    from concat_id.weights.loading import load_sat_checkpoint

    return load_sat_checkpoint(run / tag).state_dict


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def train_golden(setup, folder: Path) -> list[float]:
    """Six steps of configs/debug.yaml's model, with random weights."""
    config = setup.config(folder, train_iters=6, save_interval=100)
    make_trainer(config, folder).train(batches())
    return losses(folder)


if __name__ == "__main__":
    from concat_id.startup import prepare_process

    prepare_process()
    from tiny_model import write_tiny_model
    from training.conftest import Setup

    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "data").mkdir()
        setup = Setup(Path(name) / "data", write_tiny_model(Path(name) / "model"))
        found = train_golden(setup, Path(name) / "run")
    GOLDEN.write_text(json.dumps({"made_by": "python tests/training/alone.py", "losses": found}, indent=2) + "\n")
    print(found)
