"""Which device a run computes on."""

import pytest
import torch
from in_process import refused

from concat_id.distributed import choose_device

DEVICES = ["meta", "hpu", "mps", "cuda:99", "vulkan", "xla", "privateuseone", "fpga", "lazy", "cpu:5", "cuda:", "0", "CPU", "", "x" * 9999]


def test_the_cpu_computes():
    assert choose_device("cpu").type == choose_device("cpu:0").type == "cpu"


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_that_does_not_compute_is_refused_in_one_line(name):
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    message = refused(f"device: {name[:60]!r} cannot be used (", choose_device, name)
    assert message.endswith("; choose auto, cpu or one that torch sees") and len(message) < 400
