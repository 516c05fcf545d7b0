"""Convert weights: SAT checkpoints to diffusers folders and back.

  python sat/convert_weights.py to-hf models/single-identity hf/single-identity [--base MODEL.yaml] [--dtype bfloat16]
  python sat/convert_weights.py to-sat hf/single-identity models/back
  python sat/convert_weights.py check models/single-identity hf/single-identity

to-hf takes the VAE and the text encoder that the model's configuration names; without --base the configuration is the one of
configs/*.yaml whose sizes fit. A training checkpoint's averaged weights are its folder <n>-ema.
"""

import argparse
from pathlib import Path

from concat_id.errors import run
from concat_id.startup import prepare_process

MODELS = ("cogvideox_5b", "cogvideox_2b", "mini", "debug")


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("direction", choices=("to-hf", "to-sat", "check"))
    parser.add_argument("source", type=Path, help="SAT checkpoint folder, or for to-sat a diffusers folder")
    parser.add_argument("target", type=Path, help="folder to write; for check the diffusers folder to compare with")
    parser.add_argument("--base", nargs="+", default=[], metavar="FILE", help="the model's YAML files")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="type of all tensors (default: as they are)")
    parser.add_argument("--check", action="store_true", help="after to-hf, run the same seeded input through both")
    parser.add_argument("--trust-checkpoint", action="store_true", help="load pickles that can run code; only for files you made yourself")
    return parser.parse_args()


def main() -> None:
    """Convert as asked."""
    args = options()
    prepare_process()
    import torch

    from concat_id.config import load_config
    from concat_id.conversion.check import largest_difference
    from concat_id.conversion.folders import detect_model, to_hf, to_sat
    from concat_id.weights import load_sat_checkpoint

    dtype = getattr(torch, args.dtype) if args.dtype else None
    if args.direction == "to-sat":
        to_sat(args.source, args.target, dtype, args.trust_checkpoint)
        print(f"{args.target}: SAT checkpoint written")
        return
    if args.base:
        name, model = " ".join(args.base), load_config(args.base).model
    else:
        state_dict = load_sat_checkpoint(args.source, trust=args.trust_checkpoint).state_dict
        name, model = detect_model(state_dict, ((name, load_config([f"configs/{name}.yaml"]).model) for name in MODELS))
    print(f"model: {name}")
    if args.direction == "to-hf":
        to_hf(args.source, args.target, model, dtype, args.trust_checkpoint)
        print(f"{args.target}: diffusers folder written")
    if args.check or args.direction == "check":
        difference = largest_difference(args.source, args.target, model.transformer, trust=args.trust_checkpoint)
        print(f"largest difference of the transformers' outputs: {difference:.1e} of the largest value")


if __name__ == "__main__":
    run(main)
