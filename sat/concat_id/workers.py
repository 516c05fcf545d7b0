"""A function over many items in several processes, each begun anew."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeVar

from concat_id.errors import UserError

Item, Result = TypeVar("Item"), TypeVar("Result")


def in_processes(function: Callable[[Item], Result], items: Sequence[Item], workers: int, start: Callable[..., None],
                 arguments: tuple[Any, ...]) -> Iterator[Result]:  # fmt: skip
    """Yield `function(item)` in the order of `items`; every process first calls `start(*arguments)`.

    What is not begun when the iterator is closed is left. Raises `UserError` where a process ends by itself, as when memory is short, and
    what `start` raises for the user.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start, (start, arguments))
    try:
        yield from pool.map(partial(_call, function), items)
    except BrokenProcessPool as error:
        raise UserError("a worker process ended before its work was done, perhaps for want of memory; "
                        "give fewer --workers, the same command goes on from here") from error  # fmt: skip
    finally:
        pool.shutdown(cancel_futures=True)


_failure: UserError | None = None  # of this process's start


def _start(start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    global _failure
    try:
        start(*arguments)
    except UserError as error:  # raised here, it would be pages of text
        _failure = error


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    if _failure is not None:
        raise _failure
    return function(item)
