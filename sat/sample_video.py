"""Generate identity-preserving videos: `python sat/sample_video.py --base MODEL.yaml INFERENCE.yaml [--seed 42] [options]`.

Each line `prompt@@image[@@image]` of the prompt file becomes a folder with the video, the prepared references, a contact
sheet and info.json. Finished lines are skipped when run again. Under torchrun the processes share the lines.
"""

from pathlib import Path

from concat_id.errors import run
from concat_id.startup import prepare_process


def main() -> int:
    """Parse, load, prepare, sample, save; 1 if any line failed."""
    prepare_process()
    from concat_id.command_line import read_command_line
    from concat_id.config import load_config

    bases, overrides = read_command_line(__doc__)
    config = load_config(bases, overrides)

    from concat_id.distributed import choose_device, wait_if_failed
    from concat_id.pipelines.base import make_pipeline
    from concat_id.pipelines.generation import conclude, embed_prompts, find_jobs, make_videos, prepare_jobs, result_settings

    device = choose_device(config.args.device)
    jobs, problems = find_jobs(config)
    settings = result_settings(config)
    prepared, unprepared = prepare_jobs(jobs, config, settings, device)
    pipeline = make_pipeline(config, device, cache_dir=Path(config.args.output_dir) / ".prompt_embeddings")
    embed_prompts(prepared, pipeline)
    made, failures = make_videos(prepared, pipeline, settings)
    code = conclude(made, [*problems, *unprepared, *failures])
    wait_if_failed(code != 0)
    return code


if __name__ == "__main__":
    run(main)
