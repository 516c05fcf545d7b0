"""The pairs run, and both ways of a pair agree; people are named and paired at three sizes."""

import json
import subprocess
import sys

from conftest import ROOT


def test_pairs(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "bench" / "bench_pairs.py"), "--quick", "--json", str(tmp_path / "pairs.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "pairs.json").read_text())
    assert found["layer"]["difference"] < 1e-5 and found["decode"]["difference"] < 1e-5
    assert {"imports", "denoise", "decode", "total", "modules"} == found["video"].keys() and found["machine"]["processor"]


def test_people():
    command = [sys.executable, str(ROOT / "tests" / "bench" / "bench_people.py"), "--people", "40", "--vectors", "1200", "--crops", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = {line[:16].strip(): line[16:].split() for line in done.stdout.splitlines()}
    assert table["vectors"] == ["300", "600", "1,200"] and table["named"][2] in ("38", "39", "40") and len(table["all s"]) == 4
