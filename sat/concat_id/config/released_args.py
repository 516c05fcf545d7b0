"""Keys of the original's `args:` sections that nothing reads."""

from typing import Any, NamedTuple

from concat_id.config.typed import Origins, mismatch
from concat_id.errors import warn


class Accepted(NamedTuple):
    """A key of the original's `args:` that nothing reads: why, the only value it can have, and whether its users should hear of it."""

    reason: str
    only: Any = None
    told: bool = False


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
    "model_parallel_size": Accepted("weights are shared by ZeRO (args.zero_stage), tokens by args.parallel", 1),
    "distributed_backend": Accepted("it follows from args.device"),
    "dist_backend": Accepted("it follows from args.device"),
    "fp32_allreduce": Accepted("deepspeed.communication_data_type: fp32 does that", False),
    "local_rank": Accepted("torchrun says it"),
    "save_args": Accepted("every run's folder has training_config.yaml"),
    "block_size": Accepted("train_data and valid_data are separate lists"),
    "debug": Accepted("there is no other way of running", False),
    "log_image": Accepted("validation videos are always logged; args.eval_samples: 0 makes none", told=True),
    "train_data_weights": Accepted("name a list of args.train_data several times to see it more often", told=True),
    "resume_dataloader": Accepted("--resume goes on in the order of clips by itself", told=True),
    "lr_decay_iters": Accepted("the learning rate decays until args.train_iters", told=True),
    "exit_interval": Accepted("set args.train_iters; Ctrl-C and SIGTERM save before they stop", told=True),
    "summary_dir": Accepted("TensorBoard files are in the run's folder, in args.save", told=True),
    "tensorboard_dir": Accepted("TensorBoard files are in the run's folder, in args.save", told=True),
    "test_data": Accepted("args.valid_data is measured while training, sat/evaluate_identity.py measures videos", told=True),
    "deepspeed_config": Accepted("the deepspeed: section says it", told=True),
    "profiling": Accepted("deepspeed.flops_profiler and deepspeed.wall_clock_breakdown measure steps", told=True),
    "input_dir": Accepted("prompts come from args.input_file or --prompt", told=True),
    "final_size": Accepted("args.sampling_image_size says it", told=True),
    "grid_num_rows": Accepted("every video is a file of its own", told=True),
    "grid_num_columns": Accepted("every video is a file of its own", told=True),
    "lcm_steps": Accepted("args.num_inference_steps says how many steps are taken", told=True),
}


def drop_accepted(args: dict[str, Any], origins: Origins) -> None:
    """Remove the accepted keys from an `args:` section; warn of those whose users expect an effect.

    Raises `UserError` where the value asks for something else than what happens anyway.
    """
    from concat_id.distributed import rank  # which imports torch; --help has none

    for name in [name for name in args if name in ACCEPTED_ARGS]:
        reason, only, told = ACCEPTED_ARGS[name]
        value = args.pop(name)
        if only is not None and str(value).lower() != str(only).lower():
            raise mismatch(f"args.{name}", value, str(only).lower(), origins, f"{reason}, so remove the key")
        if told and value not in (None, False, [], "") and rank() == 0:
            warn(f"{origins.place(f'args.{name}')}: has no effect; {reason}")
