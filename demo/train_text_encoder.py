"""Train the small text encoder: `python demo/train_text_encoder.py --output data/t5`.

Makes a sentencepiece vocabulary and a T5 encoder in the layout of the released one, from captions of shots that are drawn by lot and
not rendered; what happens in them is what its embeddings are to tell.
"""

import sys
from pathlib import Path

sys.path.extend([str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "sat")])

from concat_id.config.parser import Namespace, Parser
from concat_id.startup import prepare_process, run
from minimum import check_minimum


def read_arguments() -> Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to make")
    parser.add_argument("--world", type=int, default=8000, metavar="N", help="captions of synthetic shots (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: %(default)s)")
    arguments = parser.parse_args()
    check_minimum(arguments, world=200, steps=1)  # so many captions that some are held out
    return arguments


def main() -> int:
    """Draw the captions, train, measure on those held out, write."""
    prepare_process()
    arguments = read_arguments()

    from concat_id.files.paths import folder_written_whole
    from networks.captions import make_caption
    from networks.text_encoder import TextEncoderTrainer, TextTraining
    from world.unseen import draw_captions

    with folder_written_whole(arguments.output) as folder:
        captions = [make_caption(text, facts) for text, facts in draw_captions(arguments.world, arguments.seed).items()]
        trainer = TextEncoderTrainer(captions, TextTraining(steps=arguments.steps, seed=arguments.seed), folder)
        trainer.train()
        lengths, accuracy = trainer.lengths(), trainer.accuracy(trainer.held_out)
        fits = float((lengths <= trainer.training.max_length).float().mean())
        print(f"{len(captions)} captions, {len(trainer.held_out)} held out; {fits:.2%} fit, the longest has {lengths.max()} tokens")
        for name, share in accuracy.items():
            print(f"  {name:32} {share:6.1%}")
        trainer.finish({"captions": len(captions), "held_out": len(trainer.held_out), "fit": fits, "accuracy": accuracy})
    print(f"{arguments.output} is ready")
    return 0


if __name__ == "__main__":
    run(main)
