"""Which device a run computes on, and how its processes meet."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from in_process import refused

from concat_id import distributed
from concat_id.distributed import choose_device, has_bfloat16, join_alone, warn_of_emulation
from concat_id.training import engine

DEVICES = ["meta", "hpu", "mps", "cuda:99", "vulkan", "xla", "privateuseone", "fpga", "lazy", "cpu:5", "cuda:", "0", "CPU", "", "x" * 9999]


def test_the_cpu_computes():
    assert choose_device("cpu").type == choose_device("cpu:0").type == "cpu"


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_that_does_not_compute_is_refused_in_one_line(name):
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    message = refused(f"device: {name[:60]!r} cannot be used (", choose_device, name)
    assert message.endswith("; choose auto, cpu or one that torch sees") and len(message) < 400


def alone(monkeypatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def old_gpus(monkeypatch):
    """GPUs that torch says to have, without bfloat16; yields which were made the current one."""
    alone(monkeypatch)
    chosen = []
    module = SimpleNamespace(set_device=chosen.append, is_bf16_supported=lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    monkeypatch.setattr(distributed.torch, "ones", lambda size, device: torch.full((size,), 1.0))
    return chosen


def test_the_chosen_gpu_is_the_current_one(old_gpus, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("cuda:1") == torch.device("cuda", 1) and choose_device("cuda") == torch.device("cuda", 3)
    assert old_gpus == [torch.device("cuda", 1), torch.device("cuda", 3)]


def test_emulated_bfloat16_of_a_gpu_is_told(old_gpus, capsys):
    assert not has_bfloat16(torch.device("cuda", 0))
    warn_of_emulation(torch.device("cuda", 0), "bfloat16")
    assert capsys.readouterr().err.strip().endswith("add --bf16 false --fp16 true")
    warn_of_emulation(torch.device("cuda", 0), "float16")
    assert not capsys.readouterr().err


@pytest.mark.parametrize("flags, told", [("flags: avx2 avx512_bf16", True), ("flags: avx512_fp16", False), ("Features: asimdhp", False)])
def test_emulated_float16_of_a_processor_is_told(tmp_path, monkeypatch, capsys, flags, told):
    alone(monkeypatch)
    (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(distributed, "CPU_INFO", tmp_path / "cpuinfo")
    warn_of_emulation(torch.device("cpu"), "float32")
    warn_of_emulation(torch.device("cpu"), "float16")
    assert capsys.readouterr().err.count("args.fp16: found true, but") == told


def test_a_gpu_that_torch_has_no_code_for_needs_another_build(monkeypatch):
    def ones(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(distributed.torch, "ones", ones)
    for remedy in ("add --device cpu", "build for CUDA 12.6"):
        refused(remedy, choose_device, "auto")


def test_deepspeed_takes_the_device_that_was_asked_for(monkeypatch):
    alone(monkeypatch)
    monkeypatch.setattr(engine.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(engine.dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setenv("LOCAL_RANK", "0")
    engine.start_processes(torch.device("cuda", 1))
    assert os.environ["LOCAL_RANK"] == "1"
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused("args.device: found cuda:1 for process 0 of 2, expected auto or cuda", engine.start_processes, torch.device("cuda", 1))


MEETING = """
import glob, os
from datetime import timedelta
import torch
from concat_id.distributed import join_processes, leave_processes, rank
from concat_id.startup import prepare_process
prepare_process()
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
    """Also where mpirun has opened the shell."""
    script = tmp_path / "meeting.py"
    script.write_text(MEETING)
    command = [sys.executable, str(ROOT / "sat/concat_id/processes.py"), "--nproc_per_node", "2", "--standalone", str(script)]
    own = os.environ | {"PYTHONPATH": str(ROOT / "sat"), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    own |= {f"OMPI_COMM_WORLD_{name}": number for name, number in (("RANK", "0"), ("LOCAL_RANK", "0"), ("SIZE", "1"))}
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    loopback = {"0100007F", "00000000000000000000000001000000"}
    assert {line.split()[1] for line in done.stdout.splitlines() if line.startswith("listens")} <= loopback, done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["meeting.py"]


def test_a_signal_is_passed_on_without_a_word_of_torchrun(tmp_path):
    (tmp_path / "waiting.py").write_text("import os, time; os.write(1, b'ready\\n'); time.sleep(60)")
    command = [sys.executable, ROOT / "sat/concat_id/processes.py", "--nproc_per_node", "2", "--standalone", tmp_path / "waiting.py"]
    own = os.environ | {"PYTHONPATH": str(ROOT / "sat"), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert [running.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    running.terminate()
    assert (running.communicate(timeout=60)[1], running.returncode) == ("", 143)


def test_a_process_alone_listens_on_the_loopback_interface(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    seen = []
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend, **_: seen.append(os.environ["GLOO_SOCKET_IFNAME"]))
    join_alone("gloo")
    assert seen == ["lo"]
