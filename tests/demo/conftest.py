"""What the trainings of the demonstration model share."""

from contextlib import contextmanager

import pytest

from networks.learner import Learner


@pytest.fixture
def stopped_after(monkeypatch):
    """A context in which a training ends after so many steps as by Ctrl-C."""

    @contextmanager
    def stop(steps: int):
        descend, taken = Learner._descend, []

        def last_descend(learner, loss):
            descend(learner, loss)
            taken.append(loss)
            if len(taken) == steps:
                learner.save()
                raise KeyboardInterrupt

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Learner, "_descend", last_descend)
            yield

    return stop
