"""Write a world to a folder: clips, stills and the list of them, in parallel and resumable."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from concat_id.errors import UserError
from concat_id.files.json_files import recall_json, write_json
from concat_id.files.paths import remove_partial_files
from concat_id.startup import prepare_process
from concat_id.video.writing import write_image, write_video
from concat_id.workers import in_processes
from world.captions import describe
from world.head import HeadModel
from world.people import Person, sample_person
from world.render import ShotRenderer
from world.shots import LATE, NEAR, WIDE, Shot, sample_shot

QUALITY = ["-crf", "12", "-preset", "medium"]  # of x264: the clips are training data
VALID, TEST = 0.04, 0.08  # shares of the people
VERSION = 2  # of how people look and move; folders begun with another are not gone on with
SINGLE, PAIR, STILL = range(3)  # kinds of shots, each with random numbers of its own


@dataclass(frozen=True)
class WorldSettings:
    """What makes a world what it is; the number of people may grow later."""

    seed: int
    shots: int
    stills: int
    pairs: float  # shots of two people for each person
    frames: int
    fps: float
    size: tuple[int, int]
    samples: int
    images: bool = False  # a late frame of each shot in place of the clip
    portraits: bool = False  # with it, calm images of its people in the same light
    near: bool = False
    version: int = VERSION


def person_name(index: int) -> str:
    """Name the people p0000, p0001, ..."""
    return f"p{index:04d}"


def split_of(seed: int, index: int) -> str:
    """Say whether a person is for training, validation or the test, whatever the number of people."""
    draw = np.random.default_rng([seed, 7, index]).random()
    return "test" if draw < TEST else "valid" if draw < TEST + VALID else "train"


def make_person(head: HeadModel, seed: int, index: int) -> Person:
    """Draw the person with a number."""
    return sample_person(head, person_name(index), np.random.default_rng([seed, 5, index]))


def partner_of(seed: int, index: int, num_people: int) -> int | None:
    """Choose who shares a shot: the next person of the same split; nobody if there is none."""
    own = split_of(seed, index)
    others = ((index + step) % num_people for step in range(1, num_people))
    return next((other for other in others if split_of(seed, other) == own), None)


class WorldWriter:
    """Writes the shots of one person after another to a folder."""

    def __init__(self, folder: Path, settings: WorldSettings, num_people: int):
        """Load the head model."""
        self.folder, self.settings, self.num_people, self.head = folder, settings, num_people, HeadModel()

    def write_person(self, index: int) -> int:
        """Write all that is missing of a person; returns the number of shots, made now or before."""
        settings, jobs = self.settings, list(jobs_of(self.settings, index))
        missing = [(kind, number) for kind, number in jobs if not record_file(self.folder, kind, index, number).is_file()]
        people = [make_person(self.head, settings.seed, index)] if missing else []
        for kind, number in missing:
            partner = partner_of(settings.seed, index, self.num_people) if kind == PAIR else None
            if kind == PAIR and partner is None:
                continue
            cast = [*people, make_person(self.head, settings.seed, partner)] if kind == PAIR else people
            self._write_shot(kind, index, number, cast)
        return len(jobs)

    def _write_shot(self, kind: int, index: int, number: int, people: list[Person]) -> None:
        settings, name = self.settings, shot_name(kind, index, number)
        rng = np.random.default_rng([settings.seed, kind, index, number])
        if kind == PAIR and rng.random() < 0.5:
            people = people[::-1]
        count, staging = 1 if kind == STILL else settings.frames, NEAR if settings.near else WIDE
        shot = sample_shot(people, rng, count, kind == STILL, staging)
        caption = describe(shot.facts, rng)
        single = settings.images and kind != STILL
        indices = [int(rng.integers(int(LATE * count), count))] if single else range(count)
        path = f"images/{name}_{indices[0]:02d}.png" if single else f"stills/{name}.png" if kind == STILL else f"clips/{name}.mp4"
        self._draw(path, shot, people, indices)
        facts = {"shot": number, "recording": name, "split": split_of(settings.seed, index)}
        records = [{"image_path" if kind == STILL else "video_path": path, "caption": caption} | self._told(shot, people) | facts]
        for place, person in enumerate(people if single and settings.portraits else ()):
            portrait = sample_shot([person], rng, 1, True, staging)
            portrait.lamp, portrait.facts["light"] = shot.lamp, shot.facts["light"]
            path = f"stills/{name}_{place}.png"
            self._draw(path, portrait, [person], [0])
            records.append({"image_path": path, "caption": describe(portrait.facts, rng)} | self._told(portrait, [person]) | facts)
        write_json(record_file(self.folder, kind, index, number), records)  # last: it says that the others are there

    def _told(self, shot: Shot, people: list[Person]) -> dict:
        return {"identities": [person.name for person in people], "attributes": shot.facts}

    def _draw(self, path: str, shot: Shot, people: list[Person], indices: Iterable[int]) -> None:
        """Write frames of a shot as a clip, or one as an image."""
        renderer = ShotRenderer(self.head, people, shot, self.settings.size, self.settings.samples)
        frames = [renderer.frame(index)[0] for index in indices]
        if path.endswith(".png"):
            write_image(self.folder / path, Image.fromarray(frames[0]))
        else:
            write_video(self.folder / path, np.stack(frames), self.settings.fps, QUALITY)


def record_file(folder: Path, kind: int, index: int, number: int) -> Path:
    """Where a shot's records are kept."""
    return folder / "records" / f"{shot_name(kind, index, number)}.json"


def shot_name(kind: int, index: int, number: int) -> str:
    """Name a shot after its first person."""
    return f"{person_name(index)}_{('shot', 'two', 'still')[kind]}{number}"


def jobs_of(settings: WorldSettings, index: int) -> Iterator[tuple[int, int]]:
    """List the shots of a person as (kind, number); `pairs` of less than 1 gives a shot of two to some only."""
    yield from ((SINGLE, number) for number in range(settings.shots))
    first, end = int(index * settings.pairs), int((index + 1) * settings.pairs)
    yield from ((PAIR, number) for number in range(end - first))
    yield from ((STILL, number) for number in range(settings.stills))


def check_settings(folder: Path, settings: WorldSettings) -> None:
    """Continue only what was begun with the same settings. Raises `UserError`."""
    file, now = folder / "settings.json", json.loads(json.dumps(asdict(settings)))
    if not file.is_file():
        write_json(file, now)
        return
    before = recall_json(file)
    if before is None:
        raise UserError(f"{file}: cannot be read, expected the settings that {folder} was begun with; choose another folder")
    for name in now:
        if before.get(name, getattr(WorldSettings, name, None)) != now[name]:
            raise UserError(f"{folder}: was begun with {name} {before.get(name)}, found {now[name]}; choose the same or another folder")
    for part in ("clips", "images", "stills", "records"):
        remove_partial_files(folder / part)


def write_list(folder: Path, settings: WorldSettings, num_people: int) -> tuple[int, int]:
    """Gather the records in clips.json and stills.json; returns how many clips and stills there are."""
    lists: dict[str, list] = {"clips": [], "stills": []}
    for index in range(num_people):
        for kind, number in jobs_of(settings, index):
            file = record_file(folder, kind, index, number)
            for record in json.loads(file.read_text(encoding="utf-8")) if file.is_file() else ():
                lists["stills" if "image_path" in record else "clips"].append(record)
    for name, records in lists.items():
        if records:
            write_json(folder / f"{name}.json", records)
    return len(lists["clips"]), len(lists["stills"])


_writer: WorldWriter | None = None  # of a worker process


def _start_worker(folder: Path, settings: WorldSettings, num_people: int) -> None:
    global _writer
    prepare_process()
    _writer = WorldWriter(folder, settings, num_people)


def _write_person(index: int) -> int:
    return _writer.write_person(index)


def write_world(folder: Path, settings: WorldSettings, num_people: int, workers: int) -> Iterator[int]:
    """Write the people's shots; yields the number of shots as each person is done."""
    os.environ["OMP_NUM_THREADS"] = "1"  # products by several threads differ in their last bits
    yield from in_processes(_write_person, range(num_people), workers, _start_worker, (folder, settings, num_people))
