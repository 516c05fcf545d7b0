"""Which device a run computes on, and how its processes meet."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from in_process import refused

from concat_id.distributed import choose_device

DEVICES = ["meta", "hpu", "mps", "cuda:99", "vulkan", "xla", "privateuseone", "fpga", "lazy", "cpu:5", "cuda:", "0", "CPU", "", "x" * 9999]


def test_the_cpu_computes():
    assert choose_device("cpu").type == choose_device("cpu:0").type == "cpu"


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_that_does_not_compute_is_refused_in_one_line(name):
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    message = refused(f"device: {name[:60]!r} cannot be used (", choose_device, name)
    assert message.endswith("; choose auto, cpu or one that torch sees") and len(message) < 400


MEETING = """
import glob, os
from datetime import timedelta
import torch
from concat_id.distributed import join_processes, leave_processes, rank
join_processes("gloo", timedelta(minutes=2))
total = torch.ones(3) * (rank() + 1)
torch.distributed.all_reduce(total)
assert total.tolist() == [3.0] * 3
sockets = {os.readlink(link) for pid in (os.getpid(), os.getppid()) for link in glob.glob(f"/proc/{pid}/fd/*") if os.path.islink(link)}
for table in ("tcp", "tcp6"):
    for line in open(f"/proc/net/{table}").readlines()[1:]:
        place, state, inode = (line.split()[column] for column in (1, 3, 9))
        if state == "0A" and f"socket:[{inode}]" in sockets:
            print("listens", place.partition(":")[0])
torch.distributed.barrier()
leave_processes()
"""


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="Linux tells who listens")
def test_processes_of_one_machine_listen_on_no_other_address(tmp_path):
    script = tmp_path / "meeting.py"
    script.write_text(MEETING)
    command = [sys.executable, str(ROOT / "sat/concat_id/processes.py"), "--nproc_per_node", "2", "--standalone", str(script)]
    own = os.environ | {"PYTHONPATH": str(ROOT / "sat"), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    loopback = {"0100007F", "00000000000000000000000001000000"}
    assert {line.split()[1] for line in done.stdout.splitlines() if line.startswith("listens")} <= loopback, done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["meeting.py"]
