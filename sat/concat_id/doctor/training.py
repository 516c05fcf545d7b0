"""Training: whether the lists can be read, and the memory of a GPU, by the plan that is passed in."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from concat_id.config.schema import Config
from concat_id.data.checking import check_lists
from concat_id.data.clips import Window
from concat_id.data.records import inspect_records
from concat_id.doctor.findings import NOTE, OK, PROBLEM, Finding, from_error, gib
from concat_id.doctor.machine import Capacity
from concat_id.errors import UserError, shortened

MOST_CLIPS = 50  # that are opened
USABLE = 0.9  # of a GPU's memory, beside the context and what the allocator loses
PER_CLIP = 5.0  # seconds


def examine_lists(config: Config, files: Sequence[str]) -> Iterator[Finding]:
    """Check the configured lists; of long ones the entries without their clips."""
    lists = [*config.training.train_data, *config.training.valid_data]
    command = f"python sat/check_dataset.py --base {' '.join(files)}"
    if not lists:
        yield Finding(NOTE, "lists", "none configured", "--train_data LIST --valid_data LIST, see docs/data.md")
        return
    try:
        records, problems, notes = inspect_records(lists)
        if not problems and len(records) <= MOST_CLIPS:
            data = config.data
            window = Window(data.fps, data.max_num_frames, data.skip_frms_num, tuple(data.video_size))
            report = check_lists(lists, window, config.model.transformer.max_refs, timeout_s=PER_CLIP)
            problems, notes = report.problems, report.notes
    except UserError as error:
        yield from_error("lists", error)
        return
    looked = "all opened" if len(records) <= MOST_CLIPS else "clips not opened"
    found = f"{len(records)} entries, {looked}; {len(problems)} problems, {len(notes)} notes"
    found += f", the first: {shortened(problems[0])}" if problems else ""
    yield Finding(PROBLEM if problems else OK, "lists", found, command if problems or notes or looked != "all opened" else "")


def examine_memory(plan: Callable[[int], Any], gpus: Sequence[int], capacity: Capacity) -> Iterator[Finding]:
    """Tell what each GPU needs with so many of them; `plan` returns the bytes of a process as `peak` and `host`."""
    for count in gpus:
        planned = plan(count)
        fits = planned.peak <= USABLE * capacity.device
        host = f", and {gib(planned.host)} GiB of memory each" if planned.host else ""
        found = f"about {gib(planned.peak)} GiB on each{host}: {'fits' if fits else 'does not fit'} {gib(capacity.device)} GiB"
        advice = "" if fits or count < gpus[-1] else "python sat/plan_training.py --zero 3 --offload"
        numbers = {"gpus": count, "bytes": planned.peak, "fits": fits}
        yield Finding(OK if fits else NOTE, f"{count} GPU{'s' * (count > 1)}", found, advice, numbers)
