"""The `args:` and `data:` sections as typed data, and what users of the original have in `args:` besides."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from concat_id.model_config import GuidanceName
from concat_id.typed import bounded, option

SamplerName = Literal["sde_dpmpp_2m", "ddim", "euler", "unipc"]
SCALE = {"low": 0, "high": 1000}  # of guidance


@dataclass
class Args:
    """The `args:` section; every key is a command-line option too. `load_config` replaces None by what the model says.

    Of `path` "read" is looked for beside the file that names it, then in the working folder; "write" is as seen from there.
    """

    prompt: str | None = option(None, "input", "text of one video, in place of --input_file", metavar="TEXT")
    image: tuple[str, ...] = option((), "input", "photos of the people of --prompt, left to right", metavar="FILE", path="read")
    input_file: str | None = option(None, "input", "prompt file, one 'prompt@@photo[@@photo]' a line", metavar="FILE", path="read")
    output_dir: str = option("outputs", "input", "folder for the results", metavar="FOLDER", path="write")
    overwrite: bool = option(False, "input", "make finished videos again")
    seed: int = option(42, "input", "seed of the noise", low=0, high=2**63 - 1)

    mode: Literal["inference", "finetune", "pretrain"] = option("inference", "model", "what the run is for")
    load: str | None = option(None, "model", "checkpoint folder of the transformer", metavar="FOLDER", path="read")
    trust_checkpoint: bool = option(False, "model", "load pickles that can run code; only for files you made yourself")
    sampling_image_size: tuple[int, int] | None = option(
        None, "model", "height and width, divisible by 16 (default: the model's)", low=1, metavar=("HEIGHT", "WIDTH")
    )
    sampling_num_frames: int | None = option(
        None, "model", "latent frames: n makes 4(n-1)+1 frames, 1 a portrait picture (default: the model's longest)"
    )
    sampling_fps: int = option(8, "model", "frames per second of the files", low=1, high=1000)
    num_inference_steps: int | None = option(None, "model", "denoising steps (default: the model's)", low=2)
    guidance_scale: float | None = option(None, "model", "strength of the text (default: the model's)", **SCALE)
    ref_guidance_scale: float | None = option(None, "model", "strength of references, not 1: a third pass (default: the model's)", **SCALE)
    guidance: GuidanceName | None = option(None, "model", "course of the guidance scale (default: the model's)")
    sampler: SamplerName | None = option(None, "model", "sampler, the last two for Wan (default: the model's)")
    negative_prompt: str | None = option(None, "model", "text to stay away from (default: the model's)", metavar="TEXT")
    batch_size: int = option(1, "model", "videos per line, with seeds one after the other", low=1, high=10**4)

    memory: Literal["low", "balanced", "high"] = option("balanced", "placement", "what stays on the device")
    tiled_decoding: bool = option(False, "placement", "decode in overlapping tiles: less memory, as low does by itself")
    device: str = option("auto", "placement", "device to compute on; auto takes an accelerator where there is one")
    attention_kernel: Literal["auto", "cudnn", "flash", "efficient", "math"] = option("auto", "placement", "kernel; auto: PyTorch's choice")
    compile: bool = option(False, "placement", "fuse the transformer's blocks by torch.compile: slow first step, rounding differs")
    bf16: bool = option(False, "placement", "compute in bfloat16; auto: where the device has it", metavar="{true,false,auto}")
    fp16: bool = option(False, "placement", "compute in float16; neither means float32")

    train_data: tuple[str, ...] = option((), "training", "training lists (JSON)", metavar="FILE", path="read")
    valid_data: tuple[str, ...] = option((), "training", "validation lists (JSON)", metavar="FILE", path="read")
    save: str | None = option(None, "training", "folder for checkpoints", metavar="FOLDER", path="write")
    experiment_name: str = option("concat-id", "training", "name of the run's folder in --save", metavar="NAME")
    train_iters: int = option(1000, "training", "optimizer steps", low=1)
    epochs: int | None = option(None, "training", "times that all of train_data is seen, in place of train_iters", low=1)
    save_interval: int = option(100, "training", "steps between checkpoints", low=1)
    log_interval: int = option(20, "training", "steps between lines of the log", low=1)
    eval_interval: int = option(100, "training", "steps between validations", low=1)
    eval_iters: int = option(1, "training", "batches per validation, 0 for none", low=0)
    eval_batch_size: int = option(1, "training", "clips per validation batch", low=1, high=10**4)
    num_workers: int = option(8, "training", "processes that read clips", low=0, high=256)
    prefetch_factor: int | None = option(None, "training", "batches each of them reads in advance (default: 2)", low=1, high=256)
    lr_decay_style: Literal["constant", "linear", "cosine"] | None = option(None, "training", "course of the learning rate")
    lr_decay_ratio: float = option(0.0, "training", "share of the learning rate that linear and cosine end at", low=0, high=1)
    warmup_iters: int = option(0, "training", "steps over which the learning rate rises", low=0)
    warmup: float | None = option(None, "training", "share of the steps over which it rises, in place of warmup_iters", low=0, high=1)
    warmup_part: float | None = option(None, "training", "part of the steps that warmup_iters is at most", low=0, high=1)
    lr: float | None = option(None, "training", "learning rate (default: that of the deepspeed section)", low=0, high=1000)
    weight_decay: float | None = option(None, "training", "weight decay (default: that of the deepspeed section)", low=0)
    zero_stage: int | None = option(None, "training", "stage of ZeRO (default: that of the deepspeed section)", low=0, high=3)
    gradient_accumulation_steps: int | None = option(
        None, "training", "batches a step adds up (default: as the deepspeed section says)", low=1
    )
    ema_decay: float = option(0.9999, "training", "decay of the averaged weights, 0 for none", low=0, high=1)
    resume: str | None = option(None, "training", "continue a run, the latest if none is named", metavar="FOLDER", path="read")
    keep_checkpoints: int = option(3, "training", "how many of the last checkpoints stay", low=1)
    eval_samples: int = option(1, "training", "videos sampled at every validation, per process", low=0)
    tensorboard: bool = option(True, "training", "write TensorBoard files")
    latent_cache: str | None = option(None, "training", "folder to keep encoded clips in", metavar="FOLDER", path="write")
    checkpoint_activations: bool | None = option(None, "training", "recompute activations to save memory (default: the model's)")
    model_parallel_size: int = option(1, "training", "only 1 is supported", low=1, high=1)
    only_log_video_latents: bool = option(False, "training", "leave validation videos undecoded")
    wandb: bool = option(False, "training", "log to Weights & Biases")
    wandb_project_name: str = option("concat-id", "training", "its project", metavar="NAME")

    @property
    def dtype_name(self) -> str:
        """Name of the torch dtype to compute in."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"

    def count_steps(self, epoch: float = 0) -> None:
        """Turn `epochs`, of so many steps each, and `warmup` into `train_iters` and `warmup_iters`."""
        if self.epochs is not None:
            self.train_iters, self.epochs = math.ceil(self.epochs * epoch), None
        if self.warmup is not None:
            self.warmup_iters, self.warmup = int(self.warmup * self.train_iters), None
        if self.warmup_part is not None:
            self.warmup_iters = min(self.warmup_iters, int(self.warmup_part * self.train_iters))


RIVALS = ("train_iters", "epochs"), ("warmup_iters", "warmup")  # where a later file or the command line gives one, the other is taken back


class Accepted(NamedTuple):
    """A key of the original's `args:` that nothing reads: why, the only value it can have, and whether its users should hear of it."""

    reason: str
    only: Any = None
    told: bool = False


def _told(reason: str) -> Accepted:
    return Accepted(reason, told=True)


ACCEPTED_ARGS: dict[str, Accepted] = {
    "image2video": Accepted("this project is text-to-video with reference images", False),
    "contextimage2video": Accepted("reference images always are part of the input", True),
    "input_type": Accepted("prompts come from args.input_file or --prompt", "txt"),
    "latent_channels": Accepted("model.autoencoder says it"),
    "force_inference": Accepted("checkpoints load strictly"),
    "force_train": Accepted("checkpoints load strictly"),
    "force_pretrain": Accepted("checkpoints load strictly"),
    "no_load_rng": Accepted("the state of random generators is never loaded with weights"),
    "no_save_rng": Accepted("everything random follows from args.seed and the step"),
    "split": Accepted("train_data and valid_data are separate lists"),
    "deepspeed": Accepted("training always runs under DeepSpeed"),
    "deepspeed_activation_checkpointing": Accepted("args.checkpoint_activations says it"),
    "use_gpu_initialization": Accepted("weights are loaded, or made from args.seed"),
    "strict_eval": Accepted("validation never repeats or shuffles its clips"),
    "iterable_dataset": Accepted("lists are read as a whole", False),
    "iterable_dataset_eval": Accepted("lists are read as a whole"),
    "batch_from_same_dataset": Accepted("clips of all lists are mixed", False),
    "only_save_latents": Accepted("videos are decoded and saved", False),
    "sdedit": Accepted("videos start from noise", False),
    "checkpoint_num_layers": Accepted("every layer is a checkpoint of its own", 1),
    "checkpoint_skip_layers": Accepted("every layer is a checkpoint of its own", 0),
    "distributed_backend": Accepted("it follows from args.device"),
    "dist_backend": Accepted("it follows from args.device"),
    "fp32_allreduce": Accepted("deepspeed.communication_data_type: fp32 does that", False),
    "local_rank": Accepted("torchrun says it"),
    "save_args": Accepted("every run's folder has training_config.yaml"),
    "block_size": Accepted("train_data and valid_data are separate lists"),
    "debug": Accepted("there is no other way of running", False),
    "log_image": _told("validation videos are always logged; args.eval_samples: 0 makes none"),
    "train_data_weights": _told("name a list of args.train_data several times to see it more often"),
    "resume_dataloader": _told("--resume goes on in the order of clips by itself"),
    "lr_decay_iters": _told("the learning rate decays until args.train_iters"),
    "exit_interval": _told("set args.train_iters; Ctrl-C and SIGTERM save before they stop"),
    "summary_dir": _told("TensorBoard files are in the run's folder, in args.save"),
    "tensorboard_dir": _told("TensorBoard files are in the run's folder, in args.save"),
    "test_data": _told("args.valid_data is measured while training, sat/evaluate_identity.py measures videos"),
    "deepspeed_config": _told("the deepspeed: section says it"),
    "profiling": _told("deepspeed.flops_profiler and deepspeed.wall_clock_breakdown measure steps"),
    "input_dir": _told("prompts come from args.input_file or --prompt"),
    "final_size": _told("args.sampling_image_size says it"),
    "grid_num_rows": _told("every video is a file of its own"),
    "grid_num_columns": _told("every video is a file of its own"),
    "lcm_steps": _told("args.num_inference_steps says how many steps are taken"),
}


@dataclass
class DataConfig:
    """Training clips: size, frames per second, length, and source frames to skip at both ends. None means the model's."""

    video_size: tuple[int, int] | None = bounded(None, low=1)
    fps: int = bounded(8, low=1, high=1000)
    max_num_frames: int | None = bounded(None, low=1)
    skip_frms_num: int = bounded(3, low=0)
