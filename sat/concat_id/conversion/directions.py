"""What sat/convert_weights.py does for to-hf, to-sat, to-gguf, to-consistentid and check."""

from pathlib import Path

import torch

from concat_id.config.parser import Namespace
from concat_id.conversion import wan_folders
from concat_id.conversion.check import TOLERANCE, largest_difference
from concat_id.conversion.folders import choose_model, read_model, to_hf, to_sat
from concat_id.conversion.gguf_files import to_gguf
from concat_id.conversion.weight_sources import WeightSource, open_source
from concat_id.errors import UserError, printable, report
from concat_id.files.paths import written_whole
from concat_id.models.consistentid.adapter import read_adapter, released_groups
from concat_id.weights.loading import writing


def convert(args: Namespace) -> int | None:
    """Convert between SAT, diffusers and Wan, or compare; `args` is the command line of sat/convert_weights.py.

    Returns the exit code, 1 where what is compared differs.
    """
    dtype, trust = getattr(torch, args.dtype) if args.dtype else None, args.trust_checkpoint
    if args.direction == "to-gguf":
        count = to_gguf(args.source, args.target, args.type or "Q8_0")
        return print(f"{printable(args.target)}: {count} matrices in few bits, the rest in 16 or 32")
    if args.direction == "to-consistentid":
        count = to_consistentid(args.source, args.target, args.weights, dtype, trust)
        return print(f"{printable(args.target)}: {count} tensors in the released file's layout")
    if source := wan_folders.find_source(args.source, args.weights, args.load, trust):
        _convert_wan(source, args, dtype)
        return print(f"{printable(args.target)}: written")
    if args.direction == "to-sat":
        to_sat(args.source, args.target, dtype, trust)
        return print(f"{printable(args.target)}: SAT checkpoint written")
    source = open_source(args.source, args.weights, args.load, args.dtype == "float32", trust)
    name, model = choose_model(source, args.source, args.base)
    if model.lora:
        source = open_source(args.source, args.weights, args.load, args.dtype == "float32", trust, model.lora.alpha)
    print(f"model: {name}; weights: {printable(source.path)}, {source.digest}")
    if args.direction == "to-hf":
        to_hf(source, args.target, model, dtype, args.lora or "merge", trust)
        print(f"{printable(args.target)}: diffusers folder written")
    if args.check or args.direction == "check":
        difference = largest_difference(source, args.target, model.transformer)
        print(f"largest difference of the transformers' outputs: {difference:.1e} of the largest value")
        if not difference <= TOLERANCE:  # nor is anything as large as what is not a number
            report(f"{args.target}: does not compute what {source.path} does: found a difference of {difference:.1e}, expected at most"
                   f" {TOLERANCE:.0e}; compare it with the weights that it was made from, or convert them again")  # fmt: skip
            return 1


def _convert_wan(source: WeightSource, args: Namespace, dtype: torch.dtype | None) -> None:
    others = {"check": args.direction == "check", "--check": args.check}
    if option := next((option for option, given in others.items() if given), None):
        raise UserError(f"command line: {option}: is for CogVideoX alone, found Wan weights in {args.source}; leave it out")
    if args.direction == "to-sat":
        return wan_folders.to_native(source, args.target, dtype)
    model = read_model(args.base) if args.base else None
    wan_folders.to_diffusers(source, args.target, model, dtype, args.lora or "merge", args.trust_checkpoint)


def to_consistentid(source: Path, target: Path, weights: str | None, dtype: torch.dtype | None, trust: bool) -> int:
    """Write the adapter of a run as ConsistentID-v1.bin has it, three state dicts in a pickle; returns the number of tensors."""
    if target.suffix == ".safetensors":
        raise UserError(f"{target}: found a name of safetensors, which hold no state dicts in one, expected NAME.bin; give it another name")
    tensors = read_adapter(open_source(source, weights, trust=trust).path, trust)
    with written_whole(target) as temporary, writing():
        torch.save(released_groups({name: tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()}), temporary)
    return len(tensors)
