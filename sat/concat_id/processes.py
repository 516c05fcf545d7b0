"""torchrun without its own words: `python sat/concat_id/processes.py [torchrun's options] SCRIPT ...`; launch.py starts it.

What fails says so itself, in one line; of a process that is killed, this does. The exit code is that of the first that failed.
"""

import logging
import signal
import sys

from concat_id.errors import report
from concat_id.startup import prepare_process


def main() -> int:
    """Start the processes, and stop all when one fails."""
    prepare_process()
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun()
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode < 0:
            report(f"process {number} was ended by {signal.Signals(-failure.exitcode).name}; the others were ended too")
        return max(failure.exitcode, 1)
    except SignalException as error:  # which has gone to the processes too
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main())
