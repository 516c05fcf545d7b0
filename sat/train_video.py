"""Fine-tune on clips with references: `python sat/train_video.py --model cogvideox_5b [--resume] [options]`.

Alone or under torchrun. The run's folder gets checkpoints, metrics.jsonl, TensorBoard files and sampled videos. SIGTERM and
Ctrl-C save first; --resume goes on from the last checkpoint as if nothing had happened.
"""

from concat_id.startup import run  # isort: split

import dataclasses
from collections.abc import Callable

from concat_id.training.script import run_training


def train(config, load_objective: Callable | None = None) -> int:
    """Read the clips, load the networks, take the steps; `load_objective` returns a subclass of `Objective` of one's own."""
    from concat_id.data.dataset import ClipDataset
    from concat_id.models.backbones import load_autoencoder
    from concat_id.training import preparation as prepare
    from concat_id.training.objective import Objective
    from concat_id.training.run import opened_training
    from concat_id.training.validation import Validation

    records, valid_records = prepare.read_lists(config)
    with opened_training(config) as training:
        device, bad_clips = training.device, training.folder / "bad_clips.jsonl"
        latents = prepare.open_latent_cache(config)
        clips = ClipDataset(records, config.data, True, config.args.seed, bad_clips, latents=latents)
        loader = training.order(clips)

        embed = prepare.embed_captions(config, [*records, *valid_records], device)
        objective = (load_objective() if load_objective else Objective)(config, load_autoencoder(config, device), embed, device, latents)
        validation = None
        if valid_records:
            clips = ClipDataset(valid_records, config.data, training=False, bad_clips=bad_clips)
            validation = Validation(config, clips, objective, make_sampler(config, device, objective), training.folder / "samples")
        return training.train(lambda: prepare.load_network(config, training.saved, device), loader, objective, validation)


def make_sampler(config, device, objective):
    """The sampling of validation videos, as long and as large as the training clips, for any network."""
    from concat_id.sampling.pipeline import make_pipeline

    frames = config.model.latent_frames(config.data.max_num_frames)
    sampling = {"sampling_image_size": config.data.video_size, "sampling_num_frames": frames, "memory": "high"}
    config = dataclasses.replace(config, args=dataclasses.replace(config.args, **sampling))
    pipeline = make_pipeline(config, device)
    pipeline.embed_negative_prompt(objective.embed)

    def sample(network, batch):
        pipeline.transformer = network
        return pipeline.sample(objective.embed(batch.captions), objective.encode_refs(batch.refs), config.args.seed)

    return sample


def main(load_objective: Callable | None = None, description: str = __doc__) -> int:
    """Train, with the class that `load_objective` returns."""
    return run_training(lambda config: train(config, load_objective), description, ("cogvideox", "wan"))


if __name__ == "__main__":
    run(main)
