"""The disk of the histories does to a folder what it says, and the outbox outlives that: two starts, step by step."""

import random
from pathlib import Path

import pytest

from enforcers.core.box import DoorCut, encode_box
from enforcers.host.outbox import Outbox
from schemas.process import write_atomic
from tests.sim.disk import Disk
from tests.sim.story import Died, Story
from tests.sim.world import scratch

OPERATIONS = ["open", "sync", "rename", "folder sync"]


class Most(random.Random):
    """As many as there can be."""

    def randint(self, a: int, b: int) -> int:
        return max(a, b)


class Unlucky(Story):
    """Whatever a loss of power can undo, it undoes."""

    def __init__(self) -> None:
        super().__init__(0)
        self.random = Most(0)


def written(folder: Path, disk: Disk, crash_at: int | None) -> bool:
    """Write one box, with a crash before one of its steps; whether it got through."""
    outbox = Outbox(folder, bytes_max=1 << 20, sync=True)
    outbox.load()
    data, _ = encode_box(1, [DoorCut(boot=5, first=1, last=3)], [])
    disk.arm(crash_at)
    try:
        outbox.write(1, data)
    except Died:
        return False
    finally:
        disk.arm(None)
    return True


@pytest.mark.parametrize("crash_at", range(len(OPERATIONS)))
def test_a_crash_at_any_step_leaves_a_box_whole_or_not_at_all(crash_at: int) -> None:
    story = Unlucky()
    with scratch() as root:
        root.mkdir()
        with Disk(root, story) as disk:
            assert not written(root / "outbox", disk, crash_at)
            assert story.events == [f"! died before {OPERATIONS[crash_at]}"]
            disk.power_loss()
            assert Outbox(root / "outbox", bytes_max=1 << 20, sync=True).load() == (0, {}, [])


def test_a_box_that_was_written_outlives_a_loss_of_power() -> None:
    with scratch() as root:
        root.mkdir()
        with Disk(root, Unlucky()) as disk:
            assert written(root / "outbox", disk, None)
            disk.power_loss()
            assert len(Outbox(root / "outbox", bytes_max=1 << 20, sync=True).load()[2]) == 1


def test_a_box_that_a_start_has_found_outlives_a_loss_of_power() -> None:
    """The crash came between its rename and the sync of the folder, and its frames may be stored by the time the power goes.

    Were it gone then, its records would be sealed and stored again.
    """
    with scratch() as root:
        root.mkdir()
        with Disk(root, Unlucky()) as disk:
            assert not written(root / "outbox", disk, OPERATIONS.index("folder sync"))
            assert len(Outbox(root / "outbox", bytes_max=1 << 20, sync=True).load()[2]) == 1
            disk.power_loss()
            assert len(Outbox(root / "outbox", bytes_max=1 << 20, sync=True).load()[2]) == 1


def test_a_file_that_was_not_synced_loses_bytes() -> None:
    """Else the histories could not tell a rename that comes before its bytes."""
    with scratch() as root:
        root.mkdir()
        with Disk(root, Unlucky()) as disk:
            write_atomic(root / "a", b"0123456789", sync=True)
            (root / "b").write_bytes(b"0123456789")
            (root / "b").replace(root / "c")
            write_atomic(root / "d", b"0123456789", sync=True)
            disk.power_loss()
            assert ((root / "a").read_bytes(), (root / "c").read_bytes()) == (b"0123456789", b"01234")
