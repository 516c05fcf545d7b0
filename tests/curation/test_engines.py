"""A stage over many sources by both engines: equal results, and processes and sources that fail."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from failing_stage import FailingStage
from in_process import refused
from odd_input import is_told

from concat_id.curation.engines import Lost, local_engine, ray_engine

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="bash scripts/setup.sh ray")
SOURCES = ["first", "bad", "warns", "last"]
EXPECTED = {0: "first is done", 1: "bad: no number", 2: "warns is done", 3: "last is done"}


@pytest.mark.parametrize("workers", [1, 2])
def test_the_local_engine_keeps_the_order(tmp_path, workers):
    stage = FailingStage(tmp_path)
    assert list(local_engine(stage, SOURCES, workers)) == list(EXPECTED.items())
    assert [stage.tries(source) for source in SOURCES] == [1] * 4
    refused("full: no space", list, local_engine(stage, ["full", *["last"] * 3000], workers))
    assert stage.tries("last") < 3000, "a full disk ends it"


@needs_ray
def test_ray_survives_what_sources_do_to_its_processes(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    stage, sources = FailingStage(tmp_path), [*SOURCES, "killed once", "hangs", "odd"]
    results = list(ray_engine(stage, sources, None, 2))
    hung = Lost("the process that worked on it ended, or hung")
    assert len(results) == 7 and dict(results) == EXPECTED | {4: "killed once is done", 5: hung, 6: Lost("KeyError: 'odd'")}
    assert [stage.tries(source) for source in sources] == [1] * 4 + [2] * 3
    out, told = capfd.readouterr()
    lost = "warning: 3 of 7 were lost with a process or a machine of the cluster; each is tried once more"
    assert (out, told.splitlines()) == ("", ["warning: pale colours", lost])


@needs_ray
def test_both_engines_write_the_same_bytes(prepare, videos, tmp_path):
    trees = []
    for engine in ("local", "ray"):
        output = tmp_path / engine
        code, _, told = prepare("--videos", videos, "--caption", "c", "--output", output, "--engine", engine)
        assert code == 1 and "broken.mp4: cannot be read" in told
        trees.append({path.relative_to(output): path.read_bytes() for path in output.rglob("*") if path.is_file()})
    assert trees[0] == trees[1] and {"manifest.json", "summary.html", "clip_000.mp4"} <= {path.name for path in trees[0]}


def test_what_no_cluster_can_do_is_told(call, tmp_path):
    refused("setup.sh ray" if find_spec("ray") is None else "no Ray can be used there", list, ray_engine(None, [1], "nonsense", 1))
    for options, text in ((["--actors", "2"], "--actors: needs --engine ray"), (["--gpus_per_actor", "1.5", "--engine", "ray"], "a share")):
        assert is_told(ended := call("prepare_clips", "--videos", tmp_path, "--output", tmp_path, *options), 2) and text in ended.err
