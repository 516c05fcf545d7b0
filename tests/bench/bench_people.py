"""Name and pair simulated people at three sizes: processor time, memory, recall, counts of pairs, and how time grows.

    python tests/bench/bench_people.py [--people 100000] [--vectors 1000000] [--crops 1] [--same_person 0.5]

Vectors have the cosines of real talking heads, 0.87 within a clip and 0.02 between people (docs/data.md), and two that are assumed: 0.74
between clips of a person, and a spread of 0.07 between people (200 of 512 dimensions count). Nobody has a name. Each size, a quarter, half
and all of it, is read from Parquet shards in a process of its own; `slope` is that of the logarithms of time and size: 1 where twice as
much takes twice as long. Set OMP_NUM_THREADS=1 for seconds that can be compared.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "sat"))

import numpy as np  # noqa: E402

SIZE, SHARD = 512, 25_000  # numbers of a vector, clips of a shard
EXPONENT = 0.295  # with which the spread of 512 directions falls so that they count as 200
OTHER_CLIP, OTHER_CROP, COMMON = 0.42, 0.42, 0.145  # lengths of what differs, beside a person's 1, and of what is everybody's


def write_shards(folder: Path, people: int, vectors: int, crops: int) -> None:
    """Write clips with `crops` images each, people in turn."""
    from concat_id.data.manifest_files import write_shard

    random, scale = np.random.default_rng(0), np.arange(1, SIZE + 1, dtype=np.float32) ** -EXPONENT
    scale /= np.linalg.norm(scale)

    def drawn(*shape: int) -> np.ndarray:
        return random.standard_normal((*shape, SIZE), dtype=np.float32) * scale

    centres, common = drawn(people), COMMON * drawn(1)
    for number, start in enumerate(range(0, vectors // crops, SHARD)):
        clips = np.arange(start, min(start + SHARD, vectors // crops))
        strength = random.uniform(0.5, 1.5, (2, len(clips), 1, 1)).astype(np.float32)
        found = (centres[clips % people] + common)[:, None] + OTHER_CLIP * strength[0] * drawn(len(clips), 1)
        found = found + OTHER_CROP * strength[1] * drawn(len(clips), crops)
        found /= np.linalg.norm(found, axis=-1, keepdims=True)
        rows = [{"video_path": f"v{clip:07d}/clip_000.mp4", "caption": "someone speaks about something to the camera",
                 "people": [{"folder": f"v{clip:07d}/clip_000_person_1", "images": [f"{crop}.png" for crop in range(crops)]}]}
                for clip in clips]  # fmt: skip
        write_shard(folder / f"manifest-{number:05d}.parquet", {"recognizer": "simulated"}, rows, list(found))


def run_size(people: int, vectors: int, crops: int, same_person: float) -> dict:
    """Do what sat/make_pairs.py does, without images and videos, which are not there."""
    from concat_id.curation import pairs
    from concat_id.curation import training_lists as lists
    from concat_id.curation.thresholds import choose_thresholds
    from concat_id.data.manifest_files import read_manifest

    seconds, last = {}, time.process_time()

    def timed(name: str) -> None:
        nonlocal last
        seconds[name], last = round(time.process_time() - last, 1), time.process_time()

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command(people, vectors, crops, same_person), "--write", folder], check=True)
        last, before = time.process_time(), resident()
        recognizer, _, clips = read_manifest(Path(folder))
        rest = resident() - before - sum(person.rows.nbytes for clip in clips for person in clip.people)
        timed("read")
        clips, _ = lists.place_clips(clips, same_person, (0.04, 0.08), 42)
        timed("name")
        thresholds, _ = choose_thresholds(clips, recognizer, None, (0.1, 0.9, 0.999), {}, 42)
        timed("calibrate")
        clips, close = lists.without_trained_on(clips, thresholds.hygiene)
        timed("leakage")
        makers = {"1": lambda: pairs.pretraining_pairs(clips), "2": lambda: pairs.cross_video_pairs(clips, thresholds, 42),
                  "3": lambda: pairs.trade_off_pairs(clips, thresholds, 2, 42)}  # fmt: skip
        summary = lists.write_lists(Path(folder), makers, masks=True)
        timed("pair, write")
    seconds["all"] = round(sum(seconds.values()), 1)
    found = {f"pairs, stage {number}": sum(summary[f"stage {number}"]["clips"].values()) for number in makers}
    return {"vectors": vectors, "people": people, "clips": len(clips), "named": len({name for clip in clips for name in clip.identities}),
            "too close": len(close), **found, "bytes a clip": round(rest / (vectors // crops)),
            "GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
            **{f"{name} s": value for name, value in seconds.items()}}  # fmt: skip


def resident() -> int:
    """Bytes of memory in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def command(people: int, vectors: int, crops: int, same_person: float) -> list[str]:
    numbers = {"people": people, "vectors": vectors, "crops": crops, "same_person": same_person}
    return [sys.executable, __file__, *(word for name, number in numbers.items() for word in (f"--{name}", str(number)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=100_000)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--crops", type=int, default=1, help="of a clip")
    parser.add_argument("--same_person", type=float, default=0.5)
    parser.add_argument("--one", action="store_true", help="this size alone, as JSON")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="only write the shards")
    args = parser.parse_args()
    if args.write:
        return write_shards(args.write, args.people, args.vectors, args.crops)
    if args.one:
        return print(json.dumps(run_size(args.people, args.vectors, args.crops, args.same_person)))
    found = []
    for part in (4, 2, 1):
        asked = command(args.people // part, args.vectors // part, args.crops, args.same_person)
        found.append(json.loads(subprocess.run([*asked, "--one"], stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1]))
    sizes = np.log([size["vectors"] for size in found])
    for name in found[0]:
        slope = f"{np.polyfit(sizes, np.log([max(size[name], 0.1) for size in found]), 1)[0]:10.2f}" if name.endswith((" s", "GB")) else ""
        print(f"{name:<16}" + "".join(f"{size[name]:>12,}" for size in found) + slope, flush=True)
    return None


if __name__ == "__main__":
    main()
