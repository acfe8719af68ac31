"""The journal of control: what was written is read back, or control refuses to start and says what to do."""

import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.control import Log
from pipeline.shells.control.journal import WHAT_TO_DO, Journal
from schemas.control import KEY_ID_BYTES, SIGNATURE_BYTES, parse_entry
from schemas.errors import OperatorFault, PeerFault

NOW = 1_700_000_000_000_000_000
SEAL = bytes(KEY_ID_BYTES + SIGNATURE_BYTES)
SECRET = f"scrypt$16384$8$1${'A' * 24}${'B' * 44}"


def write(folder: Path, steps: int = 40) -> None:
    """A journal with a little of everything."""
    log, journal = Log(), Journal(folder)
    journal.open(log)
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    asked: list[dict[str, Any]] = [{"do": "key-rotate", "public": public}]
    for n in range(steps):
        asked += [
            {"do": "revoke", "kind": "session", "name": f"session-{n}", "reason": f"reason {n}" * (n % 7 + 1)},
            {"do": "agent-add", "name": f"agent-{n}", "owner": "somebody", "secret": SECRET},
        ]
    asked += [{"do": "agent-remove", "name": "agent-1"}, {"do": "pause", "reason": "fire"}, {"do": "resume"}]
    asked += [{"do": "policy", "digest": c * 64, "bytes": 9, "packed": 9, "chunks": 1, "policies": 1} for c in "ab"]
    for n, request in enumerate(asked):
        change = log.change(request, now_ns=NOW + n, actor="uid:test")
        bundle = str(request["digest"]).encode() * 50 if request["do"] == "policy" else None
        seals, kept = [SEAL] * len(change.entries), [one.digest for one in log.policies]
        journal.commit(change, seals, request_id=f"request-{n:08}", request=f"{n}", bundle=bundle, kept=kept)
        log.apply(change)
        journal.say_head()
    journal.reserve(1_000)
    journal.close()


def read(folder: Path) -> tuple[Any, ...]:
    """Everything that a journal says."""
    log, journal = Log(), Journal(folder)
    try:
        journal.open(log)
        messages = list(journal.messages(range(1, log.epoch + 1)))
        answers = [journal.answer(f"request-{n:08}") for n in range(100)]
        bundles = [journal.bundle(c * 64) for c in "ab"]
        lasts = [journal.last_epoch(entry.key) for entry in log.entries()]
        return log.epoch, log.digest(), messages, answers, bundles, lasts, journal.counter, journal.after(0, 10_000)
    finally:
        journal.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("journal") / "control"
    write(folder)
    return folder


def damaged(whole: Path, tmp_path: Path, change: Callable[[Path], None]) -> str:
    """What opening says after `change` was done to a copy; empty when it reads back what was written."""
    copy = tmp_path / "control"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    change(copy)
    try:
        found = read(copy)
    except OperatorFault as fault:
        said = str(fault)
    else:
        assert found == read(whole), "what was damaged was read as if it were whole"
        return ""
    assert str(copy) in said
    assert "restore the whole folder" in said
    assert "feed.json" in said
    assert "\n" not in said
    return said


def test_what_was_written_is_read_back(whole: Path) -> None:
    epoch, _, messages, answers, bundles, _, counter, _ = read(whole)
    assert epoch == 87
    assert [epoch for epoch, _, _ in messages] == list(range(1, 88))
    assert all(parse_entry(message).entry.key == key for _, key, message in messages)
    assert answers[0] is not None
    assert (answers[0].first, answers[0].last) == (1, 1)
    assert answers[81] is not None
    assert (answers[81].first, answers[81].last) == (82, 83), "a removed agent is two entries"
    assert bundles == [b"a" * 3200, b"b" * 3200]
    assert counter == 1_000


def test_the_journal_is_for_its_user_alone(whole: Path) -> None:
    assert whole.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in whole.iterdir()} == {0o600}


def flip(at: int, bits: int) -> Callable[[Path], None]:
    def change(copy: Path) -> None:
        with (copy / "journal.sqlite").open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ bits]))

    return change


def test_no_flipped_byte_is_believed(whole: Path, tmp_path: Path) -> None:
    """Anywhere in the file: it is refused, or it was in a place that holds nothing, and then nothing has changed."""
    size = (whole / "journal.sqlite").stat().st_size
    rng = random.Random(4)
    refused = sum(bool(damaged(whole, tmp_path, flip(at, rng.choice([1, 0x20, 0x80, 0xFF])))) for at in range(0, size, 131))
    assert refused > size // 131 * 0.5, "most bytes of this journal mean something"


@pytest.mark.parametrize("block", [64, 512, 4096])
def test_no_blanked_region_is_believed(whole: Path, tmp_path: Path, block: int) -> None:
    size = (whole / "journal.sqlite").stat().st_size

    def blank(at: int) -> Callable[[Path], None]:
        def change(copy: Path) -> None:
            with (copy / "journal.sqlite").open("r+b") as file:
                file.seek(at)
                file.write(bytes(min(block, size - at)))

        return change

    said = [damaged(whole, tmp_path, blank(at)) for at in range(0, size, max(block, size // 60))]
    assert sum(map(bool, said)) > len(said) * 0.7


def test_no_truncated_journal_is_believed(whole: Path, tmp_path: Path) -> None:
    size = (whole / "journal.sqlite").stat().st_size

    def cut(to: int) -> Callable[[Path], None]:
        def change(copy: Path) -> None:
            with (copy / "journal.sqlite").open("r+b") as file:
                file.truncate(to)

        return change

    for to in (*range(0, size, 997), size - 1, size - 4096):
        assert damaged(whole, tmp_path, cut(to)), f"cut to {to} of {size} bytes"


def test_no_altered_row_is_believed(whole: Path, tmp_path: Path) -> None:
    """By somebody who knows SQLite: the chain is over everything that says something."""
    statements = [
        "UPDATE changes SET actor = 'uid:other' WHERE no = 5",
        "UPDATE changes SET time = time + 1 WHERE no = 5",
        "UPDATE changes SET id = 'request-99999999' WHERE no = 5",
        "UPDATE changes SET result = '{}' WHERE no = 5",
        "UPDATE changes SET request = 'x' WHERE no = 5",
        "DELETE FROM changes WHERE no = 5",
        "DELETE FROM changes WHERE no = (SELECT max(no) FROM changes)",
        "DELETE FROM entries WHERE epoch = 5",
        "DELETE FROM entries WHERE epoch = (SELECT max(epoch) FROM entries)",
        "UPDATE entries SET payload = (SELECT payload FROM entries WHERE epoch = 6) WHERE epoch = 5",
        "UPDATE entries SET key = 'agent/other' WHERE epoch = 5",
        "UPDATE entries SET seal = zeroblob(80) WHERE epoch = 5",
        "INSERT INTO entries SELECT 1000, key, payload, seal FROM entries WHERE epoch = 5",
        "UPDATE bundles SET packed = zeroblob(10)",
        "DELETE FROM bundles",
        "DROP INDEX entries_by_key",
        "CREATE TABLE more (x)",
        "PRAGMA application_id = 1",
        "PRAGMA user_version = 2",
    ]
    for statement in statements:

        def change(copy: Path, statement: str = statement) -> None:
            base = sqlite3.connect(copy / "journal.sqlite", isolation_level=None)
            base.execute(statement)
            base.close()

        assert damaged(whole, tmp_path, change), statement


def test_the_last_change_cannot_be_taken_back_with_its_entries(whole: Path, tmp_path: Path) -> None:
    def change(copy: Path) -> None:
        base = sqlite3.connect(copy / "journal.sqlite", isolation_level=None)
        base.execute("DELETE FROM entries WHERE epoch > 80")
        base.execute("DELETE FROM changes WHERE last > 80")
        base.close()

    assert "does not hold epoch 87" in damaged(whole, tmp_path, change)


def test_an_older_copy_beside_a_newer_head_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "old", 5)
    write(tmp_path / "new", 6)
    shutil.copy(tmp_path / "new" / "head.json", tmp_path / "old" / "head.json")
    with pytest.raises(OperatorFault, match="does not hold epoch 19"):
        read(tmp_path / "old")


@pytest.mark.parametrize("name", ["journal.sqlite", "head.json"])
def test_a_file_that_is_missing_is_missed(whole: Path, tmp_path: Path, name: str) -> None:
    assert "is missing" in damaged(whole, tmp_path, lambda copy: (copy / name).unlink())


@pytest.mark.parametrize("data", [b"", b"{}", b"no json", b'{"epoch":1,"chain":"","counter":0,"check":""}'])
def test_a_damaged_head_is_refused(whole: Path, tmp_path: Path, data: bytes) -> None:
    assert "head.json: is damaged" in damaged(whole, tmp_path, lambda copy: (copy / "head.json").write_bytes(data) and None)


def test_no_flipped_byte_of_the_head_is_believed(whole: Path, tmp_path: Path) -> None:
    data = (whole / "head.json").read_bytes()
    for at in range(len(data)):
        for bits in (1, 0x10):
            other = bytearray(data)
            other[at] ^= bits
            assert damaged(whole, tmp_path, lambda copy, other=bytes(other): (copy / "head.json").write_bytes(other) and None)


def test_what_is_no_database_is_refused(whole: Path, tmp_path: Path) -> None:
    said = damaged(whole, tmp_path, lambda copy: (copy / "journal.sqlite").write_text("hello\n" * 1000) and None)
    assert "file is not a database" in said


def test_a_crash_between_commit_and_head_leaves_a_journal_that_goes_on(tmp_path: Path) -> None:
    write(tmp_path, 5)
    log, journal = Log(), Journal(tmp_path)
    journal.open(log)
    change = log.change({"do": "pause", "reason": "fire"}, now_ns=NOW, actor="uid:test")
    journal.commit(change, [SEAL], request_id="request-of-a-crash", request="x")
    journal.close()  # no head
    log, journal = Log(), Journal(tmp_path)
    journal.open(log)
    assert log.get("pause") is not None
    assert journal.answer("request-of-a-crash") is not None
    journal.close()


def test_a_backup_that_is_made_as_the_page_says_is_whole_whatever_is_changed_meanwhile(tmp_path: Path) -> None:
    write(tmp_path / "control", 5)
    log, journal = Log(), Journal(tmp_path / "control")
    journal.open(log)
    backup = tmp_path / "backup"
    backup.mkdir()
    shutil.copy(tmp_path / "control" / "head.json", backup)
    change = log.change({"do": "pause", "reason": "fire"}, now_ns=NOW, actor="uid:test")
    journal.commit(change, [SEAL], request_id="request-of-a-moment", request="x")
    journal.say_head()
    source, target = sqlite3.connect(journal.path), sqlite3.connect(backup / "journal.sqlite")
    source.backup(target)
    source.close()
    target.close()
    journal.close()
    assert read(backup)[0] == read(tmp_path / "control")[0]


def test_a_change_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, 2)
    log, journal = Log(), Journal(tmp_path)
    journal.open(log)
    change = log.change({"do": "pause", "reason": "fire"}, now_ns=NOW, actor="uid:test")
    with pytest.raises(PeerFault, match="nothing was changed"):
        journal.commit(change, [SEAL], request_id="request-00000001", request="x")  # an id that stands already
    journal.commit(change, [SEAL], request_id="request-of-another", request="x")
    journal.close()
    assert read(tmp_path)[0] == log.epoch + 1


def test_a_full_disk_leaves_what_was_there_and_is_no_end(tmp_path: Path) -> None:
    write(tmp_path, 2)
    log, journal = Log(), Journal(tmp_path)
    journal.open(log)
    assert journal._base is not None
    (pages,) = journal._base.execute("PRAGMA page_count").fetchone()
    journal._base.execute(f"PRAGMA max_page_count = {pages}")
    items = [{"kind": "session", "name": f"s{n}", "reason": "r" * 500} for n in range(500)]
    change = log.change({"do": "revoke-many", "items": items}, now_ns=NOW, actor="uid:test")
    with pytest.raises(PeerFault, match=r"cannot be written: database or disk is full; nothing was changed"):
        journal.commit(change, [SEAL] * 500, request_id="request-of-a-full-disk", request="x")
    assert journal.answer("request-of-a-full-disk") is None
    assert journal.after(log.epoch, 10) == []
    journal._base.execute("PRAGMA max_page_count = 1000000")
    journal.commit(change, [SEAL] * 500, request_id="request-of-a-full-disk", request="x")
    journal.close()
    assert read(tmp_path)[0] == log.epoch + 500


def test_a_signature_is_replaced_and_the_chain_holds(tmp_path: Path) -> None:
    write(tmp_path, 2)
    log, journal = Log(), Journal(tmp_path)
    journal.open(log)
    new = b"n" * len(SEAL)
    journal.seal_again((epoch, payload, new) for epoch, payload in journal.payloads([2, 4]))
    journal.close()
    signed = [message[4 : 4 + len(new)] == new for _, _, message in read(tmp_path)[2]]
    assert [n for n, one in enumerate(signed, 1) if one] == [2, 4]


def test_what_to_do_names_the_backup_and_the_way_without_one() -> None:
    assert "from a backup" in WHAT_TO_DO
    assert "hosts/NAME/feed.json" in WHAT_TO_DO
