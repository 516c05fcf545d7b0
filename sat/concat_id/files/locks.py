"""One writer at a time, where two make no sense: the second is told who the first is, and a killed one holds nothing."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from concat_id.errors import UserError, reason_of


class InUseError(UserError):
    """Somebody else, `owner`, is writing this."""

    def __init__(self, what: str, owner: str):
        super().__init__(f"{what}: {owner} is writing it; wait for that to end, or choose another folder")
        self.owner = owner


@contextmanager
def locked(file: Path, what: str) -> Iterator[None]:
    """Hold the lock `file` inside the block; it names its owner, and it is gone when the block or the process ends.

    Raises `InUseError` about `what` where another process has it, `UserError` where none can be written.
    """
    descriptor = _acquire(Path(file), what)
    try:
        yield
    finally:
        _remove(Path(file))  # while it is held, so that nobody else's is removed
        os.close(descriptor)


def _acquire(file: Path, what: str) -> int:
    vanished = 0
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except (OSError, ValueError) as error:
            vanished += isinstance(error, FileNotFoundError)  # somebody may remove the folder just when it has been made
            if isinstance(error, FileNotFoundError) and vanished < 10:
                continue
            raise cannot_write(file.parent, error) from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # this process's: neither forked nor started ones inherit it
        except BlockingIOError as error:
            owner = _owner(descriptor)
            os.close(descriptor)
            raise InUseError(what, owner) from error
        except OSError:
            return descriptor  # a file system without locks
        if _is_still(file, descriptor):
            break
        os.close(descriptor)  # its owner has just removed it
    with suppress(OSError):
        os.fchmod(descriptor, 0o666)  # should this process be killed, another user may take what it leaves
    owner = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(owner).encode())
    except OSError as error:
        _remove(file)
        os.close(descriptor)
        raise UserError(f"{file}: could not be written ({reason_of(error)}); free some space or choose another folder") from error
    return descriptor


def cannot_write(folder: Path, error: Exception) -> UserError:
    """Say why a folder cannot be made or takes no file."""
    lost = isinstance(error, FileExistsError) and not os.path.exists(folder)
    reason = "a symbolic link that leads nowhere" if lost else reason_of(error)
    remedy = "set LC_ALL=C.UTF-8" if isinstance(error, UnicodeEncodeError) else "choose another folder"
    return UserError(f"{folder}: cannot write here ({reason}); {remedy}")


def _remove(file: Path) -> None:
    with suppress(OSError):  # another user's in a folder such as /tmp, where only that one may remove it
        file.unlink()


def _is_still(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except OSError:
        return False


def _owner(descriptor: int) -> str:
    try:
        told = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {told['process']} on {told['host']} (since {told['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
