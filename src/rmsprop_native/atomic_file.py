"""Files that are replaced as a whole: whoever reads one finds the old content or the new; and a lock on a folder."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import TYPE_CHECKING, Any

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed: no lock is needed
    fcntl = None  # type: ignore[assignment]
_HAS_LOCKS: bool = fcntl is not None

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

__all__ = ["BUFFER", "alone_in", "replacing"]

BUFFER = 1 << 16  # bytes that are gathered; what is larger is read and written at once, without a copy
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_NAME = ".rmsprop_native-{}.tmp"
_STRAY = re.compile(re.escape(_NAME).replace(r"\{\}", "[0-9a-f]{16}"))


@contextlib.contextmanager
def replacing(path: Any) -> Iterator[BinaryIO]:
    """A file to write, which becomes the file at `path` where the body ends without an error.

    It is a temporary file in the same folder until then; it is written to disk before it gets its name, and the folder
    after. A file that a killed process left there is removed by the next call for a path in that folder: each process
    holds a lock on its own.

    Parameters
    ----------
    path : str, bytes or path-like
        Where it is a symbolic link, the file that it points to is replaced. A new file has the permissions of any new
        file, another one keeps its own.

    Yields
    ------
    file object
        Binary; it can seek and be read.

    Raises
    ------
    OSError
        If anything fails on the way; what was at `path` is still there then.

    Examples
    --------
    >>> import os, tempfile
    >>> from rmsprop_native.atomic_file import replacing
    >>> path = os.path.join(tempfile.mkdtemp(), "a.bin")
    >>> with replacing(path) as file:
    ...     _ = file.write(b"abc")
    >>> os.listdir(os.path.dirname(path))
    ['a.bin']
    """
    target = os.path.realpath(os.fsdecode(path))
    folder = os.path.dirname(target)
    temporary, fd, file = "", -1, None
    try:
        mode = _mode_of(target)
        _sweep(folder)
        try:
            while fd < 0:
                temporary = os.path.join(folder, _NAME.format(os.urandom(8).hex()))
                fd = os.open(temporary, _NEW, 0o666 if mode is None else mode)
                if not _lock(fd, temporary):  # another process has taken it for a stray
                    fd, taken = -1, fd
                    os.close(taken)
            if mode is not None and hasattr(os, "fchmod"):
                os.fchmod(fd, mode)
            file = open(fd, "w+b", buffering=BUFFER, closefd=False)  # noqa: SIM115 - closed below, before its descriptor
            yield file
            file.flush()
            os.fsync(fd)
            if not _HAS_LOCKS:
                file.close()
                fd, done = -1, fd
                os.close(done)
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            if file is not None:
                with contextlib.suppress(OSError):  # it writes what is left after an error, where there may be no room
                    file.close()
            if fd >= 0:
                os.close(fd)
        _sync_folder(folder)
    except OSError as error:
        if error.errno is None or (error.filename is not None and os.path.dirname(error.filename) != folder):
            raise
        raise OSError(
            error.errno, error.strerror, os.fsdecode(path)
        ) from error  # of the file, not of the temporary one


@contextlib.contextmanager
def alone_in(folder: str) -> Iterator[None]:
    """Hold a lock on a folder, which the system releases where the process is killed.

    Parameters
    ----------
    folder : str

    Raises
    ------
    BlockingIOError
        If another process or call holds it. A file system without locks on folders has none.

    Examples
    --------
    >>> import tempfile
    >>> from rmsprop_native.atomic_file import alone_in
    >>> folder = tempfile.mkdtemp()
    >>> with alone_in(folder):
    ...     try:
    ...         with alone_in(folder):
    ...             print("two")
    ...     except BlockingIOError:
    ...         print("one")
    one
    """
    if not _HAS_LOCKS:
        yield
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, "Another process is writing into it", folder) from error
        except OSError:  # a file system without such locks
            pass
        yield
    finally:
        os.close(fd)


def _mode_of(target: str) -> int | None:
    """The permissions of a file that may be replaced; None where there is none."""
    try:
        found = os.stat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(21, "Is a directory", target)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(22, "Not a regular file", target)
    if not os.access(target, os.W_OK):
        raise PermissionError(13, "Permission denied", target)
    return stat.S_IMODE(found.st_mode) & 0o777


def _lock(fd: int, temporary: str) -> bool:
    """Lock a new temporary file; False if it was removed before."""
    if not _HAS_LOCKS:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError:
        return True  # a file system without locks, where strays are not removed either
    try:
        return os.stat(temporary).st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False


def _sweep(folder: str) -> None:
    """Remove the temporary files of processes that have ended."""
    with contextlib.suppress(OSError):  # of another user, in a folder that cannot be listed, or removed meanwhile
        strays = [name for name in os.listdir(folder) if _STRAY.fullmatch(name)]
        for name in strays:
            _remove_stray(os.path.join(folder, name))


def _remove_stray(stray: str) -> None:
    with contextlib.suppress(OSError):
        if not _HAS_LOCKS:
            os.unlink(stray)
            return
        fd = os.open(stray, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(stray)
        finally:
            os.close(fd)


def _sync_folder(folder: str) -> None:
    """Write a folder to disk, so that a new name in it outlives a loss of power."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
