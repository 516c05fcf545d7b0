"""Train a stage of the demonstration model: `python demo/train_stage.py --base configs/mini.yaml demo/configs/stage1.yaml`.

Like sat/train_video.py, with the same options, but with batches, repeats and noise levels that suit a small model (networks/stages.py).
"""

import sys
from pathlib import Path

sys.path.extend([str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "sat")])

from concat_id.errors import run
from concat_id.startup import prepare_process
from train_video import main as train_with
from train_video import make_sampler


def main() -> int:
    """Train a stage."""
    return train_with(train)


def train() -> int:
    """Read the clips, load the networks, take the steps."""
    prepare_process()
    from concat_id.config.command_line import read_command_line
    from concat_id.config.loading import load_config

    bases, overrides = read_command_line(__doc__, training=True)
    config = load_config(bases, overrides)

    from concat_id.distributed import choose_device, world_size
    from concat_id.training import preparation as prepare
    from concat_id.training.engine import Engine, start_processes
    from concat_id.training.settings import engine_settings
    from concat_id.training.trainer import Trainer
    from concat_id.training.validation import Validation
    from networks.stages import LogitNormalObjective, MixedSampler, StageClips, repeated

    settings = engine_settings(config, world_size())
    records, valid_records = prepare.read_lists(config)
    device = choose_device(config.args.device)
    start_processes(device)
    with prepare.opened_run(config) as (folder, saved):
        latents = prepare.open_latent_cache(config)
        micro = settings.micro_batch_size
        sampler, loader = prepare.build_data(config, repeated(records), folder, micro, latents, StageClips, MixedSampler)
        config.training.count_steps(sampler.batches_per_epoch / (settings.accumulation * world_size()))
        prepare.record_configuration(folder, config, settings.notes)

        embed = prepare.embed_captions(config, [*records, *valid_records], device)
        objective = LogitNormalObjective(config, prepare.load_autoencoder(config, device), embed, device, latents)
        validation = None
        if valid_records:
            clips = StageClips(valid_records, config.data, training=False, bad_clips=folder / "bad_clips.jsonl")
            validation = Validation(config, clips, objective, make_sampler(config, device, embed), folder / "samples")

        engine = Engine(prepare.load_network(config, saved), settings, device)
        return Trainer(config, folder, engine, objective, sampler, validation, saved).train(loader)


if __name__ == "__main__":
    run(main)
