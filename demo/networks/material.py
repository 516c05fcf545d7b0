"""People to train on, drawn in further processes and kept in memory: clips, and what the model sees of their faces as references."""

import os
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing import get_context, parent_process

import numpy as np
from PIL import Image

CROP = 96  # pixels of a reference's side
TOGETHER = 4  # people of whom one is drawn with the next one as well
SEED = 0  # of the world


@dataclass(frozen=True)
class Plan:
    """What is drawn of `people` together at `size` (height, width): clips of `frames`, late frames of other shots, and calm portraits."""

    size: tuple[int, int]
    frames: int
    images: int = 5
    portraits: int = 2
    people: int = 1


@dataclass
class Person:
    """Clips (N, F, H, W, 3), images (M, H, W, 3), captions of both, references (R, P, H, W, 3), of clips first, then images; uint8.

    P people are seen together, `number` and those after it. `traits` (R, P, 4) tell how references differ: yaw in radians, number of
    expression and of light, covered eyes.
    """

    number: int
    clips: np.ndarray
    images: np.ndarray
    captions: list[str]
    references: np.ndarray
    traits: np.ndarray


class Artist:
    """Draws people by their number."""

    def __init__(self, plan: Plan):
        from world.kernel_cache import keep_kernels

        keep_kernels()
        from world.head import HeadModel

        self.plan, self.head = plan, HeadModel()

    def draw(self, number: int) -> Person:
        """Draw one person, or as many as the plan has from this one on; the same number gives the same."""
        from world.captions import describe
        from world.dataset import make_person
        from world.render import ShotRenderer
        from world.shots import LATE, NEAR, sample_shot

        plan, (height, width) = self.plan, self.plan.size
        cast = [make_person(self.head, SEED, number + place) for place in range(plan.people)]
        clips, images, captions, references, traits = [], [], [], [], []
        for index in range(1 + plan.images + plan.portraits):
            moving, calm = index == 0, index > plan.images
            rng = np.random.default_rng([SEED, 18 + plan.people, number, index])
            seen, told = [], []
            for group in [[person] for person in cast] if calm else [cast]:  # a portrait shows one person
                shot = sample_shot(group, rng, 1 if calm else plan.frames, calm, NEAR)
                captions += [] if calm else [describe(shot.facts, rng)]
                renderer = ShotRenderer(self.head, group, shot, (height, width // plan.people) if calm else plan.size)
                chosen = int(rng.integers(0 if moving or calm else int(LATE * plan.frames), 1 if calm else plan.frames))
                frames = {frame: renderer.frame(frame) for frame in (range(plan.frames) if moving else [chosen])}
                for place in range(len(group)):
                    seen.append(reference_of(*frames[chosen], renderer.keypoints(chosen, place), plan.size))
                    told.append(traits_of(shot, chosen, place))
            if moving:
                clips.append(np.stack([image for image, _ in frames.values()]))
            elif not calm:
                images.append(frames[chosen][0])
            references.append(np.stack(seen))
            traits.append(told)
        images = np.array(images, np.uint8).reshape(-1, *plan.size, 3)  # of which there may be none
        return Person(number, np.array(clips), images, captions, np.stack(references), np.array(traits, np.float32))


def reference_of(frame: np.ndarray, classes: np.ndarray, keypoints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cut a face out as sampling does, upright, its surroundings black by the exact classes (H, W), and fit it into `size`."""
    from concat_id.face.detection import alignment, warp
    from concat_id.face.reference import mask_surroundings
    from concat_id.video.transforms import fit_and_pad

    matrix = alignment(keypoints, CROP)
    masked, _ = mask_surroundings(warp(Image.fromarray(frame), matrix, CROP), classes_of_crop(classes, matrix, CROP, CROP))
    return np.asarray(fit_and_pad(masked, size))


def classes_of_crop(classes: np.ndarray, matrix: np.ndarray, side: int, size: int) -> np.ndarray:
    """Cut the classes (H, W) of an image as `matrix` cuts a crop of `side` pixels, scaled to (size, size); background beyond the edge."""
    middles = (np.arange(size) + 0.5) * side / size - 0.5
    places = (np.stack(np.meshgrid(middles, middles), axis=-1) - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    last = np.array(classes.shape[::-1]) - 1
    x, y = np.moveaxis(np.rint(places.clip(0, last)).astype(int), -1, 0)
    return np.where(((places > -0.5) & (places < last + 0.5)).all(axis=-1), classes[y, x], 0)


def traits_of(shot, frame: int, place: int) -> list[float]:
    """Say in numbers what a person of a shot does in a frame."""
    from world.shots import EXPRESSIONS, LIGHTS

    performance, facts = shot.performances[place], shot.facts["people"][place]
    return [float(performance.yaw[frame]), EXPRESSIONS.index(facts["expression"]), list(LIGHTS).index(shot.facts["light"]),
            float(facts["glasses"] == "sunglasses")]  # fmt: skip


class Studio:
    """Processes that draw people 0, 1, 2, ... until the block ends; `arrived` tells those that are there, in any order.

    Everybody is drawn by the first of the plans, and every `TOGETHER`-th by the others.
    """

    def __init__(self, plans: Sequence[Plan], workers: int, first: int = 0):
        context = get_context("spawn")
        self.results = context.Queue(maxsize=4 * workers)
        self.processes = [context.Process(target=_work, args=(plans, first + index, workers, self.results), daemon=True)
                          for index in range(workers)]  # fmt: skip
        for process in self.processes:
            process.start()

    def arrived(self, wait: float = 0.0) -> list[Person]:
        """People drawn since the last call, at least one if one comes within `wait` seconds. Raises `RuntimeError` without processes."""
        people = []
        while True:
            try:
                people.append(self.results.get(timeout=wait) if wait and not people else self.results.get_nowait())
            except queue.Empty:
                if not people and not any(process.is_alive() for process in self.processes):
                    raise RuntimeError("the processes that draw people have ended; the lines above say why") from None
                return people

    def __enter__(self) -> "Studio":
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            process.terminate()
            process.join()


def _work(plans: Sequence[Plan], first: int, step: int, results) -> None:
    import torch

    os.nice(5)  # the process that trains comes first
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    artists = [Artist(plan) for plan in plans]
    for number in count(first, step):
        for artist in artists[: None if number % TOGETHER == 0 else 1]:
            results.put(artist.draw(number))


def _end_with_parent() -> None:
    """Leave nothing behind where the parent is killed."""
    parent_process().join()
    os._exit(1)
