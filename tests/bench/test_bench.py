"""The pairs run, and both ways of a pair agree."""

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
