"""The head model, which takes a second, and people to look at."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest


def pytest_collection_modifyitems(items):
    """Skip what needs the optional part of requirements.txt where it is absent."""
    if importlib.util.find_spec("numba") is None:
        skip = pytest.mark.skip(reason="numba is not installed: `bash scripts/setup.sh people`")
        for item in items:
            if item.path.parent == Path(__file__).parent:
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def kernels():
    """Compiled from this very source, not from an older one."""
    from world.kernel_cache import keep_kernels

    keep_kernels()


@pytest.fixture(scope="session")
def head(kernels):
    from world.head import HeadModel

    return HeadModel()


@pytest.fixture(scope="session")
def people(head):
    from world.dataset import make_person

    return [make_person(head, 0, index) for index in range(4)]


@pytest.fixture(scope="session")
def drawn(head, people):
    """Draw frames of a shot: `drawn(people, seed, frames, **changes of the performances)` gives [(image, classes)], facts."""
    from world.render import ShotRenderer
    from world.shots import sample_shot

    def draw(cast, seed=0, frames=(0,), size=(96, 144), neutral=False, **changes):
        shot = sample_shot(cast, np.random.default_rng(seed), max(frames) + 1, neutral=neutral)
        for performance in shot.performances:
            for name, value in changes.items():
                setattr(performance, name, value)
        renderer = ShotRenderer(head, cast, shot, size)
        return [renderer.frame(index) for index in frames], shot.facts

    return draw
