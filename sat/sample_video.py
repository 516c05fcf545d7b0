"""Generate identity-preserving videos: `python sat/sample_video.py --base MODEL.yaml INFERENCE.yaml [--seed 42] [options]`.

Each line `prompt@@image[@@image]` of the prompt file becomes a folder with the video, the prepared references, a contact
sheet and info.json. Finished lines are skipped when run again. Under torchrun the processes share the lines.
"""

import sys
from pathlib import Path

from concat_id.errors import UserError, run
from concat_id.startup import prepare_process


def main() -> int:
    """Parse, load, prepare, sample, save; 1 if any line failed."""
    prepare_process()
    from concat_id.command_line import read_command_line
    from concat_id.config import load_config

    bases, overrides = read_command_line(__doc__)
    config = load_config(bases, overrides)

    from concat_id.distributed import choose_device
    from concat_id.pipelines.cogvideox import ConcatIDPipeline
    from concat_id.pipelines.generation import embed_prompts, find_jobs, make_videos, prepare_jobs, result_settings

    device = choose_device(config.args.device)
    jobs, problems = find_jobs(config)
    settings = result_settings(config)
    prepared, unprepared = prepare_jobs(jobs, config, settings, device)
    pipeline = ConcatIDPipeline(config, device, cache_dir=Path(config.args.output_dir) / ".prompt_embeddings")
    embed_prompts(prepared, pipeline)
    failures = make_videos(prepared, pipeline, settings)
    for item in prepared:
        print(item.job.folder)
    for problem in (problems := [*problems, *unprepared, *failures]):
        print(f"error: {problem}", file=sys.stderr)
    if problems and len(problems) == len(jobs):
        raise UserError(f"none of {len(jobs)} lines could be made")
    return 1 if problems else 0


if __name__ == "__main__":
    run(main)
