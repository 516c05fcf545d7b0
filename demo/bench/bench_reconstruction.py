"""What an autoencoder alone keeps of videos: encodes and decodes those of a run, for `sat/evaluate_identity.py` to measure both.

Run as `python demo/bench/bench_reconstruction.py --videos data/mini/lists/test_clips_1 --output /tmp/decoded`.
A model whose people move as much as those of real clips cannot be better than what its autoencoder makes of these.
"""

import argparse
import dataclasses
import shutil
import sys
from pathlib import Path

sys.path.extend([str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "sat")])

from concat_id.startup import prepare_process


def main() -> None:
    """Read every video of the run, encode, decode, write it beside a copy of its info.json, print the mean quality."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--videos", type=Path, required=True, help="run folder: a folder with video.mp4 and info.json for each video")
    parser.add_argument("--output", type=Path, required=True, help="new folder for the decoded run")
    parser.add_argument("--load", default="models/mini/vae/3d-vae.pt")
    arguments = parser.parse_args()
    prepare_process()

    import imageio.v3 as imageio
    import torch

    from concat_id.config.loading import load_config
    from concat_id.models.autoencoder import VideoAutoencoder
    from concat_id.video.writing import to_frames, write_video
    from networks.autoencoder import decibels
    from networks.footage import to_video

    settings = dataclasses.replace(load_config(["configs/mini.yaml"]).model.autoencoder, path=arguments.load)
    autoencoder, levels = VideoAutoencoder.from_config(settings, scale_factor=1.0), []
    for source in sorted(arguments.videos.glob("*/video.mp4")):
        frames = torch.from_numpy(imageio.imread(source))
        video = to_video(frames[: (len(frames) - 1) // 8 * 8 + 1])[None]
        decoded = autoencoder.decode(autoencoder.encode(video)).clamp(-1, 1)
        levels.append(decibels(decoded, video))
        target = arguments.output / source.parent.name
        shutil.copytree(source.parent, target, ignore=shutil.ignore_patterns("video.mp4"))
        write_video(target / "video.mp4", to_frames(decoded[0]), 8)
    print(f"{len(levels)} videos, {sum(levels) / len(levels):.2f} dB")


if __name__ == "__main__":
    main()
