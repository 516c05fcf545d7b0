"""Under torchrun: sample the cases of a JSON file by all processes together; the first one saves the latents of each."""

import json
import os
import signal
import sys
from pathlib import Path

from concat_id.startup import prepare_process

prepare_process()

import torch  # noqa: E402
from tiny_pipelines import latents_of  # noqa: E402

from concat_id.config.loading import load_config  # noqa: E402
from concat_id.distributed import leave_processes, rank, world_size  # noqa: E402
from concat_id.sampling.pipeline import make_pipeline  # noqa: E402
from concat_id.sampling.sharing import Sharing, way_of_sharing  # noqa: E402


def main(cases: str, output: str) -> None:
    torch.set_num_threads(1)
    found = {}
    for name, (files, overrides, people) in json.loads(Path(cases).read_text()).items():
        config = load_config(files, overrides)
        way = way_of_sharing(config)
        sharing = Sharing(way, torch.device("cpu")) if way else None
        pipeline = make_pipeline(config, torch.device("cpu"), None, sharing)
        if name == "killed" and rank() == world_size() - 1:
            pipeline._sample = lambda *request: os.kill(os.getpid(), signal.SIGKILL)
        if rank():
            pipeline.follow()
            continue
        found[name] = latents_of(pipeline, shades=range(0, 60 * people, 60))
        if sharing:
            sharing.end()
    if rank() == 0:
        torch.save(found, output)
    leave_processes()


if __name__ == "__main__":
    main(*sys.argv[1:])
