"""Compare designs of the small autoencoder at equal processor time: `python demo/bench/bench_designs.py --seconds 300`.

Trains each on pieces of clips of the near world, and measures on clips of other people who turn their heads: decibels, and the likeness to
a photo of the same person, by SFace, of decoded frames and of rendered ones.
"""

import itertools
import sys
import time
from pathlib import Path

sys.path.extend([str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "sat")])

from concat_id.config.parser import Parser
from concat_id.startup import prepare_process, run

CHANNELS = (32, 32, 64)  # of the levels
SPATIAL = 4  # pixels of a latent along each side
DESIGNS = {"4x4x4 16": (4, 16), "4x4x2 16": (2, 16), "4x4x2 32": (2, 32)}  # frames of a latent, its channels
PIECES = 2  # a step
UNSEEN = 100_000  # number of the first person to measure on
TURNED = 0.2  # radians between a clip's first and last frame


def draw(people: int, turning: int):
    """Draw clips (N, F, H, W, 3) to learn from, and clips of turning heads of others with a reference of each."""
    import numpy as np

    from networks.material import Artist, Plan

    artist = Artist(Plan((128, 96), 17, images=0, portraits=0))
    learned = np.concatenate([artist.draw(number).clips for number in range(people)])
    artist.plan = Plan((128, 96), 17, images=0, portraits=1)
    held_out, numbers = [], itertools.count(UNSEEN)
    while len(held_out) < turning:
        person = artist.draw(next(numbers))
        if " turns " in f" {person.captions[0]} ":
            held_out.append((person.clips[0], person.references[1, 0]))
    return learned, held_out


def likeness(frames, reference, detector, recognizer) -> list[float]:
    """Cosines of SFace between every second frame's face and a reference's."""
    from PIL import Image

    def vectors(images):
        found = [(image, detector.search(image).largest) for image in map(Image.fromarray, images)]
        return [recognizer.embed(image, face) for image, face in found if face is not None]

    (person,) = vectors([reference]) or [None]
    return [] if person is None else [float(vector @ person) for vector in vectors(frames[::2])]


def linear_bound(learned, held_out, temporal: int, channels: int) -> float:
    """Decibels that the best linear code of as many numbers keeps of blocks of `temporal` frames, clips' first frames left out."""
    import torch

    def blocks(clip):
        video = torch.from_numpy(clip[1:]).float() / 127.5 - 1
        cut = video.unflatten(2, (-1, SPATIAL)).unflatten(1, (-1, SPATIAL)).unflatten(0, (-1, temporal))
        return cut.permute(0, 2, 4, 1, 3, 5, 6).flatten(3)

    seen = torch.cat([blocks(clip).flatten(0, 2)[::7] for clip in learned])
    mean = seen.mean(0)
    basis = torch.linalg.eigh((seen - mean).T @ (seen - mean)).eigenvectors[:, -channels:]
    rest = torch.stack([blocks(clip).flatten(0, 2) - mean for clip, _ in held_out])
    return float((10 * torch.log10(4 / (rest - rest @ basis @ basis.T).square().mean((1, 2)))).mean())


def main() -> int:
    """Draw, train each design, measure, print a line of a table for each."""
    prepare_process()
    parser = Parser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="processor time of each (default: %(default)s)")
    parser.add_argument("--designs", nargs="+", choices=DESIGNS, default=list(DESIGNS), help="which (default: all)")
    arguments = parser.parse_args()

    import numpy as np
    import torch

    from concat_id.config.cogvideox import AutoencoderConfig
    from concat_id.face.detection import FaceDetector
    from concat_id.face.recognition import load_recognizer
    from concat_id.video.transforms import to_frames
    from networks.autoencoder import AutoencoderTrainer, cut_pieces, decibels, to_video

    detector, recognizer = FaceDetector("models/face_detector", "cpu"), load_recognizer()
    learned, held_out = draw(people=150, turning=16)
    rendered = [likeness(clip, reference, detector, recognizer) for clip, reference in held_out]
    print(f"rendered: SFace {np.mean(sum(rendered, [])):.3f}", flush=True)
    print("| design | linear | steps | dB of pieces at 1/4, 1/2, end | dB | SFace |", flush=True)
    for name in arguments.designs:
        temporal, latent_channels = DESIGNS[name]
        trainer = AutoencoderTrainer(AutoencoderConfig("", CHANNELS, 1, latent_channels), temporal, torch.device("cpu"))
        rng, start, curve = np.random.default_rng(0), time.process_time(), []
        while (progress := (time.process_time() - start) / arguments.seconds) < 1:
            pieces = cut_pieces(lambda: learned[rng.integers(len(learned))], PIECES, progress, rng)  # noqa: B023, called before it changes
            curve.append(float(trainer.step(to_video(torch.from_numpy(pieces)), progress)))
        autoencoder = trainer.finish([to_video(torch.from_numpy(clip))[None] for clip in learned[:8]])
        quality, alike = [], []
        for clip, reference in held_out:
            video = to_video(torch.from_numpy(clip))[None]
            decoded = autoencoder.decode(autoencoder.encode(video)).clamp(-1, 1)
            quality.append(float(decibels(decoded, video).mean()))
            alike += likeness(to_frames(decoded[0]), reference, detector, recognizer)
        parts = [np.mean(curve[max(0, int(len(curve) * share) - 20) : int(len(curve) * share)]) for share in (0.25, 0.5, 1)]
        linear = linear_bound(learned, held_out, temporal, latent_channels)
        shown = ", ".join(f"{part:.1f}" for part in parts)
        print(f"| {name} | {linear:.1f} | {len(curve)} | {shown} | {np.mean(quality):.1f} | {np.mean(alike):.3f} |", flush=True)
    return 0


if __name__ == "__main__":
    run(main)
