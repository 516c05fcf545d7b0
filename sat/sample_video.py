"""Generate identity-preserving videos: `python sat/sample_video.py --model mini --image a.png --prompt "..." [options]`.

Each line `prompt@@image[@@image]` of the prompt file becomes a folder with the video, the prepared references, a contact
sheet and info.json. Finished lines are skipped when run again. Under torchrun the processes share the lines.
"""

from concat_id.startup import prepare_process, run


def main() -> int:
    """Parse, load, prepare, sample, save; 1 if any line failed."""
    prepare_process()
    from concat_id.config.command_line import read_command_line

    bases, overrides = read_command_line(__doc__)

    from concat_id.config.loading import load_config

    return make(load_config(bases, overrides))


def make(config) -> int:
    """Make the videos of a configuration and rank the takes of each; 1 if any line failed."""
    from concat_id.sampling.run import generate

    judge = None
    if config.args.best_of:
        from concat_id.evaluation.ranking import TakeJudge

        judge = TakeJudge()
    return generate(config, judge)


if __name__ == "__main__":
    run(main)
