"""How well rendered people pass for people: faces found, and SFace cosines of one person and of different ones.

Run as `python demo/bench/bench_people.py --people 60 --shots 3`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.extend([str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "sat")])

from concat_id.startup import prepare_process

MOMENTS = (0, 12, 24, 36, 48)  # frames of a shot of 49


def main() -> None:
    """Render, find, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--people", type=int, default=60)
    parser.add_argument("--shots", type=int, default=3)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--detector", default="models/face_detector")
    parser.add_argument("--recognizer", help="folder (default: as in sat/evaluate_identity.py)")
    arguments = parser.parse_args()
    prepare_process()

    from concat_id.face.detection import FaceDetector
    from concat_id.face.recognition import load_recognizer
    from world.kernel_cache import keep_kernels

    keep_kernels()
    from world.dataset import make_person
    from world.head import HeadModel
    from world.render import ShotRenderer
    from world.shots import sample_shot

    head, detector, recognizer = HeadModel(), FaceDetector(arguments.detector, "cpu"), load_recognizer(arguments.recognizer)
    rows, frames = [], 0
    for person in range(arguments.people):
        cast = [make_person(head, arguments.seed, person)]
        for number in range(arguments.shots):
            shot = sample_shot(cast, np.random.default_rng([arguments.seed, person, number]), 49)
            renderer = ShotRenderer(head, cast, shot, (96, 144))
            for moment in MOMENTS:
                image = Image.fromarray(renderer.frame(moment)[0])
                frames += 1
                rows += [(person, number, recognizer.embed(image, face)) for face in detector.detect(image)[:1]]
    people, shots, vectors = (np.array(column) for column in zip(*rows, strict=True))
    cosines, same, shot_same = vectors @ vectors.T, people[:, None] == people, shots[:, None] == shots
    print(f"face found in {len(rows)} of {frames} frames")
    for name, pairs in (("one person, different shots", same & ~shot_same), ("different people", ~same)):
        low, high = np.percentile(cosines[pairs], [5, 95])
        print(f"{recognizer.name} cosine, {name}: {cosines[pairs].mean():.3f} (5 %-95 %: {low:.2f}-{high:.2f})")


if __name__ == "__main__":
    main()
