"""A damaged spool: readers give a sound beginning and nothing else, writers go on behind it, and no seq is used twice."""

import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ext.spool import SpoolReader, SpoolWriter
from schemas.errors import OperatorFault
from schemas.layout import SEGMENT_HEADER_BYTES
from tests.support import oracles
from tests.support.oracles import Rec
from tests.support.spooling import BOOT, SEGMENT, padded, put, read_all, segments, told, writer

TEXTS = ("default", "door", "日本", *("",) * 17)
Numbered = list[tuple[int, Rec]]


def spool_of(folder: Path, sizes: list[int]) -> Numbered:
    """A closed spool with records of these sizes."""
    spool = writer(folder)
    found = [put(spool, padded(number, size)) for number, size in enumerate(sizes, 1)]
    spool.close()
    return found


def end_of(records: Numbered) -> int:
    """Where the records of one segment end."""
    return SEGMENT_HEADER_BYTES + sum(rec.bytes_needed() for _, rec in records)


def goes_on(folder: Path, expected: Numbered, reader: SpoolReader) -> None:
    """A new writer goes on behind `expected`; an old and a new reader both see it."""
    spool = writer(folder)
    assert (spool.last_seq, spool.last_ref) == (len(expected), max((rec.ref for _, rec in expected), default=0))
    rest = [put(spool, Rec(ref=77, texts=TEXTS)), put(spool, padded(5, 4_000))]
    spool.close()
    assert told(reader.read(1 << 20, 1 << 30)) == rest
    assert read_all(folder) == (expected + rest, "")


def test_a_file_cut_at_any_byte_of_its_tail_goes_on_behind_the_last_whole_record(tmp_path: Path) -> None:
    for number, cut in enumerate(range(end_of([(1, padded(1, 176))]), SEGMENT_HEADER_BYTES + 176 + 184 + 192 + 16)):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = spool_of(folder, [176, 184, 192])
        (path,) = segments(folder)
        path.write_bytes(path.read_bytes()[:cut])
        whole = [record for at, record in enumerate(found) if end_of(found[: at + 1]) <= cut]
        reader = SpoolReader(str(folder), BOOT)
        assert told(reader.read(9, 1 << 30)) == whole
        goes_on(folder, whole, reader)
        assert path.stat().st_size == SEGMENT
        assert path.stat().st_blocks * 512 >= SEGMENT


def test_any_exchanged_byte_of_the_last_record_takes_that_record_only(tmp_path: Path) -> None:
    spool_of(tmp_path, [176, 184])
    (path,) = segments(tmp_path)
    first = read_all(tmp_path)[0][:1]
    sound = path.read_bytes()
    for at in range(end_of(first), end_of(first) + 184):
        damaged = bytearray(sound)
        damaged[at] ^= 0x41
        path.write_bytes(damaged)
        reader = SpoolReader(str(tmp_path), BOOT)
        assert told(reader.read(9, 1 << 30)) == first
        assert reader.torn == f"00000001.seg: record 2 at byte {end_of(first)} is damaged"
        assert reader.read(9, 1 << 30) == []
        goes_on(tmp_path, first, reader)
        assert reader.torn, "what was lost stays said"


def test_a_record_without_its_size_never_happened(tmp_path: Path) -> None:
    found = spool_of(tmp_path, [176, 184])
    (path,) = segments(tmp_path)
    data = bytearray(path.read_bytes())
    unborn = oracles.encode_record(3, Rec(ref=99, texts=("half",) * 20))
    data[end_of(found) + 4 : end_of(found) + len(unborn)] = unborn[4:]
    path.write_bytes(data)
    reader = SpoolReader(str(tmp_path), BOOT)
    assert told(reader.read(9, 1 << 30)) == found
    assert reader.torn == ""
    goes_on(tmp_path, found, reader)


def test_an_old_record_behind_the_tail_does_not_come_back(tmp_path: Path) -> None:
    """A page in the middle never reached the disk, the one behind it did: its record must not follow what is written now."""
    found = spool_of(tmp_path, [176, 184, 176])
    (path,) = segments(tmp_path)
    data = bytearray(path.read_bytes())
    data[end_of(found[:1]) : end_of(found[:2])] = bytes(184)
    path.write_bytes(data)
    spool = writer(tmp_path)
    again = put(spool, padded(9, 184))
    assert read_all(tmp_path) == ([found[0], again], "")


def test_damage_in_an_earlier_segment_sets_the_later_ones_aside(tmp_path: Path) -> None:
    found = spool_of(tmp_path, [1_024] * 200)
    assert len(segments(tmp_path)) == 4
    second = segments(tmp_path)[1]
    data = bytearray(second.read_bytes())
    data[SEGMENT_HEADER_BYTES + 5 * 1_024 + 500] ^= 1
    second.write_bytes(data)
    reader = SpoolReader(str(tmp_path), BOOT)
    assert told(reader.read(1_000, 1 << 30)) == found[:68]
    assert reader.torn.startswith("00000002.seg: record 69 ")
    goes_on(tmp_path, found[:68], reader)
    names = ["00000001.seg", "00000002.seg", "00000003.torn", "00000004.torn"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_segment_that_is_missing_shows(tmp_path: Path) -> None:
    found = spool_of(tmp_path, [1_024] * 200)
    segments(tmp_path)[0].unlink()
    reader = SpoolReader(str(tmp_path), BOOT, 62)
    assert reader.read(1_000, 1 << 30) == []
    assert reader.torn == "00000002.seg: begins with record 64, expected 63"
    assert read_all(tmp_path, 63) == (found[63:], "")
    spool = writer(tmp_path, after_seq=62)
    again = put(spool, Rec())
    assert again[0] == 63, "whoever reads behind 62 gets on"
    assert told(reader.read(1_000, 1 << 30)) == [again]


@pytest.mark.parametrize("at", [0, 8, 16, 24, 32, 40, 48, "cut"])
def test_a_damaged_header_is_as_if_the_segment_were_not_there(tmp_path: Path, at: int | str) -> None:
    found = spool_of(tmp_path, [1_024] * 100)
    last = segments(tmp_path)[1]
    data = bytearray(last.read_bytes())
    if isinstance(at, int):
        data[at] ^= 1
    else:
        del data[40:]
    last.write_bytes(data)
    reader = SpoolReader(str(tmp_path), BOOT)
    assert told(reader.read(1_000, 1 << 30)) == found[:63]
    assert reader.torn == "00000002.seg: the header is damaged"
    goes_on(tmp_path, found[:63], reader)


def test_a_lost_header_with_nothing_before_it_needs_the_hosts_word(tmp_path: Path) -> None:
    spool_of(tmp_path, [1_024] * 100)
    first, last = segments(tmp_path)
    first.unlink()
    last.write_bytes(bytes(SEGMENT))
    with pytest.raises(OperatorFault, match=r"^00000002\.seg: its header is damaged"):
        writer(tmp_path)
    reader = SpoolReader(str(tmp_path), BOOT, 70)
    assert reader.read(9, 1 << 30) == []
    spool = writer(tmp_path, after_seq=70)
    assert put(spool, Rec())[0] == 71
    assert [seq for seq, _ in told(reader.read(9, 1 << 30))] == [71]


def test_a_spool_that_lost_what_is_sealed_uses_no_seq_twice(tmp_path: Path) -> None:
    found = spool_of(tmp_path, [176] * 10)
    (path,) = segments(tmp_path)
    path.write_bytes(path.read_bytes()[: end_of(found[:6])])
    reader = SpoolReader(str(tmp_path), BOOT, 10)
    assert reader.read(9, 1 << 30) == []
    spool = writer(tmp_path, after_seq=10)
    eleven = put(spool, Rec(ref=3))
    assert eleven[0] == 11
    assert told(reader.read(9, 1 << 30)) == [eleven]
    assert reader.torn == ""
    spool.close()
    spool = writer(tmp_path, after_seq=11)
    assert put(spool, Rec())[0] == 12
    assert read_all(tmp_path, 10)[0][0] == eleven


def test_the_folder_of_another_door_is_refused(tmp_path: Path) -> None:
    spool_of(tmp_path, [176])
    with pytest.raises(OperatorFault, match=r"^00000001\.seg: belongs to door `6565656500000007`, not to `0000000000000009`"):
        SpoolWriter(str(tmp_path), 9, SEGMENT, 4 * SEGMENT, 0)
    with pytest.raises(OperatorFault, match="belongs to door"):
        SpoolReader(str(tmp_path), 9).read(1, 1)


def test_what_a_crash_left_half_made_is_removed(tmp_path: Path) -> None:
    spool_of(tmp_path, [176])
    (tmp_path / "next-7.seg").write_bytes(bytes(SEGMENT))
    writer(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["00000001.seg"]


damage = st.lists(
    st.tuples(
        st.sampled_from(["flip", "zero", "cut", "grow", "size", "remove"]),
        st.integers(0, 2),
        st.one_of(st.integers(0, 400), st.integers(0, SEGMENT - 1)),
        st.integers(1, 300),
    ),
    min_size=1,
    max_size=4,
)


def hurt(path: Path, what: str, at: int, size: int) -> None:
    """Do to a file what disks and people do."""
    if not path.exists():
        return
    data = bytearray(path.read_bytes())
    if what == "flip" and data:
        data[at % len(data)] ^= size & 0xFF or 1
    elif what == "zero":
        data[at : at + size] = bytes(len(data[at : at + size]))
    elif what == "cut":
        del data[at:]
    elif what == "grow":
        data += bytes([size & 0xFF]) * size
    elif what == "size" and len(data) > SEGMENT_HEADER_BYTES + 4:  # a length that lies, at a record's start
        struct.pack_into("<I", data, SEGMENT_HEADER_BYTES, at)
    elif what == "remove":
        path.unlink()
        return
    path.write_bytes(data)


@settings(max_examples=150)
@given(sizes=st.lists(st.integers(22, 2_048).map(lambda words: 8 * words), min_size=1, max_size=20), damages=damage)
def test_no_damage_makes_a_record_that_was_not_written(sizes: list[int], damages: list[tuple[str, int, int, int]]) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        found = spool_of(folder, sizes)
        for what, which, at, size in damages:
            hurt(folder / f"{which + 1:08d}.seg", what, at, size)
        reader = SpoolReader(name, BOOT)
        seen = told(reader.read(1 << 20, 1 << 30))
        assert seen == found[: len(seen)]
        if reader.read(1 << 20, 1 << 30):
            raise AssertionError("a second look found more")
        if not seen and not (folder / "00000001.seg").exists():
            return  # as if the host had sealed and removed it: only the host can say
        spool = writer(folder, after_seq=len(seen))
        more = put(spool, padded(1, 800))
        *back, last = told(reader.read(1 << 20, 1 << 30))
        # a record that was cut off where it only had zeros is whole again when its file is
        assert back == found[len(seen) : len(seen) + len(back)]
        assert last == more
        assert more[0] == len(seen) + len(back) + 1
