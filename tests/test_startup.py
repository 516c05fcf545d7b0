"""What a run imports, in a process of its own: libraries that nothing uses cost seconds, and wandb leaves folders."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from entry import only_error

from concat_id.config.presets import files_of

START = """import runpy, sys, os, concat_id.distributed
concat_id.distributed.CPU_INFO = __import__("pathlib").Path(os.devnull)
del sys.argv[0]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(*sys.modules, file=sys.stderr)
    print(*os.listdir(os.environ["TMPDIR"]), file=sys.stderr)
"""
AFTERWARDS = """import sys, concat_id.models.autoencoder as ours, concat_id.models.transformer, concat_id.models.text_encoder as text
text.load_tokenizer(text.Path("models/mini/t5"))
heavy = {"deepspeed", "wandb", "datasets", "pandas", "peft", "scipy", "sympy", "torch._dynamo"}
assert not heavy & set(sys.modules) and None not in sys.modules.values()
import datasets, deepspeed, wandb, diffusers.models.unets.unet_2d_blocks, diffusers.loaders.single_file_utils as files, sat
from diffusers.models.autoencoders import AutoencoderKL, AutoencoderKLCogVideoX
from diffusers.utils.torch_utils import maybe_allow_in_graph
from sat import mpu, training_main
from transformers.models import GPT2Config, t5
assert AutoencoderKLCogVideoX is diffusers.AutoencoderKLCogVideoX is ours.AutoencoderKLCogVideoX
assert sat.__version__ and sat.AutoModel and diffusers.models.unets.unet_2d_blocks.UNetMidBlock2D
assert files.DDIMScheduler().config.num_train_timesteps and files.AutoImageProcessor.from_pretrained
assert isinstance(maybe_allow_in_graph(AutoencoderKL), type) and "torch._dynamo" in sys.modules
"""


@pytest.fixture
def started(tmp_path):
    """Run Python code with arguments and a folder for temporary files; returns the last two lines of errors and all that it printed."""

    def start(code: str, *arguments, output=os.devnull) -> tuple[list[list[str]], str]:
        (tmp_path / "tmp").mkdir(exist_ok=True)
        environment = os.environ | {"PYTHONPATH": str(ROOT / "sat"), "TMPDIR": str(tmp_path / "tmp"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        with open(output, "w") as stream:
            done = subprocess.run(command, env=environment, cwd=ROOT, stdout=stream, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, done.stderr
        return [line.split() for line in done.stderr.splitlines()[-2:]], done.stderr

    return start


def test_sampling_imports_what_it_uses(started, call, faces, tmp_path, monkeypatch):
    person = ROOT / "examples" / "people" / "anna.png"
    options = "--image", person, "--prompt", "a woman", "--output", tmp_path / "out", "--sampling_num_frames", 1, "--num_inference_steps", 2
    line = "--base", *files_of("mini"), faces, "--overwrite", *options
    monkeypatch.setattr("concat_id.distributed.CPU_INFO", Path(os.devnull))  # as in START
    assert call("sample_video", *line).done  # from now on the prompt is in the cache
    (modules, left), _ = started(START, ROOT / "sat" / "sample_video.py", *line)
    assert "concat_id.models.diffusers_library" in modules and len(modules) < 2250
    assert not {"wandb", "deepspeed", "datasets", "pandas", "peft", "scipy", "sympy", "transformers.modeling_utils"} & set(modules)
    assert "wandb" not in " ".join(left)


def test_training_leaves_wandb_alone_tells_of_emulation_and_outlives_a_full_disk_that_is_printed_to(started, tmp_path):
    options = "--train_iters", 1, "--eval_iters", 0, "--eval_samples", 0, "--num_workers", 0, "--batch_size", 1, "--bf16", "true"
    line = ROOT / "sat" / "train_video.py", "--model", "mini", "--save", tmp_path / "runs", *options
    (modules, left), told = started(START, *line, output="/dev/full")
    assert next(tmp_path.glob("runs/*/latest")).read_text() == "1"
    assert "deepspeed" in modules and "wandb" not in modules and "wandb" not in " ".join(left)
    assert told.count("add --bf16 auto") == 1


@pytest.mark.parametrize("script", ["sat/studio.py", "inference_wan.py"])
def test_no_code_of_the_working_folder_is_run_for_an_empty_entry(script, tmp_path):
    for name in ("argparse", "dataclasses", "importlib", "json", "logging", "pathlib", "shutil", "tempfile", "typing", "warnings"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('code of the working folder')")
    environment = os.environ | {"PYTHONPATH": f":{tmp_path / 'x'}", "PYTHONSAFEPATH": "", "CONCAT_ID_PYTHON": sys.executable}
    done = subprocess.run([sys.executable, ROOT / script, "--help"], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr


@pytest.mark.parametrize("start", [[], ["-m", "torch.distributed.run", "--nproc_per_node", "1"]])
def test_a_script_of_the_users_own_finds_its_neighbour(start, tmp_path):
    (tmp_path / "neighbour.py").touch()
    (tmp_path / "my_train.py").write_text("import concat_id.startup as s; s.prepare_process(); import neighbour; print(neighbour.__file__)")
    environment = os.environ | {"PYTHONPATH": f":{ROOT / 'sat'}", "PYTHONSAFEPATH": ""}
    command = [sys.executable, *start, "my_train.py"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "neighbour.py"), done.stderr


@pytest.mark.parametrize("found", ["sat/__init__.py", "sat.py"])
def test_another_package_called_sat_is_told(tmp_path, found):
    (tmp_path / found).parent.mkdir(exist_ok=True)
    (tmp_path / found).touch()
    code = "from concat_id.startup import run; run(lambda: __import__('concat_id.models.transformer'))"
    own = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "sat"), str(tmp_path)])}
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True)
    assert f"found another package called sat ({tmp_path / found})" in only_error(done.returncode, done.stderr)


def test_what_is_left_out_is_there_for_whoever_asks(started):
    started(AFTERWARDS)


def test_processes_that_mpirun_starts_are_told_apart():
    """As the original reads them."""
    own = {f"OMPI_COMM_WORLD_{name}": number for name, number in (("RANK", "3"), ("LOCAL_RANK", "1"), ("SIZE", "4"))}
    code = "from concat_id.startup import prepare_process as p; p(); from concat_id.distributed import *; print(rank(), world_size())"
    own |= {"PYTHONPATH": str(ROOT / "sat")}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | own, capture_output=True, text=True)
    assert done.stdout.split() == ["3", "4"], done.stderr


def test_a_full_disk_that_is_printed_to_ends_what_is_printed():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "sat/doctor.py", "--model", "mini"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert "standard output: cannot be written (No space left on device)" in only_error(done.returncode, done.stderr)
