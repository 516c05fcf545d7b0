"""Train a stage of the demonstration model: `python demo/train_stage.py --base configs/mini.yaml demo/configs/stage1.yaml`.

Like sat/train_video.py, with the same options, but with batches, repeats and noise levels that suit a small model (networks/stages.py).
"""

import sys
from pathlib import Path

sys.path.extend([str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "sat")])

from concat_id.errors import run
from train_video import main as train


def main() -> int:
    """Train a stage."""
    return train(load_parts, __doc__)


def load_parts():
    """Return what a small model is trained with in the place of the library's classes."""
    from concat_id.training.preparation import Parts
    from networks.stages import LogitNormalObjective, MixedSampler, StageClips, repeated

    return Parts(StageClips, MixedSampler, LogitNormalObjective, repeated)


if __name__ == "__main__":
    run(main)
