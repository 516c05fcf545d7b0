#!/usr/bin/env python3
"""Concat-ID on Wan2.1: `python inference_wan.py --image_path a.png --prompt "A woman laughs in the rain" --output_dir outputs/1`.

Makes 81 frames of 480x832 with the people of the photos, or every line `prompt@@photo` of --input_file. Each becomes a folder with the
video, the prepared references, a contact sheet and info.json; finished ones are skipped when run again. Any Python from
3.11 to 3.13 starts it: the first start sets up .venv.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "sat"))

from concat_id.bootstrap import enter_environment  # noqa: E402
from concat_id.errors import warn  # noqa: E402
from concat_id.startup import prepare_process, run  # noqa: E402


def main() -> int:
    """Parse, load, prepare, sample, save; 1 if any line failed."""
    enter_environment()
    prepare_process()
    from concat_id.config.loading import load_config
    from concat_id.config.presets import PRESETS, UNTRAINED, require
    from concat_id.config.wan_command_line import read_wan_command_line

    request = read_wan_command_line(__doc__)
    config = load_config(request.bases, request.overrides, request.options)

    if request.download and request.model in UNTRAINED:
        warn(f"--download: {request.model} is made on this machine, nothing of it is fetched")
    elif request.download:
        from concat_id.sampling.downloads import download

        download(request.download)
    transformer, others = None if config.args.gguf else config.args.load, (config.model.autoencoder.path, config.model.text_encoder.path)
    require(PRESETS[request.model], transformer, others)

    from sample_video import make

    return make(config)


if __name__ == "__main__":
    run(main, sets_up=True)
