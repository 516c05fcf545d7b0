"""Peak memory and time of converting a synthetic checkpoint of CogVideoX-5B's width with as many layers as asked for.

    python tests/bench/bench_conversion.py [--layers 16] [--folder /tmp]

Writes random bfloat16 weights (0.26 GB a layer), converts them to diffusers' names in a process of its own and back again,
and compares bit by bit.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "sat"))

CONVERT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from concat_id.startup import prepare_process
prepare_process()
from concat_id.config.loading import load_config
from concat_id.conversion import folders
from concat_id.conversion.weight_sources import open_source
direction, source, target, layers = sys.argv[2:]
if direction == "to-hf":
    model = load_config(["configs/cogvideox_5b.yaml"]).model
    model.transformer.num_layers = int(layers)
    folders.write_transformer(Path(target), open_source(Path(source)), model, None)
else:
    folders.to_sat(Path(source), Path(target))
"""


def write_checkpoint(folder: Path, layers: int) -> None:
    """Write random weights in the SAT layout."""
    import torch

    from concat_id.config.cogvideox import TransformerConfig
    from concat_id.models.transformer import DiffusionTransformer
    from concat_id.weights.loading import write_sat_checkpoint

    config = TransformerConfig(num_layers=layers, hidden_size=3072, num_attention_heads=48)
    shapes = {name: tensor.shape for name, tensor in DiffusionTransformer(config, device="meta").state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.empty(shape, dtype=torch.bfloat16).normal_(generator=generator) for name, shape in shapes.items()}
    folder.mkdir()
    write_sat_checkpoint(folder, "release", tensors)


def convert(direction: str, source: Path, target: Path, layers: int) -> None:
    """Convert in another process and watch its memory."""
    begun = time.perf_counter()
    command = [sys.executable, "-c", CONVERT, str(ROOT / "sat"), direction, str(source), str(target), str(layers)]
    process = subprocess.Popen(command)
    peaks = {"VmHWM": 0.0, "RssAnon": 0.0}
    while process.poll() is None:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        for name in peaks.keys() & status.keys():
            peaks[name] = max(peaks[name], int(status[name].split()[0]) / 2**20)
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"{direction}: failed with exit code {process.returncode}")
    took = time.perf_counter() - begun
    print(f"{direction}: {took:.0f} s, at most {peaks['VmHWM']:.1f} GiB resident, of which {peaks['RssAnon']:.1f} GiB are its own"
          " and the rest pages of files, which the system can take back", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--folder", default=None, help="where to put the temporary files")
    args = parser.parse_args()
    from concat_id.startup import prepare_process

    prepare_process()
    from concat_id.weights.loading import load_sat_checkpoint

    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write_checkpoint(folder / "sat", args.layers)
        size = sum(file.stat().st_size for file in (folder / "sat").rglob("*.pt")) / 2**30
        print(f"checkpoint: {args.layers} layers, {size:.1f} GiB", flush=True)
        convert("to-hf", folder / "sat", folder / "hf", args.layers)
        convert("to-sat", folder / "hf", folder / "back", args.layers)
        before, after = (load_sat_checkpoint(folder / kind).state_dict for kind in ("sat", "back"))
        unused = "transformer.position_embeddings.weight"
        print("bit-equal:", before.keys() == after.keys() and all(before[key].equal(after[key]) for key in before if key != unused))


if __name__ == "__main__":
    main()
