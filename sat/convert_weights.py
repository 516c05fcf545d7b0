"""Convert weights: SAT checkpoints to diffusers folders and back.

  python sat/convert_weights.py to-hf models/single-identity hf/single-identity [--base MODEL.yaml] [--dtype bfloat16] [--check]
  python sat/convert_weights.py to-hf exps/RUN hf/mine [--weights ema] [--lora keep]
  python sat/convert_weights.py to-sat hf/single-identity models/back
  python sat/convert_weights.py check models/single-identity hf/single-identity

to-hf takes checkpoints with `latest`, training runs or one checkpoint of them, low-rank weights (lora.safetensors) and DeepSpeed's
ZeRO shards, with the VAE and text encoder that the model's configuration names. Without --base that is the run's own, or the
one of configs/*.yaml whose sizes fit. Wan's weights are recognised; for them to-sat writes one file with Wan's own names.
"""

from pathlib import Path

from concat_id.config.parser import Namespace, Parser
from concat_id.errors import UserError, printable, run
from concat_id.startup import prepare_process

MODELS = ("cogvideox_5b", "cogvideox_2b", "mini", "debug")


def options() -> Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("direction", choices=("to-hf", "to-sat", "check"))
    parser.add_argument("source", type=Path, help="SAT checkpoint or training run, or for to-sat a diffusers folder")
    parser.add_argument("target", type=Path, help="folder to write; for check the diffusers folder to compare with")
    parser.add_argument("--base", nargs="+", default=[], metavar="FILE", help="the model's YAML files")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="type of all tensors (default: as they are)")
    parser.add_argument("--weights", choices=("plain", "ema"), help="a training's last or averaged weights (default: what is named)")
    parser.add_argument("--lora", choices=("merge", "keep"), default="merge", help="add low-rank weights, or write them beside the rest")
    parser.add_argument("--load", metavar="FOLDER", help="weights that low-rank ones were trained on (default: as the run recorded)")
    parser.add_argument("--check", action="store_true", help="after to-hf, run the same seeded input through both, 4 bytes a parameter")
    parser.add_argument("--trust-checkpoint", action="store_true", help="load pickles that can run code; only for files you made yourself")
    return parser.parse_args()


def convert_wan(args: Namespace, dtype) -> bool:
    """Hand a Wan checkpoint to the module that knows Wan; tells whether it was one."""
    from concat_id.config.loading import load_config
    from concat_id.conversion import wan

    if not wan.is_wan(args.source, args.trust_checkpoint):
        return False
    given = {"check": args.check or args.direction == "check", "weights": args.weights, "lora": args.lora == "keep", "load": args.load}
    if name := next((name for name, value in given.items() if value), None):
        raise UserError(f"command line: {name}: is for CogVideoX alone, found Wan weights in {args.source}; leave it out")
    model = [load_config(args.base).model if args.base else None] if args.direction == "to-hf" else []
    convert = wan.to_diffusers if args.direction == "to-hf" else wan.to_native
    convert(args.source, args.target, *model, dtype=dtype, trust=args.trust_checkpoint)
    print(f"{printable(args.target)}: written")
    return True


def main() -> None:
    """Convert as asked."""
    args = options()
    prepare_process()
    import torch

    from concat_id.config.loading import load_config
    from concat_id.conversion.check import largest_difference
    from concat_id.conversion.folders import detect_model, to_hf, to_sat
    from concat_id.conversion.sources import open_source, run_configuration

    dtype = getattr(torch, args.dtype) if args.dtype else None
    if convert_wan(args, dtype):
        return
    if args.direction == "to-sat":
        to_sat(args.source, args.target, dtype, args.lora, args.trust_checkpoint)
        return print(f"{printable(args.target)}: SAT checkpoint written")
    source = open_source(args.source, args.weights, args.load, args.dtype == "float32", args.trust_checkpoint)
    if args.lora == "keep" and source.products is None:
        raise UserError(f"{source.path}: found whole weights, no low-rank ones to keep; leave --lora keep out")
    base = args.base or ([str(recorded)] if (recorded := run_configuration(args.source)) else [])
    if base:
        name, model = " ".join(base), load_config(base).model
    else:
        name, model = detect_model(source.open(), ((name, load_config([f"configs/{name}.yaml"]).model) for name in MODELS))
    print(f"model: {name}; weights: {printable(source.path)}, {source.digest}")
    if args.direction == "to-hf":
        to_hf(source, args.target, model, dtype, args.lora, args.trust_checkpoint)
        print(f"{printable(args.target)}: diffusers folder written")
    if args.check or args.direction == "check":
        difference = largest_difference(source, args.target, model.transformer)
        print(f"largest difference of the transformers' outputs: {difference:.1e} of the largest value")


if __name__ == "__main__":
    run(main)
