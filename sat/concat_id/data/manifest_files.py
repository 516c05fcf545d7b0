"""The files of a manifest: manifest.json with the clips in it or, if there are many, with the names of Parquet shards beside it.

A shard has a row for each clip, with what an entry of manifest.json has, the names of the images, and the vectors of all of them behind
one another. Its metadata tell the recogniser, the size of a vector, and how many there are.
"""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from concat_id.data.manifest import COMMAND, SPLITS, Appearance, Clip, are_bounded, folder_inside, read_clips
from concat_id.errors import UserError, reason_of, tell, warn
from concat_id.files.json_files import NUMBER, OBJECT, TEXT, Kind, list_of, read_json, take, write_json
from concat_id.files.paths import kind_of, require_file, written_whole

MANIFEST, SHARDS, FACTS = "manifest.json", "manifest-*.parquet", b"concat_id"
MOST_IN_JSON = 20_000  # clips; of more, shards are written unasked
SHARD_MB = 256.0
FLOAT32 = 100_000  # vectors of shards; more are kept in float16
ROWS = 1024  # clips that are read at a time
CLIP_BYTES = 1000  # of a clip in memory besides vectors and their mean in float16, as measured by tests/bench/bench_people.py
COUNT = Kind("a count", lambda value: type(value) is int and value > 0)
READ = ("video_path", "caption", "split", "recording", "people.list.element.folder", "people.list.element.identity",
        "people.list.element.images.list.element", "vectors.list.element")  # fmt: skip


class Manifest(NamedTuple):
    """Whose vectors they are, from which cosine two faces are one person's by the recogniser's own account, and the clips."""

    recognizer: str
    threshold: float | None
    clips: list[Clip]


def read_manifest(path: Path) -> Manifest:
    """Read a manifest: manifest.json, or a folder with it or with shards alone. Raises `UserError`."""
    file = path / MANIFEST if kind_of(path) == "a folder" else path
    if file != path and kind_of(file) == "no such file" and (shards := sorted(path.glob(SHARDS))):
        return _read_shards(file, dict.fromkeys(shards))
    if kind_of(file) == "no such file":
        made = shlex.quote(str(file.parent))
        raise UserError(f"{file}: no such manifest; `python sat/prepare_clips.py --videos ... --output {made}` makes it")
    content = read_json(file, "a manifest of sat/prepare_clips.py", COMMAND)
    if shards := take(content, "shards", OBJECT, str(file), COMMAND, optional=True):
        counts = {file.with_name(Path(name).name): take(shards, name, COUNT, f"{file}: shards", COMMAND) for name in shards}
        return _read_shards(file, counts)
    recognizer, entries = (take(content, key, kind, str(file), COMMAND) for key, kind in (("recognizer", TEXT), ("clips", list_of(OBJECT))))
    if not entries:
        raise UserError(f"{file}: found no clips, expected at least one; its `discarded` says why each was discarded")
    clips = read_clips(entries, file.parent, f"{file}: clips")
    sizes = sorted({person.rows.shape[1] for clip in clips for person in clip.people})
    if len(sizes) > 1:
        raise UserError(f"{file}: found vectors of {sizes[0]} and of {sizes[-1]} numbers, expected one recogniser's; {COMMAND}")
    return Manifest(recognizer, take(content, "threshold", NUMBER, str(file), COMMAND, optional=True), clips)


def write_manifest(folder: Path, manifest: Mapping[str, Any], shard_mb: float | None = None) -> None:
    """Write manifest.json, or shards of at most `shard_mb` MB if that is given or there are many clips; shards of earlier runs go."""
    content, shards = dict(manifest), {}  # its clips may be any collection
    if content["clips"] and (shard_mb or len(content["clips"]) > MOST_IN_JSON):
        try:
            shards = _write_shards(folder, content, (shard_mb or SHARD_MB) * 1e6)
        except ImportError:
            warn(f"{folder / MANIFEST}: holds all {len(content['clips'])} clips, as pyarrow is not installed, which writes shards; "
                 "`bash scripts/setup.sh curation`, then the same command")  # fmt: skip
    if shards:
        del content["clips"]
        content["shards"] = shards
    else:
        content["clips"] = list(content["clips"])
    write_json(folder / MANIFEST, content)  # from here on the new ones count
    for old in folder.glob(SHARDS):
        if old.name not in shards:
            old.unlink(missing_ok=True)


def _parquet() -> tuple[ModuleType, ModuleType]:
    import pyarrow
    import pyarrow.parquet

    return pyarrow, pyarrow.parquet


def _schema(facts: Mapping[str, Any]) -> Any:
    arrow, _ = _parquet()
    text, number = arrow.string(), arrow.float64()
    reference = arrow.struct({"seconds": number, "quality": number})
    person = arrow.struct({"folder": text, "identity": text, "position": number, "box": arrow.list_(number), "presence": number,
                           "references": arrow.list_(reference), "images": arrow.list_(text)})  # fmt: skip
    columns = {"video_path": text, "caption": text, "split": text, "recording": text, "note": text, "start": number, "end": number,
               "source": text, "people": arrow.list_(person), "vectors": arrow.large_list(arrow.float32())}  # fmt: skip
    return arrow.schema(columns, {FACTS: json.dumps(facts)})


def _write_shards(folder: Path, manifest: Mapping[str, Any], limit: float) -> dict[str, int]:
    """Return the names of the shards with their numbers of clips; those of an earlier run stay as they are."""
    _parquet()
    taken = [int(old.stem.rpartition("-")[2]) for old in folder.glob(SHARDS) if old.stem.rpartition("-")[2].isdecimal()]
    first = max(taken, default=-1) + 1
    facts = {key: manifest[key] for key in ("recognizer", "threshold") if key in manifest}
    counts: dict[str, int] = {}
    rows, vectors, size = [], [], 0
    for entry, own in _with_vectors(manifest["clips"], folder):
        room = len(json.dumps(entry)) + own.nbytes
        if rows and size + room > limit:
            name = f"manifest-{first + len(counts):05d}.parquet"
            counts[name] = write_shard(folder / name, facts, rows, vectors)
            rows, vectors, size = [], [], 0
        rows.append(entry)
        vectors.append(own)
        size += room
    name = f"manifest-{first + len(counts):05d}.parquet"
    return counts | {name: write_shard(folder / name, facts, rows, vectors)}


def _with_vectors(entries: Iterable[dict[str, Any]], folder: Path) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Yield each entry with the names of its images, and their vectors (N, D)."""
    for _, group in groupby(entries, lambda entry: Path(entry["people"][0]["folder"]).parent):
        found = list(group)
        for entry, clip in zip(found, read_clips(found, folder, str(folder / MANIFEST)), strict=True):
            people = [person | {"images": seen.names} for person, seen in zip(entry["people"], clip.people, strict=True)]
            yield entry | {"people": people}, np.concatenate([seen.rows for seen in clip.people]).astype(np.float32)


def write_shard(file: Path, facts: Mapping[str, Any], rows: list[dict[str, Any]], vectors: list[np.ndarray]) -> int:
    """Write entries with the names of images, and the vectors (N, D) of each; return their number. Raises `UserError`."""
    arrow, parquet = _parquet()
    schema = _schema({**facts, "size": vectors[0].shape[1], "images": sum(map(len, vectors))})
    starts = np.cumsum([0, *(own.size for own in vectors)])
    values = arrow.LargeListArray.from_arrays(arrow.array(starts), arrow.array(np.concatenate([own.ravel() for own in vectors])))
    try:
        table = arrow.Table.from_pylist(rows, schema=schema).set_column(len(schema) - 1, schema.field("vectors"), values)
    except (UnicodeEncodeError, arrow.ArrowException) as error:
        raise UserError(f"{file}: an entry cannot be written ({reason_of(error)}); rename files whose names are not UTF-8") from error
    with written_whole(file) as temporary:
        parquet.write_table(table, temporary, row_group_size=ROWS, use_dictionary=False)
    return len(rows)


class _Shard(NamedTuple):
    clips: int
    recognizer: str
    threshold: float | None
    size: int
    images: int


def _open_shard(file: Path, clips: int | None) -> _Shard:
    arrow, parquet = _parquet()
    require_file(file, "a shard of a manifest", COMMAND)
    try:
        with parquet.ParquetFile(file) as reader:
            schema, number = reader.schema_arrow, reader.metadata.num_rows
        facts = json.loads(schema.metadata[FACTS])
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: cut short or damaged ({reason_of(error)}); {COMMAND}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: found another Parquet file, expected a shard of a manifest; {COMMAND}") from error
    kinds = {"recognizer": TEXT, "size": COUNT, "images": COUNT}
    told = {name: take(facts, name, kind, str(file), COMMAND) for name, kind in kinds.items()}
    if not schema.equals(_schema({})):
        raise UserError(f"{file}: found other columns than those of a manifest; {COMMAND}")
    if clips not in (None, number):
        raise UserError(f"{file}: found {number} clips, expected {clips}; {COMMAND}")
    return _Shard(number, threshold=take(facts, "threshold", NUMBER, str(file), COMMAND, optional=True), **told)


def _read_shards(manifest: Path, counts: Mapping[Path, int | None]) -> Manifest:
    """Read shards with the numbers of clips that they should have, one after the other into one array of vectors."""
    try:
        opened = {file: _open_shard(file, clips) for file, clips in counts.items()}
    except ImportError as error:
        raise UserError(f"{manifest}: its shards need pyarrow; install it with `bash scripts/setup.sh curation`") from error
    (name, first), *rest = opened.items()
    for file, other in rest:
        if other.recognizer != first.recognizer or other.size != first.size:
            raise UserError(f"{file}: found {other.recognizer}'s vectors of {other.size} numbers, and {first.recognizer}'s of {first.size} "
                            f"in {name.name}, expected one recogniser's; {COMMAND}")  # fmt: skip
    images, clips = (sum(numbers) for numbers in zip(*((own.images, own.clips) for own in opened.values()), strict=True))
    dtype = np.dtype(np.float32 if images <= FLOAT32 else np.float16)
    room, more = images * first.size * dtype.itemsize, clips * (CLIP_BYTES + 2 * first.size)
    tell(f"{manifest.parent}: {clips:,} clips in {len(opened)} shards, {images:,} vectors of {first.size} in {dtype}: "
         f"{room / 1e9:.2f} GB of memory, and about {more / 1e9:.2f} GB for names, means and pairs")  # fmt: skip
    try:
        vectors = np.empty((images, first.size), dtype)
    except MemoryError as error:
        raise UserError(f"{manifest.parent}: {room / 1e9:.2f} GB of memory are not free; take a machine with more") from error
    found: list[Clip] = []
    start = 0
    for file, shard in opened.items():
        found += _read_shard(file, shard, manifest.parent, vectors[start : start + shard.images])
        start += shard.images
    return Manifest(first.recognizer, first.threshold, found)


def _read_shard(file: Path, shard: _Shard, home: Path, vectors: np.ndarray) -> Iterator[Clip]:
    arrow, parquet = _parquet()
    known: dict[tuple[str, ...], tuple[str, ...]] = {}  # names of images, which are the same for most
    row = start = 0
    try:
        reader = parquet.ParquetFile(file, pre_buffer=False)  # which would keep all vectors once more
        for batch in reader.iter_batches(ROWS, columns=list(READ)):
            lists = batch.column("vectors")
            values, ends = lists.flatten().to_numpy().reshape(-1), np.cumsum(lists.value_lengths().fill_null(0).to_numpy())
            if not are_bounded(values):
                raise UserError(f"{file}: found no vectors of length 1; {COMMAND}")
            last = start
            for entry, end in zip(batch.drop_columns("vectors").to_pylist(), ends, strict=True):
                place, first = f"{file}: row {row}", start
                people = []
                for person in entry["people"] or ():
                    names = tuple(person["images"] or ())
                    folder = str(folder_inside(home, take(person, "folder", TEXT, place, COMMAND), place))
                    rows = vectors[start : start + len(names)]
                    people.append(Appearance(folder, known.setdefault(names, names), rows, person["identity"]))
                    start += len(names)
                video, caption = (take(entry, key, TEXT, place, COMMAND) for key in ("video_path", "caption"))
                if (start - last) * shard.size != end or start == first or None in names or entry["split"] not in (None, *SPLITS):
                    raise UserError(f"{place}: found people, images and vectors that do not go together; {COMMAND}")
                yield Clip(str(home / video), caption, tuple(people), entry["split"], entry["recording"])
                row += 1
            vectors[last:start] = values.reshape(-1, shard.size)
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{file}: cut short or damaged ({reason_of(error)}); {COMMAND}") from error
    if start != len(vectors):
        raise UserError(f"{file}: found {start} images, expected {len(vectors)}; {COMMAND}")
