"""The `args:` section, what sampling reads of it and what training reads of it, and the `data:` section, as typed data.

Each key of `args:` is a command-line option too. Of `path` "read" is looked for beside the file that names it, in the working folder, and
in the project's; "write" is as seen from the working folder. `shared` keys are read by both.
"""

import math
from dataclasses import dataclass
from typing import Literal

from concat_id.config.cogvideox import REF_GUIDANCE, GuidanceName
from concat_id.config.typed import setting, size

SamplerName = Literal["sde_dpmpp_2m", "ddim", "euler", "unipc"]
KernelName = Literal["auto", "cudnn", "flash", "flash3", "sage", "efficient", "math"]
ParallelName = Literal["prompts", "video", "guidance", "auto"]
CacheName = Literal["first_block", "mag", "dbcache"]
GGUF = "gguf:"
SCALE = {"low": 0, "high": 1000, "shared": True}  # of guidance


@dataclass
class SamplingArgs:
    """What sampling reads; `load_config` replaces None by what `data:` says of the clips, or the model."""

    prompt: str | None = setting(None, "text of one video, in place of --input_file", group="input", metavar="TEXT")
    image: tuple[str, ...] = setting(
        (), "photos of the people of --prompt, left to right; a.jpg+b.jpg are of one", group="input", metavar="FILE", path="read"
    )
    input_file: str | None = setting(None, "prompt file, one 'prompt@@photo[@@photo]' a line", group="input", metavar="FILE", path="read")
    output_dir: str = setting("outputs", "folder for the results", group="input", metavar="FOLDER", path="write")
    overwrite: bool = setting(False, "make finished videos again", group="input")
    photos: Literal["best", "all"] = setting(
        "best", "of several photos of a person, a.jpg+b.jpg, take the best, or each as a reference of its own", group="input"
    )
    strict_photos: bool = setting(False, "refuse poor photos, as sat/check_photos.py judges them", group="input")
    seed: int = setting(42, "seed of the noise, in training of all that is random", low=0, high=2**32 - 1, group="input", shared=True)

    load: str | None = setting(None, "checkpoint of the transformer", group="model", metavar="FOLDER", path="read", shared=True)
    trust_checkpoint: bool = setting(
        False, "load pickles that can run code; only for files you made yourself", group="model", shared=True
    )
    sampling_image_size: tuple[int, int] | None = setting(
        None, "height and width, divisible by 16 (default: data:'s, or the model's)", low=1, group="model", metavar=("HEIGHT", "WIDTH")
    )
    sampling_num_frames: int | None = setting(
        None, "latent frames: n makes 4(n-1)+1 frames, 1 a portrait image (default: data:'s, or the model's)", group="model"
    )
    sampling_fps: int | None = setting(
        None, "frames per second of the files (default: data:'s, or the model's)", low=1, high=1000, group="model", shared=True
    )
    num_inference_steps: int | None = setting(None, "denoising steps (default: the model's)", low=2, group="model", shared=True)
    guidance_scale: float | None = setting(None, "strength of the text (default: the model's)", group="model", **SCALE)
    ref_guidance_scale: tuple[float, ...] | None = setting(
        None, f"{REF_GUIDANCE} (default: the model's)", group="model", metavar="X", **SCALE
    )
    guidance: GuidanceName | None = setting(None, "schedule of the guidance scale (default: the model's)", group="model", shared=True)
    sampler: SamplerName | None = setting(None, "sampler, the last two for Wan (default: the model's)", group="model", shared=True)
    negative_prompt: str | None = setting(
        None, "text to stay away from (default: the model's)", group="model", metavar="TEXT", shared=True
    )
    batch_size: int = setting(
        1, "videos per line, with seeds one after the other; in training clips of a process", low=1, high=10**4, group="model", shared=True
    )
    best_of: int | None = setting(
        None, "videos per line, with seeds one after the other, ranked by likeness to the photos", low=2, high=10**4, group="model"
    )

    memory: Literal["low", "balanced", "high"] = setting("balanced", "what stays on the device", group="placement")
    tiled_decoding: bool = setting(False, "decode in overlapping tiles: less memory, as low does by itself", group="placement")
    device: str = setting("auto", "device to compute on; auto takes an accelerator where there is one", group="placement", shared=True)
    attention_kernel: KernelName = setting(
        "auto", "kernel; auto: the fastest of cudnn, flash and flash3 on CUDA, else PyTorch's choice; sage (of the package sageattention) "
        "rounds queries and keys to 8 bits", group="placement", shared=True,
    )  # fmt: skip
    compile: bool | None = setting(
        None, "fuse the transformer's blocks by torch.compile; auto (default): large ones on CUDA, from 10 steps", group="placement",
        metavar="{true,false,auto}", shared=True,
    )  # fmt: skip
    bf16: bool = setting(
        False, "compute in bfloat16; auto: where the device has it", group="placement", metavar="{true,false,auto}", shared=True
    )
    fp16: bool = setting(False, "compute in float16; neither means float32", group="placement", shared=True)

    network: Literal["auto", "sat", "diffusers"] = setting(
        "auto", "whose code runs CogVideoX's weights, with equal results; auto: diffusers' where an option below needs it, else SAT's",
        group="acceleration",
    )  # fmt: skip
    parallel: ParallelName = setting(
        "prompts", "what several processes do (NPROC_PER_NODE): share the lines of --input_file, the tokens of one video, or its guidance "
        "branches (a number that divides them); auto: guidance where it fits, else video", group="acceleration",
    )  # fmt: skip
    cache: CacheName | None = setting(
        None, "skip layers in steps that change little, at a loss: first_block and dbcache look at what the first layer changed, "
        "mag at how much it usually changes, which it measures once, in a video without a prompt", group="acceleration",
    )  # fmt: skip
    cache_threshold: float | None = setting(
        None, "change up to which they are skipped: more is faster and loses more (default: first_block 0.05, mag 0.06, dbcache 0.08)",
        low=0, high=10, group="acceleration",
    )  # fmt: skip
    quantize: str | None = setting(
        None, "hold the weights of transformer and text encoder in 8 bits, at a loss, or take the transformer's from a GGUF file",
        group="acceleration", metavar="{int8,fp8,gguf:FILE}",
    )  # fmt: skip

    @property
    def gguf(self) -> str | None:
        """The GGUF file to take the transformer from."""
        return self.quantize.removeprefix(GGUF) if (self.quantize or "").startswith(GGUF) else None

    @property
    def dtype_name(self) -> str:
        """Name of the torch dtype to compute in."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"


@dataclass
class TrainingArgs:
    """What training reads besides the shared keys of `SamplingArgs`."""

    mode: Literal["inference", "finetune", "pretrain"] = setting(
        "inference", "finetune weights, or pretrain from random ones (default: as the files say)"
    )
    train_data: tuple[str, ...] = setting((), "training lists (JSON)", metavar="FILE", path="read")
    valid_data: tuple[str, ...] = setting((), "validation lists (JSON)", metavar="FILE", path="read")
    save: str | None = setting(None, "folder for checkpoints", metavar="FOLDER", path="write")
    experiment_name: str = setting("concat-id", "name of the run's folder in --save", metavar="NAME")
    resume: str | None = setting(None, "continue a run, the latest if none is named", metavar="FOLDER", path="read")
    keep_checkpoints: int = setting(3, "how many of the last checkpoints stay", low=1)

    train_iters: int = setting(1000, "optimizer steps", low=1)
    epochs: int | None = setting(None, "times that all of train_data is seen, in place of train_iters", low=1)
    lr: float | None = setting(None, "learning rate (default: that of the deepspeed section)", low=0, high=1000)
    lr_decay_style: Literal["constant", "linear", "cosine", "exponential"] | None = setting(
        "linear", "learning-rate schedule; exponential is constant, as released"
    )
    lr_decay_ratio: float | None = setting(
        None, "share of the rate decay ends at (default: 0 with warmup_iters, else 0.1 for cosine; linear ends at warmup)", low=0, high=1
    )
    warmup_iters: int | None = setting(
        None, "steps over which the learning rate rises (default: as released, at a twentieth for 100 steps)", low=0
    )
    warmup: float | None = setting(None, "share of the steps over which it rises as released (default: 0.01)", low=0, high=1)
    warmup_part: float | None = setting(None, "upper limit of warmup_iters, as a share of all steps", low=0, high=1)
    weight_decay: float | None = setting(None, "weight decay (default: that of the deepspeed section)", low=0)
    ema_decay: float = setting(0.9999, "decay of the EMA weights, 0 for none", low=0, high=1)
    gradient_accumulation_steps: int | None = setting(None, "batches a step adds up (default: as the deepspeed section says)", low=1)
    zero_stage: int | None = setting(None, "stage of ZeRO (default: that of the deepspeed section)", low=0, high=3)
    checkpoint_activations: bool | None = setting(None, "recompute activations to save memory (default: the model's)")

    num_workers: int = setting(8, "processes that read clips", low=0, high=256)
    prefetch_factor: int | None = setting(None, "batches each of them reads in advance (default: 2)", low=1, high=256)
    latent_cache: str | None = setting(None, "folder to keep encoded clips in", metavar="FOLDER", path="write")

    save_interval: int | None = setting(100, "steps between checkpoints, 0 for the last alone; null: an epoch's with epochs, else 0", low=0)
    log_interval: int = setting(20, "steps between lines of the log", low=1)
    eval_interval: int | None = setting(100, "steps between validations, 0 for none; null: an epoch's with epochs, else 0", low=0)
    eval_iters: int = setting(1, "batches per validation, 0 for none", low=0)
    eval_batch_size: int = setting(1, "clips per validation batch", low=1, high=10**4)
    eval_samples: int = setting(1, "videos sampled at every validation, per process", low=0)
    only_log_video_latents: bool = setting(False, "leave validation videos undecoded")
    tensorboard: bool = setting(True, "write TensorBoard files")
    wandb: bool = setting(False, "log to Weights & Biases")
    wandb_project_name: str = setting("concat-id", "its project", metavar="NAME")

    def count_steps(self, epoch: int = 0, step: int = 1, taken: int = 0, seen: int = 0) -> None:
        """Turn `epochs` of so many batches into `train_iters` of so many, after steps `taken` and batches `seen`; limit `warmup_iters`."""
        if self.epochs is not None:
            left = max(self.epochs * epoch - seen, 0)
            self.train_iters, self.epochs = taken + math.ceil(left / step), None
            for name in ("save_interval", "eval_interval"):
                if getattr(self, name) is None:
                    setattr(self, name, max(epoch // step, 1))
        if self.warmup_part is not None and self.warmup_iters is not None:
            self.warmup_iters = min(self.warmup_iters, int(self.warmup_part * self.train_iters))


RIVALS = ("train_iters", "epochs"), ("warmup_iters", "warmup")  # where a later file or the command line gives one, the other is taken back


@dataclass
class DataConfig:
    """The `data:` section: training clips. None means the model's."""

    video_size: tuple[int, int] | None = size(
        None, "height and width that clips are resized and cropped to (default: the model's)", low=1
    )
    fps: int | None = size(None, "frames per second (default: the model's)", low=1, high=1000)
    max_num_frames: int | None = size(None, "frames of a clip, 4 n + 1 (default: the model's)", low=1)
    skip_frms_num: int = size(3, "source frames to skip at both ends, where cuts are", low=0)
