"""The file that is replayed: checked whole before the first call, and the same file until the last."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enforcers.doors.recorded import LOOK_LINES, CallFile
from schemas.calls import mint_trace_id
from schemas.errors import OperatorFault
from schemas.limits import LINE_BYTES_MAX

LINE: dict[str, Any] = {"time": 0, "agent": "a", "action": "mcp:tools/call", "resource": 'Tool::"s/t"'}


def write(path: Path, lines: int, *, end: str = "\n") -> Path:
    path.write_text("\n".join(json.dumps(LINE | {"session": f"s-{n}"}) for n in range(1, lines + 1)) + end * bool(lines))
    return path


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    return write(tmp_path / "ten.jsonl", 10)


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_file_is_checked_then_called(tmp_path: Path, end: str) -> None:
    path = write(tmp_path / "f", 3, end=end)
    with CallFile(str(path)) as file:
        file.check()
        assert (file.lines, file.digest) == (3, hashlib.sha256(path.read_bytes()).digest())
        calls = list(file.calls())
        assert [(c.ref, c.session) for c in calls] == [(1, "s-1"), (2, "s-2"), (3, "s-3")]
        assert calls[1].trace_id == mint_trace_id(file.digest, 2)


def test_lines_that_are_done_are_not_called_again(ten: Path) -> None:
    with CallFile(str(ten)) as file:
        file.check()
        assert [call.ref for call in file.calls(7)] == [8, 9, 10]
        assert list(file.calls(10)) == []


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    with CallFile(str(write(tmp_path / "f", 0))) as file:
        file.check()
        assert (file.lines, list(file.calls())) == (0, [])


def test_a_bad_line_refuses_the_file_and_is_named(ten: Path) -> None:
    lines = ten.read_text().splitlines(keepends=True)
    ten.write_text("".join([*lines[:6], "{}\n", *lines[7:], "nonsense\n"]))
    with CallFile(str(ten)) as file, pytest.raises(OperatorFault, match=rf"^{ten}:7: agent: is missing$"):
        file.check()


def test_an_empty_line_is_a_bad_line(ten: Path) -> None:
    ten.write_text(ten.read_text() + "\n")
    with CallFile(str(ten)) as file, pytest.raises(OperatorFault, match=r"ten\.jsonl:11: the line is empty$"):
        file.check()


def test_a_line_without_end_is_refused_and_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 50 * LINE_BYTES_MAX)
    said = rf"f:1: the line has {LINE_BYTES_MAX + 2} bytes, limit is"
    with CallFile(str(path)) as file, pytest.raises(OperatorFault, match=said):
        file.check()


def test_a_line_at_the_limit_is_one_line(tmp_path: Path) -> None:
    line = json.dumps(LINE).encode()
    (tmp_path / "f").write_bytes((line.ljust(LINE_BYTES_MAX) + b"\n") * 2)
    with CallFile(str(tmp_path / "f")) as file:
        file.check()
        assert file.lines == 2


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OperatorFault, match=r"nothing: cannot be read: no such file or directory$"):
        CallFile(str(tmp_path / "nothing"))


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_cannot_be_read_twice_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(OperatorFault, match=rf"{kind}: (is no regular file|cannot be read: is a directory)"):
        CallFile(str(path))


def test_a_file_that_grows_between_check_and_calls_is_refused(ten: Path) -> None:
    with CallFile(str(ten)) as file:
        file.check()
        with ten.open("a") as more:
            more.write(json.dumps(LINE) + "\n")
        calls = file.calls()
        with pytest.raises(OperatorFault, match=r"ten\.jsonl: was changed while it was read \(\d+ bytes then, \d+ now\)"):
            list(calls)


def test_a_change_is_seen_soon(tmp_path: Path) -> None:
    path = write(tmp_path / "f", 3 * LOOK_LINES)
    with CallFile(str(path)) as file:
        file.check()
        calls = file.calls()
        seen = [next(calls).ref for _ in range(LOOK_LINES // 2)]
        os.utime(path, (1, 1))
        with pytest.raises(OperatorFault, match="was changed"):
            seen.extend(call.ref for call in calls)
        assert seen[-1] < 2 * LOOK_LINES


def test_other_bytes_under_the_same_size_and_time_are_seen_at_the_end(ten: Path) -> None:
    before = ten.stat()
    with CallFile(str(ten)) as file:
        file.check()
        ten.write_bytes(ten.read_bytes().replace(b"s-5", b"s-X"))
        os.utime(ten, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(OperatorFault, match="was changed"):
            list(file.calls())


def test_a_file_that_is_moved_over_it_changes_nothing(ten: Path, tmp_path: Path) -> None:
    with CallFile(str(ten)) as file:
        file.check()
        os.replace(write(tmp_path / "other", 3), ten)
        assert len(list(file.calls())) == 10


@pytest.mark.parametrize("parts", [1, 2, 3, 12])
def test_the_parts_of_a_file_have_each_line_once_and_in_order(ten: Path, parts: int) -> None:
    with CallFile(str(ten)) as file:
        file.check()
        each = [[call.ref for call in file.calls(part=part, parts=parts)] for part in range(1, parts + 1)]
        assert sorted(ref for own in each for ref in own) == list(range(1, 11))
        for part, own in enumerate(each, 1):
            assert own == list(range(part, 11, parts))
            assert [call.ref for call in file.calls(5, part, parts)] == [ref for ref in own if ref > 5]


def test_another_process_reads_the_file_that_was_checked_at_a_place_of_its_own(ten: Path) -> None:
    with CallFile(str(ten)) as file:
        file.check()
        whole = list(file.calls())
        reading = file.calls()
        next(reading)
        known = replace(file.checked(), handle=os.dup(file.checked().handle))
        ten.rename(ten.with_suffix(".moved"))
        ten.write_text("{}")
        with CallFile.again(known) as other:
            assert (other.lines, other.digest, other.name) == (10, file.digest, file.name)
            assert list(other.calls()) == whole
        assert [call.ref for call in reading] == list(range(2, 11))
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(known.handle)


def test_another_process_refuses_a_file_that_was_changed_since_the_check(ten: Path) -> None:
    with CallFile(str(ten)) as file:
        file.check()
        known = replace(file.checked(), handle=os.dup(file.checked().handle))
        with ten.open("a") as more:
            more.write(json.dumps(LINE) + "\n")
        with CallFile.again(known) as other, pytest.raises(OperatorFault, match=rf"^{ten}: was changed while it was read"):
            list(other.calls())
