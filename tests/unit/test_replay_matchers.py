"""The policies of a door: the old ones until the new ones are ready, whatever becomes of those."""

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from enforcers.doors import matchers as module
from enforcers.doors.matchers import SWITCH_S, Matchers
from ext.decide import Matcher
from schemas.bundle import Bundle, Rule
from schemas.errors import OperatorFault

ONE = Bundle(rules=(Rule(id="one", forbid=False),))
TWO = Bundle(rules=(Rule(id="two", forbid=False),))
NONE = Bundle()


def put(folder: Path, bundle: Bundle) -> bytes:
    (folder / f"{bundle.digest}.json").write_bytes(bundle.encode())
    return bytes.fromhex(bundle.digest)


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_before_the_first_policies_nothing_is_permitted(tmp_path: Path) -> None:
    found = Matchers(tmp_path)
    assert (found.policy, found.current.digest) == (None, NONE.digest)


def test_the_first_can_be_waited_for(tmp_path: Path) -> None:
    found = Matchers(tmp_path)
    wanted = put(tmp_path, ONE)
    assert found.follow(wanted, wait=True)
    assert (found.policy, found.current.digest) == (wanted, ONE.digest)


def test_an_empty_digest_permits_nothing(tmp_path: Path) -> None:
    found = Matchers(tmp_path)
    assert found.follow(put(tmp_path, ONE), wait=True)
    assert found.follow(b"")
    assert (found.policy, found.current.digest) == (b"", NONE.digest)


class Slow:
    """Policies whose making waits for a word, in a thread of its own."""

    def __init__(self, found: Matchers) -> None:
        self.ready = threading.Event()
        self.asked: list[bytes] = []
        self.switch: list[float] = []
        self._build = found._build
        found._build = self.build  # type: ignore[method-assign]

    def build(self, wanted: bytes) -> Matcher | OperatorFault:
        self.asked.append(wanted)
        self.switch.append(sys.getswitchinterval())
        assert self.ready.wait(10)
        return self._build(wanted)


def test_the_old_ones_decide_until_the_new_ones_are_ready(tmp_path: Path) -> None:
    found = Matchers(tmp_path)
    one, two = put(tmp_path, ONE), put(tmp_path, TWO)
    assert found.follow(one, wait=True)
    slow, before = Slow(found), sys.getswitchinterval()
    for _ in range(5):
        assert not found.follow(two)
        assert (found.policy, found.current.digest) == (one, ONE.digest)
    slow.ready.set()
    until(lambda: found.follow(two))
    assert (found.policy, found.current.digest) == (two, TWO.digest)
    assert slow.asked == [two]
    assert slow.switch == [SWITCH_S]  # whoever decides meanwhile does not wait for the builder
    assert sys.getswitchinterval() == before


def test_what_is_no_more_wanted_when_it_is_ready_is_not_taken(tmp_path: Path) -> None:
    found = Matchers(tmp_path)
    one, two, three = put(tmp_path, ONE), put(tmp_path, TWO), put(tmp_path, NONE)
    assert found.follow(one, wait=True)
    slow = Slow(found)
    assert not found.follow(two)
    assert not found.follow(three)
    slow.ready.set()
    until(lambda: found.follow(three))
    assert (found.policy, slow.asked) == (three, [two, three])
    assert found.follow(three)


def test_a_rollback_before_they_are_ready_needs_nothing(tmp_path: Path) -> None:
    found = Matchers(tmp_path)
    one, two = put(tmp_path, ONE), put(tmp_path, TWO)
    assert found.follow(one, wait=True)
    slow = Slow(found)
    assert not found.follow(two)
    assert found.follow(one)
    slow.ready.set()
    assert found.follow(one)
    assert found.current.digest == ONE.digest


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "cannot be read: no such file or directory"),
        (b"{", "are no policy bundle"),
        (b"\xff", "are no policy bundle"),
        (ONE.encode() + b" ", "are not the canonical spelling"),
        (ONE.encode(), "holds policies of digest"),
    ],
)
def test_policies_that_cannot_be_taken_leave_the_old_ones_and_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes | None, said: str
) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.05)
    found = Matchers(tmp_path)
    one, two = put(tmp_path, ONE), put(tmp_path, TWO)
    assert found.follow(one, wait=True)
    path = tmp_path / f"{TWO.digest}.json"
    path.unlink() if data is None else path.write_bytes(data)
    until(lambda: not found.follow(two) and said in found.fault)
    assert (found.policy, found.current.digest) == (one, ONE.digest)
    put(tmp_path, TWO)
    until(lambda: found.follow(two))
    assert (found.fault, found.current.digest) == ("", TWO.digest)


def test_a_builder_that_fails_in_a_way_nobody_thought_of_is_a_fault_and_no_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Matchers(tmp_path)
    two = put(tmp_path, TWO)

    class Broken(Matcher):
        def __init__(self, _: bytes) -> None:
            raise MemoryError

    monkeypatch.setattr(module, "Matcher", Broken)
    until(lambda: not found.follow(two) and "MemoryError()" in found.fault)
