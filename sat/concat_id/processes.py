"""torchrun without its own words: `python sat/concat_id/processes.py [torchrun's options] SCRIPT ...`; launch.py starts it.

What fails says so itself, in one line; of a process that is killed, this does. The exit code is that of the first that failed.

Processes of one machine (--standalone) meet by files in a private folder, and gloo's talk over the loopback interface. torchrun's own
way is a server that listens on every address and unpickles what it is sent.
"""

import logging
import os
import signal
import sys
import tempfile

from concat_id.errors import report
from concat_id.startup import MPI, prepare_process


def main() -> int:
    """Start the processes, and stop all when one fails."""
    prepare_process()
    for name in MPI.values():
        os.environ.pop(name, None)  # of mpirun's one process; torchrun says which each of its own is
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("LOGLEVEL", "CRITICAL")  # some of its modules have a level of their own
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    from concat_id.distributed import STORE

    try:
        with tempfile.TemporaryDirectory(prefix="concat-id-") as folder:
            arguments = ["--log-dir", folder, *sys.argv[1:]]
            if "--standalone" in arguments:
                place = arguments.index("--standalone")
                arguments[place : place + 1] = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{folder}/agent", "--rdzv-id", "0",
                                                "--rdzv-conf", "store_type=file"]  # fmt: skip
                os.environ |= {STORE: f"{folder}/workers", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            torchrun(arguments)
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
