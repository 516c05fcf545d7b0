"""Train the small video autoencoder: `python demo/train_autoencoder.py --output 3d-vae.pt --lists data/people/clips.json`.

All of it learns single frames, then its encoder to give clips the latents of every fourth frame alone, at last its decoder how clips
move; the file has the released format. --load starts from weights: `--load FILE --images 0 --key-frames 0` teaches their decoder
alone, and latents stay valid; without --output it only measures. The same command goes on with a run that was stopped.
"""

import sys
from pathlib import Path

sys.path.extend([str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "sat")])

from concat_id.config.parser import Namespace, Parser
from concat_id.errors import UserError, check_minimum, run
from concat_id.startup import prepare_process

TRAINING = "images", "key_frames", "clips", "learning_rate", "latent_noise", "seed"
SIZE, FPS = (96, 144), 8.0  # of the frames


def read_arguments() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--lists", type=Path, nargs="+", required=True, metavar="FILE", help="lists in JSON, of clips or images")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write, 3d-vae.pt")
    parser.add_argument("--load", type=Path, metavar="FILE", help="weights to start from")
    parser.add_argument("--images", type=int, default=2500, metavar="N", help="steps with single frames (default: %(default)s)")
    parser.add_argument("--key-frames", type=int, default=1000, metavar="N", help="for its encoder, with clips (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=900, metavar="N", help="for its decoder, with clips (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=49, metavar="N", help="of a clip, 8k+1 (default: %(default)s)")
    parser.add_argument("--most", type=int, default=1000, metavar="N", help="entries to read, 2 MB each (default: %(default)s)")
    parser.add_argument("--latent-noise", type=float, default=0.6, metavar="X", help="largest noise on latents (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, metavar="X", help="of single frames' steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.output is None and arguments.load is None:
        raise UserError("command line: found neither --output nor --load, expected a file to write or one to measure; name it")
    check_minimum(arguments, dict.fromkeys(TRAINING, 0) | {"frames": 1, "most": 2})
    if arguments.frames % 8 != 1:
        raise UserError(f"command line: --frames: found {arguments.frames}, expected 8k+1")
    if arguments.output is not None and arguments.output.exists():
        raise UserError(f"{arguments.output}: exists already; choose another --output or remove it first")
    return arguments


def show(title: str, levels: dict[str, float]) -> None:
    """Print decibels."""
    print(f"{title}: " + ", ".join(f"{name} {level:.2f} dB" for name, level in levels.items()), flush=True)


def main() -> int:
    """Read the clips, measure, train, measure again, write."""
    prepare_process()
    arguments = read_arguments()

    import dataclasses

    from concat_id.config.loading import load_config
    from concat_id.data.clips import Window
    from concat_id.models.autoencoder import VideoAutoencoder
    from networks.autoencoder import AutoencoderTrainer, AutoencoderTraining
    from networks.footage import read_footage

    config, loaded = load_config([str(Path(__file__).resolve().parents[1] / "configs" / "mini.yaml")]).model.autoencoder, None
    if arguments.load is not None:
        loaded = VideoAutoencoder.from_config(dataclasses.replace(config, path=str(arguments.load)), scale_factor=1.0)
    footage = read_footage(arguments.lists, Window(FPS, arguments.frames, 0, SIZE), arguments.most)
    training = AutoencoderTraining(**{name: getattr(arguments, name) for name in TRAINING})
    trainer = AutoencoderTrainer(config, footage, training, arguments.output, loaded)
    if loaded is not None:
        show(str(arguments.load), trainer.measure())
    if arguments.output is not None:
        trainer.train()
        show(str(arguments.output), trainer.measure())
        trainer.finish()
    return 0


if __name__ == "__main__":
    run(main)
