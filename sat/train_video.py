"""Fine-tune on clips with references: `python sat/train_video.py --model cogvideox_5b [--resume] [options]`.

Alone or under torchrun. The run's folder gets checkpoints, metrics.jsonl, TensorBoard files and sampled videos. SIGTERM and
Ctrl-C save first; --resume goes on from the last checkpoint as if nothing had happened.
"""

import dataclasses
import os
import time
from collections.abc import Callable

from concat_id.errors import UserError, run
from concat_id.startup import prepare_process


def train(load_parts: Callable | None = None, description: str = __doc__) -> int:
    """Read the clips, load the networks, take the steps; `load_parts` returns the `Parts` of a training of one's own."""
    prepare_process()
    from concat_id.config.command_line import read_command_line

    bases, overrides = read_command_line(description, training=True)

    from concat_id.config.loading import load_config

    config = load_config(bases, overrides)

    from concat_id.distributed import choose_device, warn_of_emulation, world_size
    from concat_id.training import preparation as prepare
    from concat_id.training.engine import Engine, start_processes
    from concat_id.training.settings import engine_settings
    from concat_id.training.trainer import Trainer, memory_told
    from concat_id.training.validation import Validation

    parts = load_parts() if load_parts else prepare.Parts()
    settings = engine_settings(config, world_size())
    records, valid_records = prepare.read_lists(config)
    device = choose_device(config.args.device)
    warn_of_emulation(device, config.args.dtype_name)
    start_processes(device)
    with prepare.opened_run(config) as (folder, saved):
        latents = prepare.open_latent_cache(config)
        sampler, loader = prepare.build_data(config, records, folder, settings.micro_batch_size, latents, parts)
        config.training.count_steps(sampler.batches_per_epoch / (settings.accumulation * world_size()))
        prepare.record_configuration(folder, config, settings.notes)

        embed = prepare.embed_captions(config, [*records, *valid_records], device)
        autoencoder = prepare.load_autoencoder(config, device)
        objective = parts.objective(config, autoencoder, embed, device, latents)
        validation = None
        if valid_records:
            clips = parts.dataset(valid_records, config.data, training=False, bad_clips=folder / "bad_clips.jsonl")
            validation = Validation(config, clips, objective, make_sampler(config, device, embed), folder / "samples")

        with memory_told(lambda: "the engine"):
            engine = Engine(prepare.load_network(config, saved, device), settings, device)
        trainer = Trainer(config, folder, engine, objective, sampler, validation, saved)
        return trainer.train(loader)


def make_sampler(config, device, embed):
    """The sampling of validation videos, as long and as large as the training clips, for any network."""
    from concat_id.sampling.pipeline import make_pipeline

    frames = (config.data.max_num_frames - 1) // config.model.transformer.time_compressed_rate + 1
    sampling = {"sampling_image_size": config.data.video_size, "sampling_num_frames": frames, "memory": "high"}
    config = dataclasses.replace(config, args=dataclasses.replace(config.args, **sampling))
    pipeline = make_pipeline(config, device)
    pipeline.embed_negative_prompt(embed)

    def sample(network, prompt_embeds, ref_latents):
        pipeline.transformer = network
        return pipeline.sample(prompt_embeds, ref_latents, config.args.seed)

    return sample


def main(load_parts: Callable | None = None, description: str = __doc__) -> int:
    """Train; what all processes find wrong, the first one tells, after which torchrun ends the others."""
    try:
        return train(load_parts, description)
    except UserError:
        time.sleep(3 if os.environ.get("RANK", "0") != "0" else 0)
        raise


if __name__ == "__main__":
    run(main)
