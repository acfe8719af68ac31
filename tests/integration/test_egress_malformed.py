"""Requests without one meaning, through a real door: each gets its status, is counted under its code, and no origin sees it."""

import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.egress import EgressSite, credential
from tests.support.home import wait_until
from tests.support.malformed import BODIES, BadBody, table
from tests.support.rawhttp import RawOrigin, Reader, answer_ok

AGENT = credential("researcher")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EgressSite]:
    with EgressSite(tmp_path_factory.mktemp("malformed") / "home", agents=("researcher",)) as made:
        made.start()
        yield made


@pytest.fixture(scope="module")
def origin() -> Iterator[RawOrigin]:
    with RawOrigin(answer_ok) as made:
        yield made


def test_no_request_of_the_table_reaches_its_origin(site: EgressSite, origin: RawOrigin) -> None:
    """In one piece and byte by byte: where the packets end changes nothing."""
    rows = table(origin.authority.encode(), AGENT)
    assert len(rows) >= 60
    door, wanted = site.doors[0], Counter[tuple[str, int]]()
    for row in rows:
        for whole in (True, False):
            if not whole and len(row.data) > 2_000:
                continue
            with door.connect() as client:
                if whole:
                    client.sendall(row.data)
                else:
                    for at in range(len(row.data)):
                        try:
                            client.sendall(row.data[at : at + 1])
                        except OSError:
                            break  # it is refused already, and closed
                got = Reader(client).answer()
            said = got.json()
            assert (got.status, said["reason"], said["call_id"]) == (row.status, "malformed", ""), row.name
            assert got.header("connection") == "close", row.name
            wanted[row.code, row.status] += 1
    assert (origin.connections, origin.seen) == (0, [])
    deadline = time.monotonic() + 5
    while (found := counted(site)) != wanted:
        assert time.monotonic() < deadline, (found - wanted, wanted - found)
        time.sleep(0.05)
    assert {said["kind"] for said in site.records()} == {"count"}


def counted(site: EgressSite) -> Counter[tuple[str, int]]:
    found = Counter[tuple[str, int]]()
    for said in site.records():
        if said["kind"] == "count" and said["reason"] == "malformed":
            found[said["error"], said["status"]] += said["count"]
    return found


def decided(site: EgressSite, known: set[str]) -> str:
    """The call that is decided next. Between two of them there may be a count of what was refused before."""
    new = wait_until(
        lambda: [said["call"] for said in site.records() if said["kind"] == "decision" and said["call"] not in known],
        10, "a call is decided",
    )  # fmt: skip
    (call,) = new
    return str(call)


@pytest.mark.parametrize("bad", BODIES, ids=lambda bad: bad.name)
@pytest.mark.parametrize("at_once", [True, False], ids=["with its head", "behind its head"])
def test_a_body_that_breaks_its_framing_is_never_whole_at_its_origin(
    site: EgressSite, origin: RawOrigin, bad: BadBody, at_once: bool
) -> None:
    head = site.get(origin.authority, "/", "Transfer-Encoding: chunked", method="POST", user="researcher")
    before = len(origin.seen)
    known = {said["call"] for said in site.records() if said["kind"] == "decision"}
    with site.doors[0].connect() as client:
        client.sendall(head if not at_once else head + bad.data)
        if not at_once:
            call = decided(site, known)
            client.sendall(bad.data)
        got = Reader(client).answer()
        status = 431 if bad.code == "many-fields" else 400
        assert (got.status, got.json()["reason"]) == (status, "malformed")
    if not at_once:
        effect = site.effect_of(call)
        assert (effect["outcome"], effect["status"], effect["error"]) == ("error", status, f"malformed: {bad.code}")
    assert len(origin.seen) == before
