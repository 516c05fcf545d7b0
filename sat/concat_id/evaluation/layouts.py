"""Which videos there are to measure, whom they should show and what was asked for: our outputs, benchmarks, plain folders."""

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from concat_id.config.neighbours import NEIGHBOURS
from concat_id.config.presets import PRESETS
from concat_id.config.schema import BACKBONES
from concat_id.errors import UserError, counted, reason_of
from concat_id.files.formats import beside, is_image, is_video, media_in
from concat_id.files.json_files import OBJECT, TEXT, WORDS, list_of, read_json, require, take
from concat_id.files.paths import kind_of, read_text, resolve_path, visible_files

INFO = "info.json"
MADE = re.compile(r"(video|portrait)(?:_(\d+))?\.(mp4|png)")
OPENS2V_LISTS = "*_Eval.json"
CONSISID_LISTS = ("video_caption_eval.csv", "video_caption_eval_old.csv")
PEOPLE = {"man", "woman", "boy", "girl", "person", "people", "face", "human"}
COLUMNS = {"index", "Class", "Refined_man", "Refined_woman"}
AGAIN, DOWNLOAD = "make the video again", "download the benchmark again"


@dataclass(frozen=True)
class GeneratedVideo:
    """A video, or a portrait, with its references from left to right and its prompt.

    `name` is the same for the same request in another run; `system` is what made it, "" if that is not known.
    """

    name: str
    video: Path
    references: tuple[Path, ...]
    prompt: str
    system: str = ""


@dataclass(frozen=True)
class Request:
    """What a benchmark asks for."""

    prompt: str
    references: tuple[Path, ...]


def find_samples(folder: Path, benchmark: Path | None) -> tuple[list[GeneratedVideo], list[str], list[str]]:
    """Find the videos of a run. Returns them, what is wrong with others, and remarks. Raises `UserError` if the folder holds none."""
    if kind_of(folder) != "a folder":
        raise UserError(f"--videos: {folder}: found {kind_of(folder)}, expected a folder with videos; check the path")
    try:
        if benchmark is not None:
            samples, problems, notes = _benchmark_samples(folder, read_benchmark(benchmark), benchmark)
        else:
            samples, problems, notes = _own_samples(folder)
            if not samples and not problems:
                samples, problems, notes = _plain_samples(folder)
            known = {str(sample.video) for sample in samples}
            known.update(*(accumulate(problem.split(": "), "{}: {}".format) for problem in problems))  # as a path may have a colon
            unread = [video for video in media_in(folder, is_video, deep=True)
                      if known.isdisjoint(map(str, (video, video.parent, video.parent / INFO)))]  # fmt: skip
            if unread and (samples or problems):
                notes.append(f"{folder}: {counted(video=len(unread))} deeper in it or beside other results not measured, such as "
                             f"{unread[0]}; give them a folder of --videos of their own")  # fmt: skip
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({reason_of(error)}); check its permissions") from error
    if not samples and not problems:
        raise UserError(
            f"--videos: {folder}: found no video; expected the output folder of sat/sample_video.py, name.mp4 beside name.png, "
            "or a benchmark's videos with --benchmark FOLDER"
        )
    return samples, problems, notes


def _own_samples(folder: Path) -> tuple[list[GeneratedVideo], list[str], list[str]]:
    """Read folders that sat/sample_video.py wrote; a video without info.json was not finished."""
    samples, problems = [], []
    for place in [folder, *(path for path in visible_files(folder, "*") if path.is_dir())]:
        made = [path for path in visible_files(place, "*") if MADE.fullmatch(path.name)]
        info_file = place / INFO
        if kind_of(info_file) == "no such file":
            if made and list(place.glob("reference_*.png")):
                problems.append(f"{place}: found no {INFO}, so the video is not finished; make it again")
            continue
        try:
            info = read_json(info_file, "what sat/sample_video.py writes", AGAIN)
            kinds = {"prompt": WORDS, "references": list_of(OBJECT), "files": list_of(TEXT)}
            prompt, images, names = (take(info, key, kind, str(info_file), AGAIN) for key, kind in kinds.items())
            people = [image.get("person", number) for number, image in enumerate(images, 1)]  # who may have several photos
            images = [take(image, "image", TEXT, f"{info_file}: references", AGAIN) for image in images]
            listed = [place / name for name in names if MADE.fullmatch(name)]
        except UserError as error:
            problems.append(str(error))
            continue
        firsts = [number for number, person in enumerate(people) if people.index(person) == number]
        references = [_photo(images[number]) or place / f"reference_{number + 1}_crop.png" for number in firsts]
        for video in sorted({*made, *listed}):
            number = MADE.fullmatch(video.name)[2] or "1"
            samples.append(GeneratedVideo(f"{place.name}/{number}", video, tuple(references), prompt, system_of(info)))
    return samples, problems, []


def system_of(info: dict[str, Any]) -> str:
    """Name the system that made a video by `settings.model.kind` of its info.json, "" if that says nothing known."""
    kind: Any = info
    for key in ("settings", "model", "kind"):
        kind = kind.get(key) if isinstance(kind, dict) else None
    return "Concat-ID" if kind in tuple(BACKBONES) else PRESETS[kind].title if kind in tuple(NEIGHBOURS) else ""


def _photo(image: str) -> Path | None:
    """Find the photo as it was given; None where it is gone, for which there is what was cut out of it."""
    try:
        path = resolve_path(image)
    except UserError:
        return None
    return path if kind_of(path) == "a file" else None


def _plain_samples(folder: Path) -> tuple[list[GeneratedVideo], list[str], list[str]]:
    """Read `name.mp4` with `name.png`, or `name_1.png` and `name_2.png` from left to right, and the prompt in `name.txt`, if there."""
    samples, problems, notes = [], [], []
    images: defaultdict[str, list[tuple[int, Path]]] = defaultdict(list)  # by the video's name
    videos = media_in(folder, is_video)
    stems = {video.stem for video in videos}
    for path in media_in(folder, is_image):
        images[path.stem].append((0, path))
        name, _, number = path.stem.rpartition("_")
        if number.isdecimal() and path.stem not in stems:
            images[name].append((int(number), path))
    for video in videos:
        references = tuple(path for _, path in sorted(images[video.stem]))
        if len({path.stem for path in references}) < len(references):
            names = ", ".join(path.name for path in references)
            problems.append(f"{video}: found {names} beside it, expected one image of each name; rename or remove the others")
            continue
        if not references and f"{video.stem}_1" in stems:
            problems.append(f"{video}: found no {video.stem}.png, expected it, as a photo called like another video is that one's alone")
            continue
        text = beside(video, ".txt")
        prompt = read_text(text, "a prompt", errors="replace").strip() if kind_of(text) == "a file" else ""
        if not prompt:
            notes.append(f"{video}: found no prompt in {text.name}; scores of the text are left out")
        samples.append(GeneratedVideo(video.stem, video, references, prompt))
    if lacking := [name for name in images if name not in stems and (folder / f"{name}.txt").is_file()]:
        notes.append(f"{folder}: {counted(prompt=len(lacking))} with an image but no video, such as {lacking[0]}.txt")
    return samples, problems, notes


def read_benchmark(folder: Path) -> dict[str, Request]:
    """Read what OpenS2V-Eval, or one list of it, or ConsisID-Bench asks for, by the names their videos have.

    Raises `UserError` for anything else, and where lists ask for something else under one name.
    """
    if kind_of(folder) != "a folder" and not (kind_of(folder) == "a file" and folder.match(OPENS2V_LISTS)):
        raise UserError(f"--benchmark: {folder}: found {kind_of(folder)}, expected OpenS2V-Eval or ConsisID-Bench; check the path")
    lists = sorted(folder.glob(OPENS2V_LISTS)) if folder.is_dir() else [folder]
    if lists:
        requests: dict[str, Request] = {}
        for path in lists:
            for name, request in _opens2v_requests(path):
                if requests.setdefault(name, request) != request:
                    differ = f"its lists ask for different things as {name!r}"
                    raise UserError(f"--benchmark: {folder}: {differ}; name the one whose videos these are, such as {path}")
        return requests
    tables = [place / name for place in (folder, folder / "eval") for name in CONSISID_LISTS if (place / name).is_file()]
    faces = [place for place in (folder / "eval" / "face_images", folder / "face_images") if place.is_dir()]
    if tables and faces:
        return dict(_consisid_requests(tables[0], faces[0]))
    raise UserError(
        f"--benchmark: {folder}: found neither {OPENS2V_LISTS} (OpenS2V-Eval) nor {CONSISID_LISTS[0]} with eval/face_images "
        "(ConsisID-Bench); name the benchmark's own folder"
    )


def _opens2v_requests(path: Path) -> Iterator[tuple[str, Request]]:
    """`{"singlehuman_1": {"img_paths": [...], "prompt": ..., "class_label": [...]}}`; images of things are no references for faces."""
    entries = require(read_json(path, "JSON", DOWNLOAD), OBJECT, str(path), DOWNLOAD)
    for name, entry in entries.items():
        place = f"{path}: {name}"
        images, prompt = take(entry, "img_paths", list_of(TEXT), place, DOWNLOAD), take(entry, "prompt", WORDS, place, DOWNLOAD)
        labels = take(entry, "class_label", list_of(TEXT), place, DOWNLOAD, optional=True) or []
        labels = [label.lower() for label in labels] if len(labels) == len(images) else [""] * len(images)
        people = [path.parent / image for image, label in zip(images, labels, strict=True) if _is_person(image, label)]
        yield name, Request(prompt, tuple(people))


def _is_person(image: str, label: str) -> bool:
    words = {word for part in Path(image).parts[:-1] for word in re.split(r"[^a-z]+", part.lower())}
    return label in PEOPLE or bool(words & {"man", "woman"})


def _consisid_requests(table: Path, faces: Path) -> Iterator[tuple[str, Request]]:
    """Every face with every row of the table; the video is called `<face's file>--<index>`. Source: ConsisID's eval_all_in_once.py."""
    rows = list(_table_rows(table))
    if not rows:
        raise UserError(f"{table}: found no rows, expected one for each prompt; {DOWNLOAD}")
    for face in media_in(faces, is_image):
        column = "Refined_woman" if "woman" in face.name else "Refined_man"
        for row in rows:
            prompt = row[column].replace("{class_token}", row["Class"])
            yield f"{face.name}--{row['index']}", Request(prompt, (face,))


def _table_rows(table: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV by column. Raises `UserError` that names the line of one that is short, long or wrongly quoted."""
    reader, line = csv.DictReader(io.StringIO(read_text(table, "a table (CSV)", DOWNLOAD), newline=""), strict=True), 1
    try:
        if not set(header := reader.fieldnames or ()) >= COLUMNS:
            raise UserError(f"{table}: found columns {', '.join(header)}, expected {', '.join(sorted(COLUMNS))}; {DOWNLOAD}")
        line = reader.line_num + 1
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{table}: line {line}: found more or fewer cells than {len(header)} columns; {DOWNLOAD}")
            yield row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{table}: line {line}: found no row of a table ({error}); mend the quotes, or {DOWNLOAD}") from error


def _benchmark_samples(folder: Path, requests: dict[str, Request], benchmark: Path) -> tuple[list[GeneratedVideo], list[str], list[str]]:
    """Give the videos of a folder what the benchmark asked for: `<name>.mp4`, or a folder `<name>/` with one video in it.

    What sat/sample_video.py wrote is told by the prompt and the photos' names.
    """
    samples, problems, others = [], [], 0
    without_suffix = {re.sub(r"\.(png|jpe?g|webp|bmp)--", "--", name): name for name in requests}
    times = Counter(map(_content, {*requests.values()}))
    by_content = {content: name for name, request in requests.items() if times[content := _content(request)] == 1}
    own = {sample.video: sample for sample in _own_samples(folder)[0]}
    for video in dict.fromkeys([*media_in(folder, is_video, deep=True), *own]):
        names = [video.stem, video.parent.name, by_content.get(_content(own[video])) if video in own else None]
        name = next((without_suffix.get(name, name) for name in names if without_suffix.get(name, name) in requests), None)
        if name is None:
            missing = "asks for nothing of this name" + ", and not just once for this prompt and these photos" * (video in own)
            problems.append(f"{video}: {benchmark} {missing}; rename the video as the benchmark says")
        elif requests[name].references:
            system = own[video].system if video in own else ""
            samples.append(GeneratedVideo(name, video, requests[name].references, requests[name].prompt, system))
        else:
            others += 1
    notes = [f"{folder}: {others} videos of things rather than people are left out"] if others else []
    asked, found = sum(bool(request.references) for request in requests.values()), len({sample.name for sample in samples})
    if samples and found < asked:
        notes.append(f"{folder}: {found} of the benchmark's {asked} videos of people are there")
    return samples, problems, notes


def _content(asked: Request | GeneratedVideo) -> tuple[str, ...]:
    return " ".join(asked.prompt.split()), *(path.name for path in asked.references)
