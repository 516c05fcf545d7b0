"""Merge low-rank weights into those they were trained on: `python sat/merge_lora.py --load MODEL --lora exps/RUN/STEP --output FOLDER`.

The result is a checkpoint like any other, for `--load` of sat/sample_video.py or sat/train_video.py. STEP-ema holds averaged weights.
"""

from pathlib import Path

from concat_id.config.parser import Parser
from concat_id.errors import printable, run
from concat_id.startup import prepare_process


def main() -> int:
    """Load, merge, write."""
    prepare_process()
    parser = Parser(description=__doc__)
    parser.add_argument("--load", required=True, metavar="FOLDER", help="checkpoint of the transformer that was fine-tuned")
    parser.add_argument("--lora", required=True, metavar="FOLDER", help="folder with lora.safetensors")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder for the merged checkpoint, a new one")
    arguments = parser.parse_args()

    from concat_id.files import folder_written_whole, resolve_path
    from concat_id.low_rank import load_low_rank, merged
    from concat_id.weights import check_floats, load_sat_checkpoint, write_sat_checkpoint

    low_rank, scale = load_low_rank(resolve_path(arguments.lora))
    checkpoint = load_sat_checkpoint(resolve_path(arguments.load))
    check_floats(checkpoint.state_dict, checkpoint.source)
    weights = merged(checkpoint.state_dict, low_rank, scale)
    with folder_written_whole(arguments.output) as folder:
        write_sat_checkpoint(folder, "merged", weights)
    print(f"{printable(arguments.output)}: {len(low_rank) // 2} layers merged")
    return 0


if __name__ == "__main__":
    run(main)
