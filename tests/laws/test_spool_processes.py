"""The spool between processes, and where the system fails it: promises hold when a writer is killed or has no room."""

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ext.spool import SpoolReader, SpoolWriter
from schemas.errors import SpoolFull
from tests.support.oracles import Rec
from tests.support.spooling import BOOT, SEGMENT, padded, put, read_all, segments, told, writer


def child(what: str, folder: Path, *arguments: int) -> "subprocess.Popen[str]":
    """One of the children of `tests/support/spooling.py`."""
    command = [sys.executable, "-m", "tests.support.spooling", what, str(folder), *map(str, arguments)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def numbered(number: int) -> Rec:
    """The record that the writing child gives a number."""
    return padded(number, 176 + 8 * (number % 50))


def remove_read(folder: Path, reader: SpoolReader) -> None:
    """What a host does with segments that it has sealed."""
    for path in segments(folder):
        if int(path.stem) < reader.segment:
            path.unlink()


def test_a_reader_in_another_process_sees_every_record_once_while_it_is_written(tmp_path: Path) -> None:
    many = 5_000  # more than twice what the spool holds, so that the writer waits for us
    writing = child("write", tmp_path, many)
    reader = SpoolReader(str(tmp_path), BOOT)
    seen = 0
    deadline = time.monotonic() + 120
    try:
        while seen < many and time.monotonic() < deadline:
            for seq, rec in told(reader.read(300, 1 << 20)):
                seen += 1
                assert (seq, rec.ref, rec.texts) == (seen, seen, numbered(seen).texts)
            remove_read(tmp_path, reader)
        out, err = writing.communicate(timeout=60)
    finally:
        writing.kill()
    assert (out, err, writing.returncode) == ("done\n", "", 0)
    assert (seen, reader.torn) == (many, "")
    assert reader.segment > 8


@pytest.mark.parametrize("seed", range(6))
def test_a_killed_writer_leaves_whole_records_and_another_goes_on(tmp_path: Path, seed: int) -> None:
    pause = random.Random(seed)
    writing = child("write", tmp_path, 1 << 30)
    reader = SpoolReader(str(tmp_path), BOOT)
    seen, kill_at = 0, pause.randint(1, 4_000)
    deadline = time.monotonic() + 60
    try:
        while seen < kill_at and time.monotonic() < deadline:
            seen += len(told(reader.read(100, 1 << 20)))
            remove_read(tmp_path, reader)
    finally:
        writing.kill()
        writing.communicate()
    assert seen >= kill_at
    rest = told(reader.read(1 << 20, 1 << 30))
    assert [seq for seq, _ in rest] == list(range(seen + 1, seen + len(rest) + 1))
    again = writer(tmp_path, spool=8 * SEGMENT, after_seq=seen + len(rest))
    assert again.last_seq == again.last_ref == seen + len(rest)
    more = put(again, Rec(ref=1))
    assert told(reader.read(9, 1 << 30)) == [more]
    assert reader.torn == ""
    assert not list(tmp_path.glob("next-*"))


def finish(process: "subprocess.Popen[str]") -> str:
    """What a child said at its end."""
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out.strip()


def test_a_file_size_limit_is_a_full_spool_and_no_signal(tmp_path: Path) -> None:
    assert finish(child("limited", tmp_path)) == "went on"


def test_a_full_disk_is_a_full_spool_and_no_signal(tmp_path: Path) -> None:
    said = finish(child("full", tmp_path))
    if said == "not allowed":  # nobody may mount here: the system's word alone has to do
        said = finish(child("no-space", tmp_path))
    assert said == "went on"


def allocation_fails(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", fail)


def handles() -> int:
    """Files that this process has open."""
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_spool_without_room_for_its_first_segment_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = handles()
    allocation_fails(monkeypatch, number)
    with pytest.raises(SpoolFull, match="^the spool cannot grow: [a-z ]+$"):
        writer(tmp_path)
    assert not list(tmp_path.iterdir())
    assert handles() == before


def test_a_disk_that_fails_is_no_full_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allocation_fails(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        writer(tmp_path)
    with pytest.raises(FileNotFoundError):
        writer(tmp_path / "nowhere")


def until_it_rolls(spool: SpoolWriter) -> None:
    """Append one record more than the first segment holds."""
    for number in range(64):
        put(spool, padded(number, 1_024))


def test_a_folder_that_is_gone_is_said_by_the_system(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    spool = writer(folder)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError):
        until_it_rolls(spool)
    spool.prepare()
    spool.close()


def test_a_name_that_is_taken_leaves_nothing_behind(tmp_path: Path) -> None:
    spool = writer(tmp_path)
    taken = tmp_path / "00000002.seg"
    taken.mkdir()
    with pytest.raises(OSError, match=r"directory|Is a|Not a"):
        until_it_rolls(spool)
    assert not list(tmp_path.glob("next-*"))
    taken.rmdir()
    put(spool, padded(63, 1_024))
    assert [rec.ref for _, rec in read_all(tmp_path)[0]] == list(range(64))


def test_a_spool_that_is_closed_while_a_segment_is_made_leaves_no_file_and_no_handle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = handles()
    spool, allocate = writer(tmp_path), os.posix_fallocate

    def close_meanwhile(*arguments: int) -> None:
        allocate(*arguments)
        spool.close()

    monkeypatch.setattr(os, "posix_fallocate", close_meanwhile)
    spool.prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["00000001.seg"]
    assert handles() == before


def test_prepare_in_a_thread_never_meets_append_half_way(tmp_path: Path) -> None:
    spool = writer(tmp_path, spool=6 * SEGMENT)
    reader = SpoolReader(str(tmp_path), BOOT)
    stop = threading.Event()

    def keep_ready() -> None:
        while not stop.is_set():
            spool.prepare()

    thread = threading.Thread(target=keep_ready)
    thread.start()
    seen = []
    try:
        for number in range(1, 3_001):
            put(spool, padded(number, 2_048))
            if number % 20 == 0:
                seen += [rec.ref for _, rec in told(reader.read(1 << 20, 1 << 30))]
                remove_read(tmp_path, reader)
                assert sum(os.path.getsize(path) for path in segments(tmp_path)) <= 6 * SEGMENT
    finally:
        stop.set()
        thread.join()
    assert seen == list(range(1, 3_001))
    spool.close()
    assert not list(tmp_path.glob("next-*"))
    assert read_all(tmp_path, 3_000) == ([], "")
