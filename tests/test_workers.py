"""A function over many items in several processes: order, and processes that end by themselves."""

import os

import pytest
from in_process import refused

from concat_id.workers import in_processes


def test_results_come_in_the_order_of_the_items():
    assert list(in_processes(abs, [-3, 1, -2], 2, os.getpid, ())) == [3, 1, 2]


@pytest.mark.parametrize("function, start, arguments", [(os._exit, os.getpid, ()), (abs, os._exit, (1,)), (abs, int, ("no number",))])
def test_a_process_that_ends_is_told(function, start, arguments):
    refused("a worker process ended", list, in_processes(function, [1, 2, 3], 2, start, arguments))
