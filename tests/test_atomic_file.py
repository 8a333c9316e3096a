"""Files that are replaced as a whole: permissions, links, strays; full disks and folders that cannot be written."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import threading

import pytest
from conftest import run_python

from rmsprop_native import atomic_file
from rmsprop_native.atomic_file import alone_in, replacing


def write(path, data):
    with replacing(path) as file:
        file.write(data)


def stray_names(folder):
    return [name for name in os.listdir(folder) if name.startswith(".rmsprop_native-")]


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path, umask):
    write(tmp_path / "a", b"new")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("mode", [0o600, 0o666, 0o640])
def test_a_file_keeps_its_permissions(tmp_path, umask, mode):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(mode)
    with replacing(path) as file:
        (name,) = stray_names(tmp_path)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode  # before there is anything in it
        file.write(b"new")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("kind", [str, os.fsencode, lambda path: path], ids=["str", "bytes", "Path"])
def test_paths(tmp_path, kind, monkeypatch):
    write(kind(tmp_path / "é.bin"), b"1")
    assert (tmp_path / "é.bin").read_bytes() == b"1"
    monkeypatch.chdir(tmp_path)
    write("relative", b"2")
    write("x" * 250, b"3")  # there is room for a temporary name
    assert (tmp_path / "relative").read_bytes() == b"2"


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "a"
    target.write_bytes(b"old")
    for i, to in enumerate((target, "there/a", "there/new")):
        link = tmp_path / f"link{i}"
        link.symlink_to(to)
        write(link, b"%d" % i)
        assert link.is_symlink()
        assert link.read_bytes() == b"%d" % i
    assert target.read_bytes() == b"1"
    assert sorted(os.listdir(tmp_path / "there")) == ["a", "new"]


def test_what_is_no_file_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, match in (("folder", "Is a directory"), ("pipe", "Not a regular file"), ("loop", "symbolic links")):
        with pytest.raises(OSError, match=f"{match}.*{name}"):
            write(tmp_path / name, b"")
    with pytest.raises(OSError, match="Not a regular file: '/dev/null'"):
        write("/dev/null", b"")
    with pytest.raises(FileNotFoundError, match="No such file or directory: .*missing/a"):
        write(tmp_path / "missing" / "a", b"")
    with pytest.raises(TypeError, match="expected str, bytes or os.PathLike"):
        write(sys.stdin, b"")
    assert not stray_names(tmp_path)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
def test_an_error_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(error), replacing(path) as file:  # noqa: PT012
        file.write(b"n" * 3_000_000)
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


# ---- disks and folders ----


def test_a_file_that_cannot_grow_leaves_the_old_one(tmp_path):
    """The limit of the size of a file, where the system answers as a full disk does: by an error of write."""
    path = tmp_path / "a"
    path.write_bytes(b"old")
    code = """
import resource, sys
from rmsprop_native.atomic_file import alone_in, replacing
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
for size in (3_000_000, 2_000_001):  # refused by a write, and by the flush at the end
    try:
        with replacing(sys.argv[1]) as file:
            file.write(b"n" * 1_999_999)
            file.write(b"n" * (size - 1_999_999))
    except OSError as error:
        print(error)
"""
    assert run_python(code, path).splitlines() == [f"[Errno 27] File too large: '{path}'"] * 2
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_and_a_file_that_cannot_be_written(tmp_path):
    """In a process of a user without rights, whoever runs the tests."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_bytes(b"old")
    (folder / "a").chmod(0o666)
    folder.chmod(0o555)
    (tmp_path / "b").write_bytes(b"old")
    (tmp_path / "b").chmod(0o444)
    code = """
import os, sys
from rmsprop_native.atomic_file import alone_in, replacing
os.chdir(sys.argv[1])
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for path in ("folder/a", "folder/new", "b"):
    try:
        with replacing(path) as file:
            file.write(b"new")
    except OSError as error:
        print(error)
"""
    printed = run_python(code, tmp_path).splitlines()
    assert printed == [f"[Errno 13] Permission denied: '{path}'" for path in ("folder/a", "folder/new", "b")]
    assert (folder / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"old"
    assert os.listdir(folder) == ["a"]
    folder.chmod(0o755)


@pytest.mark.parametrize("name", ["fchmod", "fsync"])
def test_a_system_call_that_fails_is_an_error_of_the_file(tmp_path, name, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "a"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, name, fails)
    with pytest.raises(OSError, match=rf"^\[Errno 28\] No space left on device: '{path}'$"):
        write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("error", [OSError("another"), FileNotFoundError(2, "No such file or directory", "/else/b")])
def test_an_error_of_another_file_stays_as_it_is(tmp_path, error):
    with pytest.raises(OSError, match=re.escape(str(error))) as caught, replacing(tmp_path / "a"):
        raise error
    assert caught.value is error
    assert os.listdir(tmp_path) == []


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(atomic_file.fcntl, "flock", fails)
    write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def test_a_new_file_that_another_process_takes_for_a_stray(tmp_path, monkeypatch):
    """Between its creation and its lock: another one is made."""
    lock, removed = atomic_file.fcntl.flock, []

    def removed_first(fd, how):
        if not removed:
            removed.extend(stray_names(tmp_path))
            os.unlink(tmp_path / removed[0])
        lock(fd, how)

    monkeypatch.setattr(atomic_file.fcntl, "flock", removed_first)
    write(tmp_path / "a", b"new")
    assert len(removed) == 1
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


# ---- strays ----


WRITES = """
import sys
from rmsprop_native.atomic_file import alone_in, replacing
with replacing(sys.argv[1]) as file:
    file.write(b"n" * 2_000_000)
    print("written", flush=True)
    sys.stdin.read()
"""


def test_the_file_of_a_killed_process_is_removed_and_that_of_another_one_stays(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITES, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        assert all(writer.stdout.readline() == b"written\n" for writer in writers)
        assert len(stray_names(tmp_path)) == 2
        writers[0].kill()
        writers[0].wait()
        (tmp_path / ".rmsprop_native-mine.tmp").write_bytes(b"of somebody else")
        write(tmp_path / "b", b"another file in the same folder")
        assert len(stray_names(tmp_path)) == 2
        assert path.read_bytes() == b"old"
        writers[1].communicate(b"")
        assert path.read_bytes() == b"n" * 2_000_000
        assert stray_names(tmp_path) == [".rmsprop_native-mine.tmp"]
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()


@pytest.mark.threads
def test_threads_that_write_the_same_file_sweep_no_file_of_each_other(tmp_path):
    path = tmp_path / "a"
    errors = []

    def work(i):
        try:
            for _ in range(100):
                write(path, b"%d" % i * 1000)
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(set(path.read_bytes())) == 1
    assert os.listdir(tmp_path) == ["a"]


HOLD = """
import sys
from rmsprop_native.atomic_file import alone_in
with alone_in(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_held_until_its_process_ends(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError, match="Another process is writing into it"), alone_in(str(tmp_path)):
        pass
    holder.kill()
    holder.communicate()
    with alone_in(str(tmp_path)):
        pass


@pytest.mark.parametrize("locks", [False, True])
def test_a_folder_where_there_are_no_locks(tmp_path, monkeypatch, locks):
    def flock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(atomic_file, "_HAS_LOCKS", locks)
    monkeypatch.setattr(atomic_file.fcntl, "flock", flock)
    with alone_in(str(tmp_path)), alone_in(str(tmp_path)):
        pass
