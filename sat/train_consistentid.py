"""Train ConsistentID's adapter on portraits that sat/prepare_portraits.py made.

  python sat/train_consistentid.py --train_data data/portraits/JSON_all.json [options]
  python sat/train_consistentid.py --train_data data/portraits/JSON_all.json --resume

Alone or under torchrun. --load ADAPTER trains that one on, else a new one is trained. The run's folder gets checkpoints with the adapter
alone, metrics.jsonl, TensorBoard files and sampled portraits. SIGTERM and Ctrl-C save first; --resume goes on from the last checkpoint as
if nothing had happened. Sampling takes the run's folder, --load exps/RUN; sat/convert_weights.py to-consistentid writes the released
file's layout.
"""

from concat_id.startup import run  # isort: split

import dataclasses

from concat_id.training.script import run_training


def train(config) -> int:
    """Read the portraits, load the networks, take the steps."""
    from concat_id.training import consistentid as prepare
    from concat_id.training.run import opened_training
    from concat_id.training.validation import Validation

    records, valid_records = prepare.read_lists(config)
    with opened_training(config) as training:
        loader = training.order(prepare.make_dataset(training, records))
        base, features = prepare.load_frozen(config, training.device)
        objective = prepare.PortraitObjective(config, base, features, training.device)
        validation = None
        if valid_records:
            portraits, sample = prepare.make_dataset(training, valid_records), make_sampler(config, training.device, base, features)
            validation = Validation(config, portraits, objective, sample, training.folder / "samples")
        return training.train(lambda: prepare.load_network(config, base, features, training.saved), loader, objective, validation)


def make_sampler(config, device, base, features):
    """The sampling of validation portraits, as large as the training images, for any adapter in the base model."""
    from concat_id.sampling.consistentid import Person, Pipeline

    config = dataclasses.replace(config, args=dataclasses.replace(config.args, sampling_image_size=config.data.video_size))

    def sample(network, batch):
        parts = batch.parts[0]
        of_parts = features(batch.part_pixels[0])[: len(parts)]
        vector = batch.identities[0].to(device, base.unet.dtype)
        person = Person(vector, features(batch.clip_pixels)[0], of_parts, parts)
        return Pipeline(config, device, loaded=(base, network, features)).sample(batch.captions[0], person, config.args.seed)

    return sample


def main() -> int:
    """Train ConsistentID."""
    return run_training(train, __doc__, ("consistentid",), "configs/training/consistentid.yaml")


if __name__ == "__main__":
    run(main)
