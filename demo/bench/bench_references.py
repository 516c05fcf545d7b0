"""Whether a model uses its references: its loss on faces with the right one, with none and with somebody else's.

Run as `python demo/bench/bench_references.py --base configs/mini.yaml demo/configs/stage2.yaml
--load models/mini/transformer --valid_data data/mini/lists/stage_2_valid.json`. Takes the first single images of one person of the
lists. The loss is that of training, in float32, at fixed timesteps and noise: less with the right reference than with somebody else's
means that the model knows whom it shows, more than with none that it believes it too much. Lists go from person to person, so somebody
else's is that of half a batch away.
"""

import sys
from pathlib import Path

sys.path.extend([str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "sat")])

from concat_id.startup import prepare_process

NUMBER, BATCH, TIMESTEPS = 48, 16, (200, 400, 600, 800)


def main() -> None:
    """Read images, compute the losses, print a table."""
    prepare_process()
    from concat_id.config.command_line import read_command_line
    from concat_id.config.loading import load_config

    bases, overrides = read_command_line(__doc__, training=True)
    config = load_config(bases, {"bf16": "false"} | overrides)

    import torch

    from concat_id.data.dataset import ClipDataset, collate
    from concat_id.data.records import read_records
    from concat_id.diffusion.denoiser import Condition
    from concat_id.distributed import choose_device
    from concat_id.training import preparation as prepare
    from concat_id.training.engine import start_processes
    from concat_id.training.objective import Objective, generator_of

    device = choose_device(config.args.device)
    start_processes(device)
    found = [record for record in read_records(config.training.valid_data) if record.is_image and record.num_refs == 1]
    records = found[:NUMBER]
    network = prepare.load_network(config, None).to(device).eval()
    objective = Objective(config, prepare.load_autoencoder(config, device), prepare.embed_captions(config, records, device), device)
    clips = ClipDataset(records, config.data, training=False)
    losses = {name: [0.0] * len(TIMESTEPS) for name in ("right", "none", "other")}
    for start in range(0, len(records), BATCH):
        batch = collate([clips[0, index] for index in range(start, min(start + BATCH, len(records)))]).as_floats()
        text, refs, latents = objective.embed(batch.captions), objective.encode_refs(batch.refs), objective.encode_video(batch)
        for place, timestep in enumerate(TIMESTEPS):
            noise = torch.randn(latents.shape, generator=generator_of("references", start, timestep)).to(device)
            at = torch.full((len(latents),), timestep, device=device)
            for name, shown in {"right": refs, "none": torch.zeros_like(refs), "other": refs.roll(len(refs) // 2, 0)}.items():
                with torch.no_grad():
                    loss = objective.recipe.loss(network, objective.recipe.schedule, latents, noise, at, Condition(text, shown))
                losses[name][place] += loss.sum().item() / len(records)
    print(f"{len(records)} images\ntimestep " + " ".join(f"{timestep:>7}" for timestep in TIMESTEPS))
    for name, values in losses.items():
        print(f"{name:<8} " + " ".join(f"{value:7.4f}" for value in values))


if __name__ == "__main__":
    main()
