"""What a resumed replay believes: after a crash at each step, and when somebody else is at it."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enforcers.doors.progress import DoorRun, Progress, door_said, lines_to
from schemas.errors import OperatorFault
from schemas.home import Home

DIGEST = bytes(range(32))
BOOT = "6543210000000007"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def start(home: Home, *doors: DoorRun) -> Progress:
    progress = Progress(home, "f.jsonl", DIGEST, 100)
    progress.run.doors.extend(doors)
    progress.save()
    return progress


def again(home: Home, progress: Progress) -> Progress:
    """What the next process finds."""
    progress.close()
    found = Progress(home, "f.jsonl", DIGEST, 100)
    assert found.load()
    return found


def folder(home: Home, boot: str = BOOT, host: str = "replay-1", **said: object) -> Path:
    path = home.host(host) / "doors" / boot
    path.mkdir(parents=True, exist_ok=True)
    if said:
        (path / "door.json").write_text(json.dumps({"boot": boot, "closed": True, **said}))
    return path


def test_a_file_that_was_never_replayed_has_no_run(home: Home) -> None:
    progress = Progress(home, "f.jsonl", DIGEST, 100)
    assert not progress.load()
    assert progress.settle() == []
    assert progress.done(1) == 0


def test_a_crash_before_the_folder_was_made_has_done_nothing(home: Home) -> None:
    progress = again(home, start(home, DoorRun(host="replay-1", boot=BOOT)))
    assert progress.settle() == []
    assert progress.done(1) == 0
    assert progress.run.doors == []


def test_a_crash_before_made_was_written_waits_for_the_adoption_of_an_empty_door(home: Home) -> None:
    folder(home)
    progress = again(home, start(home, DoorRun(host="replay-1", boot=BOOT)))
    assert [door.boot for door in progress.settle()] == [BOOT]
    folder(home, last_seq=0, last_ref=0, adopted=True)
    assert progress.settle() == []
    assert progress.done(1) == 0


def test_a_door_that_died_is_waited_for_and_then_says_how_far_it_got(home: Home) -> None:
    folder(home)
    progress = again(home, start(home, DoorRun(host="replay-1", boot=BOOT, made=True)))
    assert progress.settle() == [DoorRun(host="replay-1", boot=BOOT, made=True)]
    folder(home, last_seq=70, last_ref=40, adopted=True)
    assert progress.settle() == []
    assert progress.done(1) == 40


def test_the_furthest_door_counts(home: Home) -> None:
    folder(home, last_seq=70, last_ref=40)
    folder(home, "6543210000000008", last_seq=3, last_ref=42)
    folder(home, "6543210000000009", last_seq=0, last_ref=0)
    doors = [DoorRun(host="replay-1", boot=f"654321000000000{n}", made=True) for n in (7, 8, 9)]
    progress = again(home, start(home, *doors))
    assert progress.settle() == []
    assert progress.done(1) == 42


def test_each_part_of_a_run_has_come_as_far_as_its_own_doors(home: Home) -> None:
    folder(home, last_seq=70, last_ref=34)
    folder(home, "6543210000000008", last_seq=3, last_ref=40)
    folder(home, "6543210000000009", last_seq=80, last_ref=98)
    doors = [DoorRun(host="replay-1", boot=f"654321000000000{n}", made=True, part=part) for n, part in ((7, 1), (8, 1), (9, 2))]
    progress = start(home, *doors)
    progress.run.parts = 3
    assert progress.settle() == []
    assert [progress.done(part) for part in (1, 2, 3)] == [40, 98, 0]
    assert [progress.left(part) for part in (1, 2, 3)] == [True, False, True]
    assert progress.lines_done() == 14 + 33


@given(lines=st.integers(0, 50), parts=st.integers(1, 7))
def test_the_parts_of_a_file_are_all_of_its_lines(lines: int, parts: int) -> None:
    each = [[n for n in range(1, lines + 1) if (n - part) % parts == 0] for part in range(1, parts + 1)]
    assert sorted(n for part in each for n in part) == list(range(1, lines + 1))
    for part, own in enumerate(each, 1):
        for upto in range(lines + 1):
            assert lines_to(upto, part, parts) == sum(n <= upto for n in own)


def test_a_part_without_a_line_has_nothing_left(home: Home) -> None:
    progress = Progress(home, "f.jsonl", DIGEST, 2)
    progress.run.parts = 4
    assert [progress.left(part) for part in (1, 2, 3, 4)] == [True, True, False, False]


def test_a_run_from_before_there_were_parts_has_one(home: Home) -> None:
    progress = start(home)
    path = home.replay / f"{DIGEST.hex()}.json"
    path.write_text(json.dumps({"file": "f", "lines": 9, "finished": False, "doors": [{"host": "replay-1", "boot": BOOT}]}))
    assert progress.load()
    assert (progress.run.parts, progress.run.doors[0].part) == (1, 1)


def test_a_door_whose_folder_was_removed_after_it_was_known_is_no_loss(home: Home) -> None:
    progress = again(home, start(home, DoorRun(host="replay-1", boot=BOOT, made=True, last_ref=40)))
    assert progress.settle() == []
    assert progress.done(1) == 40
    assert progress.all_stored({})


def test_a_door_whose_folder_is_gone_before_that_ends_the_resume(home: Home) -> None:
    progress = again(home, start(home, DoorRun(host="replay-1", boot=BOOT, made=True)))
    with pytest.raises(OperatorFault, match=rf"{BOOT}: is gone, so nobody knows how far `f.jsonl` was replayed$"):
        progress.settle()


def test_a_run_is_stored_when_each_door_says_so_or_its_host(home: Home) -> None:
    path = folder(home, last_seq=70, last_ref=100)
    progress = start(home, DoorRun(host="replay-1", boot=BOOT, made=True))
    assert not progress.all_stored({BOOT: 70})  # how far it got is not known yet
    assert progress.settle() == []
    assert not progress.all_stored({})
    assert not progress.all_stored({BOOT: 69})
    assert progress.all_stored({BOOT: 70})
    folder(home, last_seq=70, last_ref=100, stored=True)
    assert progress.all_stored({})
    progress.run.doors.append(DoorRun(host="replay-1", boot="6543210000000008", made=True))
    assert not progress.all_stored({})
    shutil.rmtree(path)


def test_what_is_saved_is_what_the_next_process_finds(home: Home) -> None:
    progress = start(home, DoorRun(host="replay-2", boot=BOOT, made=True, last_ref=7))
    progress.run.finished = True
    progress.save()
    found = again(home, progress)
    assert found.run == progress.run


def test_one_process_at_a_time_replays_a_file(home: Home) -> None:
    progress = start(home)
    with pytest.raises(OperatorFault, match=r"^the replay of `f\.jsonl` is held by process \d+"):
        Progress(home, "f.jsonl", DIGEST, 100)
    Progress(home, "g.jsonl", bytes(32), 100).close()
    progress.close()
    Progress(home, "f.jsonl", DIGEST, 100).close()


@pytest.mark.parametrize("data", ["", "{", "[]", "{}", '{"file": "f", "lines": 1, "doors": [{}]}', '{"doors": 1}'])
def test_a_damaged_file_is_named(home: Home, data: str) -> None:
    progress = start(home)
    path = home.replay / f"{DIGEST.hex()}.json"
    path.write_text(data)
    with pytest.raises(OperatorFault, match=rf"^{path}: is damaged; remove it and replay the file from its first line$"):
        progress.load()


@pytest.mark.parametrize("data", ["", "{}", "[]", '{"closed": false}', "1"])
def test_a_door_file_that_says_nothing_is_none(tmp_path: Path, data: str) -> None:
    (tmp_path / "door.json").write_text(data)
    assert door_said(tmp_path) is None
