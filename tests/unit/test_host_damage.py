"""A spool that is damaged under a living door: the host goes on with what is sound, and says what is not."""

import secrets
import time
from pathlib import Path

from enforcers.core.call import Call, decision_record, target_of
from enforcers.core.chain import make_chain
from enforcers.doors.spooler import Spooler
from enforcers.host.engine import Engine
from schemas.config import Config
from schemas.home import Home
from schemas.keys import own_key
from schemas.layout import RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES
from schemas.process import Lock, private_dir
from schemas.records import Decision, make_boot


def test_a_damaged_record_is_named_by_door_segment_and_seq(tmp_path: Path) -> None:
    home, config = Home(tmp_path), Config()
    folder = private_dir(home.host("enforce-1"))
    lock = Lock(folder / "lock")
    assert lock.take()
    engine = Engine(home, config, "enforce-1", make_boot(1, 1), own_key(home, "hosts", "enforce-1"), lock)
    door = Spooler(folder, make_boot(int(time.time()), secrets.randbits(32)), config.enforcer)
    call = Call(time_ns=1, door="replay", chain=make_chain(('Agent::"a"',)), action="mcp:ping", target=target_of('Tool::"s/t"'),
                trace_id=bytes(16))  # fmt: skip
    for _ in range(3):
        door.append(decision_record(call, Decision(), 1))
    (segment,) = door.folder.glob("*.seg")
    with segment.open("r+b") as file:
        file.seek(SEGMENT_HEADER_BYTES)
        size = int.from_bytes(file.read(4), "little")
        file.seek(SEGMENT_HEADER_BYTES + size + RECORD_HEADER_BYTES)
        file.write(b"\xff")
    cut = engine.step()
    assert cut is not None
    assert cut.records == 1
    engine.commit(cut)
    (said,) = engine.torn()
    assert said.startswith(f"door {door.boot:016x}: 00000001.seg: record 2 at byte ")
    door.abandon()
    engine.close()
