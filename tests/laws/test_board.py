"""The board's laws: it says what a dict would say, a look shows one state, and what it remembers never outlives a change."""

import struct
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from ext.board import BoardReader, Selectors
from schemas.records import Standing
from tests.support.boards import AT_KEY, NOBODY, TABLE_HEAD, board, lift, of, reader, revoke, soon
from tests.support.oracles import sip128

TEXTS = [*(f"agent:{number}" for number in range(70)), 'principal*:User::"é"', "destination:日本/tool", "session:", "key:🙂"]
"""More than a table of 64 slots holds, so that it grows, and few enough that they meet again."""

not_before = st.sampled_from([0, 5, 10, 2**40])
few = st.lists(st.sampled_from(TEXTS), max_size=20)
many = st.tuples(st.integers(0, 40), st.integers(0, 74)).map(lambda cut: TEXTS[cut[0] :][: cut[1]])
texts = few | many
pairs = st.lists(st.tuples(st.sampled_from(TEXTS), not_before), max_size=20) | st.builds(
    lambda names, when: [(name, when) for name in names], many, not_before
)
steps = st.one_of(
    st.tuples(st.just("change"), pairs, texts),
    st.tuples(st.just("replace"), pairs, st.just([])),
    st.tuples(st.just("pause"), st.just([]), st.just([])),
)
callers = st.tuples(st.lists(st.sampled_from(TEXTS), max_size=3), st.sampled_from([0, 4, 5, 7]))
Step = tuple[str, list[tuple[str, int]], list[str]]


def expected(revoked: dict[str, int], paused: bool, who: Selectors, what: Selectors) -> Standing:
    """The oracle: too simple to be wrong."""
    if paused:
        return Standing.PAUSED
    for one in (who, what):
        for text in one.texts:
            if text in revoked and (revoked[text] == 0 or one.issued_s < revoked[text]):
                return Standing.REVOKED
    return Standing.GO


def walk(done: list[Step], asked: list[tuple[list[str], int]]) -> set[str]:
    """Take the steps; after each, ask the same questions of readers old and new. Returns what came up."""
    came: set[str] = set()
    with TemporaryDirectory() as folder:
        writer = board(Path(folder))
        old, path = reader(Path(folder)), str(Path(folder) / "board")
        known = [Selectors(tuple(names), issued_s) for names, issued_s in asked]
        revoked: dict[str, int] = {}
        for epoch, (kind, more, less) in enumerate(done, 2):
            policy = bytes([epoch % 2]) * 32 if epoch % 3 else b""
            before = writer.generation, writer.bytes
            if kind == "replace":
                writer.replace(more, epoch=epoch, paused=False, policy=policy)
                revoked = dict(more)
            else:
                writer.change(more, less, epoch=epoch, paused=kind == "pause", policy=policy)
                revoked = {text: when for text, when in revoked.items() if text not in less} | dict(more)
                came |= {"grown"} if writer.bytes > before[1] else set()
            assert (writer.generation, writer.entries) == (before[0] + 1, len(revoked))
            assert not old.unchanged()
            for who, what in zip(known, [*known[1:], NOBODY], strict=True):
                wanted = expected(revoked, kind == "pause", who, what)
                for one in (old, BoardReader(path)):
                    assert one.check(who, what) == wanted, (revoked, who.texts, what.texts)
                    assert (one.epoch, one.policy, one.generation) == (epoch, policy, writer.generation)
                    assert one.unchanged()
                came.add(wanted.name)
        writer.close()
    return came


@given(st.lists(steps, min_size=1, max_size=12), st.lists(callers, min_size=1, max_size=5))
def test_the_board_says_what_a_dict_would_say(done: list[Step], asked: list[tuple[list[str], int]]) -> None:
    walk(done, asked)


def test_the_generator_reaches_every_corner() -> None:
    came: set[str] = set()

    @settings(max_examples=100, database=None, derandomize=True)
    @given(st.lists(steps, min_size=1, max_size=12), st.lists(callers, min_size=1, max_size=5))
    def look(done: list[Step], asked: list[tuple[list[str], int]]) -> None:
        came.update(walk(done, asked))

    look()
    assert came == {"grown", "GO", "PAUSED", "REVOKED"}


def test_what_was_clean_is_asked_again_after_every_change(tmp_path: Path) -> None:
    """The memory of a caller and of a target is of one generation, in any order of asking."""
    writer, door = board(tmp_path), reader(tmp_path)
    who, what = of("agent:a", "session:s"), of("destination:x")
    for _ in range(50):
        assert door.check(who, NOBODY) == door.check(NOBODY, what) == door.check(who, what) == Standing.GO
        revoke(writer, "session:s")
        assert door.check(NOBODY, what) == Standing.GO
        assert door.check(who, what) == door.check(what, who) == Standing.REVOKED
        lift(writer, "session:s")
        revoke(writer, "destination:x")
        assert door.check(who, NOBODY) == Standing.GO
        assert door.check(who, what) == door.check(what, who) == Standing.REVOKED
        lift(writer, "destination:x")


def test_what_was_clean_on_one_board_is_asked_again_on_another_of_the_same_generation(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    one, two = (board(folder) for folder in folders)
    doors = [reader(folder) for folder in folders]
    who = of("agent:a")
    revoke(one, "agent:b")
    revoke(two, "agent:a")
    assert one.generation == two.generation
    for _ in range(3):
        assert [door.check(of("agent:c"), NOBODY) for door in doors] == [Standing.GO, Standing.GO]
        assert [door.check(who, NOBODY) for door in doors] == [Standing.GO, Standing.REVOKED]


def test_a_reader_that_was_stale_does_not_go_by_what_it_remembers(tmp_path: Path) -> None:
    writer, door, who = board(tmp_path), reader(tmp_path), of("agent:a")
    assert door.check(who, NOBODY) == Standing.GO
    writer.fresh(0)
    assert not door.unchanged()
    assert door.check(who, NOBODY) == Standing.STALE
    revoke(writer, "agent:a", epoch=9)
    assert door.check(who, NOBODY) == Standing.STALE
    assert door.epoch == 9, "what is wanted is known, if not believed"
    writer.fresh(soon())
    assert door.check(who, NOBODY) == Standing.REVOKED


def test_stale_goes_before_paused_and_paused_before_revoked(tmp_path: Path) -> None:
    writer, door, who = board(tmp_path), reader(tmp_path), of("agent:a")
    writer.change([("agent:a", 0)], (), epoch=2, paused=True, policy=b"")
    assert door.check(who, NOBODY) == door.check(NOBODY, NOBODY) == Standing.PAUSED
    writer.fresh(0)
    assert door.check(who, NOBODY) == Standing.STALE
    writer.fresh(soon())
    writer.change((), (), epoch=3, paused=False, policy=b"")
    assert door.check(who, NOBODY) == Standing.REVOKED


def test_what_is_lifted_and_revoked_at_once_is_revoked(tmp_path: Path) -> None:
    writer, door = board(tmp_path), reader(tmp_path)
    writer.change([("agent:a", 0)], ["agent:a"], epoch=2, paused=False, policy=b"")
    assert door.check(of("agent:a"), NOBODY) == Standing.REVOKED
    assert writer.entries == 1


def test_not_before_spares_what_was_issued_then_or_later(tmp_path: Path) -> None:
    writer, door = board(tmp_path), reader(tmp_path)
    writer.change([("issuer:i", 1_000)], (), epoch=2, paused=False, policy=b"")
    issued = {issued_s: door.check(of("issuer:i", issued_s=issued_s), NOBODY) for issued_s in (0, 999, 1_000, 1_001)}
    assert issued == {0: Standing.REVOKED, 999: Standing.REVOKED, 1_000: Standing.GO, 1_001: Standing.GO}
    writer.change([("issuer:i", 0)], (), epoch=3, paused=False, policy=b"")
    assert door.check(of("issuer:i", issued_s=2**40), NOBODY) == Standing.REVOKED
    assert writer.entries == 1


def test_the_oracle_hashes_as_its_authors_do() -> None:
    """The first vectors of the reference implementation of SipHash-2-4 with 128 bits."""
    key = bytes(range(16))
    assert sip128(key, b"").hex() == "a3817f04ba25a8e66df67214c7550293"
    assert sip128(key, b"\x00").hex() == "da87c1d86b99af44347659119b22fc45"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=20, unique=True))
def test_the_table_holds_keyed_hashes_and_no_text(names: list[str]) -> None:
    with TemporaryDirectory() as folder:
        revoke(board(Path(folder)), *names)
        key = (Path(folder) / "board").read_bytes()[AT_KEY : AT_KEY + 16]
        (table,) = Path(folder).glob("board.table*")
        data = table.read_bytes()
        slots = struct.unpack_from("<Q", data, 8)[0]
        found = {data[at : at + 16] for at in range(TABLE_HEAD, TABLE_HEAD + 16 * slots, 16)} - {bytes(16)}
        assert found == {sip128(key, name.encode()) for name in names}


def test_two_boards_have_two_keys(tmp_path: Path) -> None:
    keys = set()
    for _ in range(20):
        board(tmp_path).close()
        keys.add((tmp_path / "board").read_bytes()[AT_KEY : AT_KEY + 16])
    assert len(keys) == 20


def test_a_hundred_thousand_entries_come_and_go_one_by_one(tmp_path: Path) -> None:
    writer, door = board(tmp_path), reader(tmp_path)
    many = [f"token:{number:064x}" for number in range(100_000)]
    for begins in range(0, len(many), 500):
        revoke(writer, *many[begins : begins + 500])
    assert writer.entries == len(many)
    assert writer.bytes <= 100 * writer.entries
    lift(writer, *many[::2])
    for number in range(0, len(many), 1_237):
        wanted = Standing.REVOKED if number % 2 else Standing.GO
        assert door.check(of(many[number]), NOBODY) == wanted
    for text in many[1::2][:5_000]:
        lift(writer, text)
    assert writer.entries == 45_000
    assert door.check(of(*many[:10_000]), NOBODY) == Standing.GO
    assert door.check(of(many[10_001]), NOBODY) == Standing.REVOKED
    assert [path.name for path in tmp_path.glob("board.table*")] == [f"board.table{number_of(tmp_path)}"]


def number_of(folder: Path) -> int:
    """The table that a board points at."""
    return int(struct.unpack_from("<Q", (folder / "board").read_bytes(), 88)[0])
