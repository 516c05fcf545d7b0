#!/usr/bin/env python3
"""Concat-ID on Wan2.1: `python inference_wan.py --image_path a.png --prompt "A woman laughs in the rain" --output_dir outputs/1`.

Makes 81 frames of 480x832 with the people of the photos, or every line `prompt@@photo` of --input_file. Each becomes a folder with the
video, the prepared references, a contact sheet and info.json; finished ones are skipped when run again. Any Python 3.11 starts it: the
first start sets up .venv.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "sat"))

from concat_id.bootstrap import enter_environment  # noqa: E402
from concat_id.errors import run  # noqa: E402
from concat_id.startup import prepare_process  # noqa: E402


def main() -> int:
    """Parse, load, prepare, sample, save; 1 if any line failed."""
    enter_environment()
    prepare_process()
    from concat_id.config import load_config
    from concat_id.wan_command_line import read_wan_command_line

    request = read_wan_command_line(__doc__)
    config = load_config(request.bases, request.overrides, request.options)

    from concat_id.pipelines.wan_files import download, require_files

    if request.download:
        download(request.download)
    require_files(config)

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
