"""How much of a likeness an autoencoder keeps when there is noise on its latents, as a diffusion model leaves it, or when they are moved.

Run as `python demo/bench/bench_latents.py --load models/mini/vae/3d-vae.pt`. Images of one moment, each compared with
another photograph of the person; nobody wears a hat or glasses or turns.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.extend([str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "sat")])

from concat_id.startup import prepare_process

SIZE = (96, 144)


def main() -> None:
    """Render, encode, add noise, decode, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--load", default="models/mini/vae/3d-vae.pt")
    parser.add_argument("--people", type=int, default=32)
    parser.add_argument("--noise", type=float, nargs="+", default=[0, 0.3, 0.5, 0.7])
    parser.add_argument("--seed", type=int, default=77)
    arguments = parser.parse_args()
    prepare_process()

    from concat_id.config.loading import load_config
    from concat_id.face.detection import FaceDetector
    from concat_id.face.recognition import load_recognizer
    from concat_id.models.autoencoder import VideoAutoencoder
    from concat_id.video.transforms import to_tensor
    from concat_id.video.writing import to_frames
    from networks.autoencoder import decibels, draw_motions, moved
    from world.kernel_cache import keep_kernels

    keep_kernels()
    from world.dataset import make_person
    from world.head import HeadModel

    settings = dataclasses.replace(load_config(["configs/mini.yaml"]).model.autoencoder, path=arguments.load)
    autoencoder = VideoAutoencoder.from_config(settings, scale_factor=1.0)
    head, detector, recognizer = HeadModel(), FaceDetector("models/face_detector", "cpu"), load_recognizer()

    def vector(image: Image.Image) -> np.ndarray:
        faces = detector.detect(image)
        return recognizer.embed(image, faces[0]) if faces else 0.0

    people = [make_person(head, arguments.seed, number) for number in range(arguments.people)]
    photographs = [vector(photograph(head, person, 0)) for person in people]
    images = [photograph(head, person, 1, neutral=False) for person in people]

    def told(title: str, shown: list[Image.Image]) -> None:
        cosines = [float(np.sum(vector(image) * own)) for image, own in zip(shown, photographs, strict=True)]
        print(f"{title}: {recognizer.name} {np.mean(cosines):.3f}", flush=True)

    told("as rendered", images)
    pixels = torch.stack([to_tensor(image) for image in images])[:, :, None]
    latents = autoencoder.encode(pixels)
    for level in arguments.noise:
        noisy = latents + level * torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
        decoded = autoencoder.decode(noisy).clamp(-1, 1)
        told(f"noise of {level:g} on latents of {latents.std():.2f}", [Image.fromarray(to_frames(one)[0]) for one in decoded])
    maps = draw_motions(len(pixels), SIZE[1] / SIZE[0], 1.0, torch.Generator().manual_seed(1))
    expected, carried = moved(pixels, maps), moved(latents.transpose(1, 2), maps).transpose(1, 2)
    apart = (autoencoder.encode(expected) - carried).square().mean() / latents.var()
    print(f"moved latents, decoded: {decibels(autoencoder.decode(carried), expected):.1f} dB of the moved images; they differ")
    print(f"from the latents of those by {apart:.2f} of their variance; unmoved: {decibels(autoencoder.decode(latents), pixels):.1f} dB")


def photograph(head, person, number: int, neutral: bool = True) -> Image.Image:
    """Render a person: a calm photograph, or a moment of a shot in which nothing hides the face."""
    from world.render import ShotRenderer
    from world.shots import sample_shot

    for attempt in range(100):
        shot = sample_shot([person], np.random.default_rng([number, attempt, int(person.name[1:])]), 49, neutral)
        facts = shot.performances[0].facts
        if facts["hat"] is None and facts["glasses"] is None and facts["turn"] == "none":
            return Image.fromarray(ShotRenderer(head, [person], shot, SIZE).frame(24)[0])
    raise ValueError(f"found no shot of {person.name} without hat, glasses and turn in 100")


if __name__ == "__main__":
    main()
