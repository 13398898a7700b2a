"""Files and folders that are being written: hidden, held by one process, cleared after a kill.

What is being written lies beside its target as ``.name.part``, and its writer holds a lock of the
operating system on it. The lock ends with the process, however that ends: so what is not locked
was left behind, whoever has the number of the dead process now.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from simba_lab.core.errors import SimbaError

PART = ".part"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What goes wrong on disks and in folders, and is no fault of the code.
DISK_ERRORS = (
    *FULL,
    *(errno.EIO, errno.ESTALE, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO),
    *(errno.ENODEV, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EBADMSG),
)
# The file system has no locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


def is_unfinished(path: Path) -> bool:
    """Return whether a file or folder is one that is being written, or was when a process died."""
    return path.name.startswith(".") and path.name.endswith(PART)


def part_of(path: Path) -> Path:
    """Return the hidden path beside a file or folder where it lies while it is being written."""
    return path.with_name(f".{path.name}{PART}")


@contextmanager
def disk_errors(field: str, path: Path, remedy: str) -> Iterator[None]:
    """Turn what goes wrong on disks into the lab's error, with the system's word for it."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        allowed = f"a {field} that can be written"
        if error.errno in FULL:
            allowed = "on a disk with enough space"
        problem = error.strerror or str(error)
        raise SimbaError(field, str(path), allowed, f"{problem}; {remedy}") from error


@contextmanager
def one_process(path: Path, problem: str) -> Iterator[None]:
    """Hold a hidden lock beside a file; the folder that it is in is made if need be.

    Raises
    ------
    SimbaError
        With this problem if another process holds it; or if the folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    with disk_errors("file", path, "choose another."):
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        try:
            held.acquire(timeout=0)
        except Timeout as error:
            raise SimbaError.problem(problem, "Wait for it, or choose another.") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        held.release()


@contextmanager
def unfinished_file(path: Path) -> Iterator[Path]:
    """Lend an empty hidden file beside a path; it is gone afterwards, unless it was renamed.

    Whoever writes the same file waits.
    """
    part = part_of(path)
    descriptor = _held(part, os.O_RDWR | os.O_CREAT, wait=True)
    try:
        os.truncate(descriptor, 0)
        yield part
    finally:
        if _is_still(descriptor, part):
            part.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def unfinished_folder(path: Path, *, parents: bool = False) -> Iterator[Path]:
    """Lend an empty hidden folder beside a path; it is gone afterwards, unless it was renamed.

    Raises
    ------
    SimbaError
        If another process writes the same folder.
    """
    part = part_of(path)
    if parents:
        part.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _held(part, os.O_RDONLY | os.O_DIRECTORY, wait=False)
    try:
        for entry in part.iterdir():  # left by a writer that was killed
            _remove(entry)
        yield part
    finally:
        if _is_still(descriptor, part):
            _remove(part)
        os.close(descriptor)


def _held(part: Path, flags: int, *, wait: bool) -> int:
    """Return an open descriptor of a hidden file or folder that this process alone holds."""
    while True:
        if flags & os.O_DIRECTORY:
            if part.is_symlink() or not part.is_dir():
                part.unlink(missing_ok=True)
            part.mkdir(exist_ok=True)
        elif part.is_symlink() or part.is_dir():
            _remove(part)
        try:
            descriptor = os.open(part, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            if part.parent.is_dir():  # another process has just finished with it
                continue
            raise
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                os.close(descriptor)
                raise SimbaError.problem(
                    f"Another process is writing {str(part.parent / part.name[1 : -len(PART)])!r}.",
                    "A folder is written by one process at a time; wait, or choose another.",
                ) from error
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
        if _is_still(descriptor, part):
            return descriptor
        os.close(descriptor)  # it was renamed or removed before it was locked


def _is_still(descriptor: int, part: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), part.lstat())
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()
