"""The suite's parts at tiny size: the same command as on a GPU."""

import json
import subprocess
from pathlib import Path

import pytest
from gpu import suite

RUN = Path(__file__).with_name("run.sh")


@pytest.mark.skipif(suite.parts.CUDA, reason="takes ten minutes on a GPU; start it by itself")
def test_every_part_finds_something_and_the_command_says_so(tmp_path):
    done = subprocess.run(["bash", RUN, "--output", tmp_path], capture_output=True, text=True, timeout=500)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results.keys() == suite.LIMITS.keys()
    assert {name: result["failed"] for name, result in results.items() if "failed" in result} == {} and done.returncode == 0, done.stderr
    assert all(len(result) >= 2 for result in results.values())
    assert max(results["acceleration"][f"21 layers, {case}"]["off"] for case in ("plain", "compiled")) < 1e-5
    assert 0 < results["acceleration"]["8 layers, int8, streamed"]["off"] < 0.05
    assert f"| engine | seconds | {results['engine']['seconds']:.4g} |" in done.stdout


def test_an_acceleration_that_fails_loses_itself_alone(tmp_path, monkeypatch):
    def accelerated(layers, args):
        if "cache" in args:
            raise ValueError("as it happens")
        return {"s": 1.0}, suite.parts.torch.ones(3)

    monkeypatch.setattr(suite.parts, "accelerated", accelerated)
    found = suite.run("acceleration", 30, tmp_path)
    assert "as it happens" in found["21 layers, cache mag: failed"] and "8 layers, cache dbcache" in found["failed"]
    assert found["8 layers, fp8, streamed"] == {"s": 1.0, "off": 0.0} and found["21 layers, compiled"]["off"] == 0


def test_a_part_that_fails_or_hangs_loses_itself_alone(tmp_path, monkeypatch):
    def fails(folder):
        yield "first", 1.0
        raise ValueError("as it happens")

    def hangs(folder):
        yield "first", 2.0
        suite.time.sleep(60)

    monkeypatch.setattr(suite.parts, "card", fails)
    monkeypatch.setattr(suite.parts, "wan", hangs)
    failed, hung = suite.run("card", 30, tmp_path), suite.run("wan", 1, tmp_path)
    assert failed["first"] == 1.0 and "ValueError: as it happens" in failed["failed"]
    assert hung["first"] == 2.0 and hung["failed"] == "stopped after 1 s"
    assert "| wan | failed | stopped after 1 s |" in suite.table({"card": failed, "wan": hung})
