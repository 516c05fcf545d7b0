"""Large sets: manifests in shards, people compared block by block or by FAISS, pairs of people with many clips."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from in_process import refused

from concat_id.curation import identities, nearest, pairs
from concat_id.curation.identities import Others, name_people, too_close
from concat_id.curation.pairs import cross_video_pairs, trade_off_pairs
from concat_id.curation.thresholds import Thresholds
from concat_id.data import manifest_files
from concat_id.data.manifest import Clip
from concat_id.data.manifest_files import read_manifest, write_manifest

from .conftest import read
from .test_make_pairs import manifest  # noqa: F401
from .test_pairs import SEEDS, placed, world


@pytest.fixture
def folder(manifest, tmp_path):  # noqa: F811
    """The made-up people's clips in a folder that may be changed, with manifest.json."""
    return shutil.copytree(manifest.parent, tmp_path / "data")


def shards_of(folder):
    """Write the manifest in shards of 6 kB of content each."""
    write_manifest(folder, read(folder / "manifest.json"), 0.006)
    return sorted(folder.glob("*.parquet"))


def lists_of(folder, call, manifest):  # noqa: F811
    code, _, told = call("make_pairs", manifest, "--output", folder / "lists", "--calibrate", "--valid", 0.2, "--test", 0.2)
    assert code == 0, told
    return {file.name: file.read_bytes() for file in (folder / "lists").glob("*.*")}, told


def test_shards_give_the_lists_that_json_gives(folder, call):
    plain, entries = read(folder / "manifest.json"), read(folder / "manifest.json")["clips"]
    expected, _ = lists_of(folder, call, folder / "manifest.json")
    first = shards_of(folder)
    assert len(first) > 3 and all(file.stat().st_size < 20_000 for file in first)
    found, told = lists_of(folder, call, folder)
    assert found == expected and f"32 clips in {len(first)} shards, 96 vectors of 32 in float32: 0.00 GB" in told
    assert lists_of(folder, call, folder / "manifest.json")[0] == expected
    (folder / "manifest.json").unlink()
    assert lists_of(folder, call, folder)[0] == expected, "shards alone"

    write_manifest(folder, plain, 1000)
    (second,) = folder.glob("*.parquet")
    assert second not in first and read(folder / "manifest.json")["shards"] == {second.name: len(entries)}
    write_manifest(folder, plain)
    assert read(folder / "manifest.json") == plain and not list(folder.glob("*.parquet"))


def test_many_vectors_are_kept_in_half_precision(folder, monkeypatch):
    full = read_manifest(folder).clips
    shards_of(folder)
    monkeypatch.setattr(manifest_files, "FLOAT32", 95)
    half = read_manifest(folder).clips
    for one, other in zip(full, half, strict=True):
        assert one.people[0].rows.dtype == one.people[0].vectors.dtype == other.people[0].vectors.dtype == np.float32
        assert other.people[0].rows.dtype == np.float16 and other.people[0].rows.base.shape == (96, 32), "one array"
        np.testing.assert_allclose(one.people[0].vectors, other.people[0].vectors, atol=1e-3)
        assert (one.file, one.caption, one.people[0].image(1)) == (other.file, other.caption, other.people[0].image(1))


def with_facts(**facts):
    """Change the metadata of a shard."""
    return lambda table: table.replace_schema_metadata(
        {manifest_files.FACTS: json.dumps(json.loads(table.schema.metadata[manifest_files.FACTS]) | facts)})  # fmt: skip


def with_vectors(change):
    """Change the vectors of a shard."""
    return lambda table: table.from_pylist([row | {"vectors": change(row["vectors"])} for row in table.to_pylist()], table.schema)


@pytest.mark.parametrize("told, change", [
    ("of 32 numbers, and SFace's of 32", with_facts(recognizer="ArcFace")),
    ("'s vectors of 16 numbers", with_facts(size=16)),
    ("images, expected", with_facts(images=500)),
    ("size: found -1, expected a count", with_facts(size=-1)),
    ("another Parquet file", lambda table: table.replace_schema_metadata({})),
    ("found other columns", lambda table: table.drop_columns("note")),
    ("clips, expected", lambda table: table.slice(1)),
    ("no vectors of length 1", with_vectors(lambda own: [2.0] * len(own))),
    ("row 0: found people, images and vectors that do not go together", with_vectors(lambda own: own[1:])),
])  # fmt: skip
def test_bad_shards_are_told_in_a_line(folder, told, change):
    parquet = pytest.importorskip("pyarrow.parquet")
    file = shards_of(folder)[1]
    parquet.write_table(change(parquet.read_table(file)), file)
    assert str(file) in refused(told, read_manifest, folder)


def test_shards_that_are_cut_short_or_missing_are_told_in_a_line(folder):
    first, *_, last = shards_of(folder)
    last.write_bytes(last.read_bytes()[:-9])
    assert str(last) in refused("cut short or damaged", read_manifest, folder)
    first.unlink()
    assert str(first) in refused("prepare the clips again", read_manifest, folder)


def test_without_pyarrow_the_command_is_named(folder, monkeypatch, capsys):
    plain = read(folder / "manifest.json")
    monkeypatch.setattr(manifest_files, "MOST_IN_JSON", 31)
    write_manifest(folder, plain)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused("bash scripts/setup.sh curation", read_manifest, folder)
    write_manifest(folder, plain)
    assert read(folder / "manifest.json") == plain and "bash scripts/setup.sh curation" in capsys.readouterr().err


@pytest.mark.parametrize("seed", SEEDS)
def test_links_by_blocks_join_what_all_links_join(seed):
    random = np.random.default_rng(seed)
    links, parts = random.integers(200, size=(150, 2)), nearest.Components(200)
    for start in range(0, 150, 7):
        parts.link(links[start : start + 7])
    groups = {number: {number} for number in range(200)}
    for one, other in links.tolist():
        joined = groups[one] | groups[other]
        groups |= dict.fromkeys(joined, joined)
    expected = {min(group): number for number, group in enumerate(sorted({tuple(sorted(group)) for group in groups.values()}))}
    assert parts.labels.tolist() == [expected[min(groups[number])] for number in range(200)]


@pytest.fixture
def many(monkeypatch):
    """Take a hundred vectors for many."""
    pytest.importorskip("faiss")
    for module in (identities, nearest):
        monkeypatch.setattr(module, "EXACT", 20)
    monkeypatch.setattr(nearest, "SAMPLE", 50)


def test_people_are_compared_in_blocks_and_by_faiss_as_they_are_at_once(monkeypatch, request, capsys):
    clips = world(0, people=30, clips=40, spread=0.3, named=False)
    clips += world(0, people=30, clips=2, spread=0.3)
    alike = [Clip(clip.file, "", (replace(clip.people[0], identity=clip.file),)) for clip in world(7, people=5, spread=0.05)]
    expected, close = name_people(clips + alike, 0.8), too_close(placed(3, spread=1.0), 0.3)
    assert expected[len(clips) :] == [(clip.file,) for clip in alike], "names count for more than faces"
    clips += alike
    monkeypatch.setattr(nearest, "BLOCK", 17)
    assert name_people(clips, 0.8) == expected and close
    request.getfixturevalue("many")
    assert name_people(clips, 0.8) == expected, "people with more clips than are asked for at first"
    assert too_close(placed(3, spread=1.0), 0.3) == close
    told = capsys.readouterr().err
    assert "compared by FAISS: of" in told and "100.00% are found" in told and "the closest crop of training is found for" in told


def test_many_people_without_faiss_name_the_command(monkeypatch):
    monkeypatch.setattr(nearest, "EXACT", 20)
    monkeypatch.setitem(sys.modules, "faiss", None)
    refused("bash scripts/setup.sh curation", name_people, world(0, named=False), 0.8)
    assert nearest.nearest(np.eye(9), np.eye(9)[3:5], 1).tolist() == [[3], [4]], "few are compared without it"


def test_strangers_who_are_joined_are_told(monkeypatch, capsys):
    monkeypatch.setattr(identities, "MANY", 40)
    name_people(world(0, named=False), 0.999)
    assert not capsys.readouterr().err
    name_people(world(0, named=False), 0.0)
    assert "are taken for one: the recogniser links strangers" in capsys.readouterr().err


def test_of_many_clips_of_a_person_some_are_drawn(monkeypatch):
    clips, thresholds = placed(1, people=2, clips=40), Thresholds("X", (0.5, 0.8), (0.6, 0.9), (0.5, 0.97), 0.45)
    others = Others(clips)
    few = [others.of(clip, 0, 5, np.random.default_rng(0)) for clip in clips]
    assert all(1 <= len(found) <= 5 and clip.clip.people[0] not in found for found, clip in zip(few, clips, strict=True))
    exact = trade_off_pairs(clips, thresholds, 100, 0)
    monkeypatch.setattr("concat_id.curation.thresholds.FEW", 3)
    assert [pair.images for pair in trade_off_pairs(clips, thresholds, 100, 0).pairs] == [pair.images for pair in exact.pairs]
    monkeypatch.setattr(pairs, "MOST", {"random": 5, "minimum": 5})
    for stage in (cross_video_pairs(clips, thresholds, 0), trade_off_pairs(clips, thresholds, 100, 0)):
        assert len(stage.pairs) > 40 and all(0.5 <= cosine < 0.97 for pair in stage.pairs for cosine in pair.cosines)
