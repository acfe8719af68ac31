"""A gibibyte through a door, each way, in plain HTTP and in a tunnel: whole, and in bounded memory."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bulk import Bulk
from tests.support.governed import Governed
from tests.support.origins import ADDRESS, BLOCK, digest_of_bytes

GIB = 1 << 30
DOOR_BYTES_MAX = 40 << 20
"""What a door may need beside what it had before, however large the bodies are that pass it."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Governed]:
    with Governed(tmp_path_factory.mktemp("bulk"), raw=True) as made:  # the port of the bulk site is not 443
        yield made


@pytest.fixture(scope="module")
def bulk(site: Governed) -> Iterator[Bulk]:
    with Bulk(ADDRESS, site.origins.authority.issue("bulk", "www.example.test")) as made:
        yield made


def peak(site: Governed) -> int:
    """The most memory that the door has had, bytes."""
    text = Path(f"/proc/{site.wardline.pid('door-1')}/status").read_text()
    return max(int(kib) << 10 for kib in re.findall(r"VmHWM:\s+(\d+) kB", text))


@pytest.mark.parametrize(("way", "secure"), [
    pytest.param("down", False, id="down-http"), pytest.param("up", True, id="up-tunnel"),
    pytest.param("down", True, id="down-tunnel", marks=pytest.mark.soak),
    pytest.param("up", False, id="up-http", marks=pytest.mark.soak),
])  # fmt: skip
def test_a_gibibyte_passes_whole_and_the_door_stays_small(
    site: Governed, bulk: Bulk, tmp_path: Path, way: str, secure: bool
) -> None:
    before = peak(site)
    port = (bulk.https if secure else bulk.http).rpartition(":")[2]
    url, session = f"{'https' if secure else 'http'}://www.example.test:{port}", f"{way}-{secure}"
    proxy = site.proxy(f"robot+{session}")
    if way == "down":
        done = site.run("sh", "-c", f"curl -sS --max-time 250 {url}/bytes/{GIB} | sha256sum", proxy=proxy, timeout=260)
        assert done.stdout.split()[0] == digest_of_bytes(GIB)
    else:
        file = tmp_path / "gib"
        with file.open("wb") as out:
            for _ in range(GIB // len(BLOCK)):
                out.write(BLOCK)
        done = site.run("curl", "-sS", "--max-time", "250", "-T", str(file), f"{url}/sink", proxy=proxy, timeout=260)
        file.unlink()
        assert json.loads(done.stdout) == {"bytes": GIB, "sha256": digest_of_bytes(GIB)}
    assert peak(site) - before < DOOR_BYTES_MAX
    (call,) = site.calls(f"session = '{session}'", "bytes_in, bytes_out")
    moved = call["bytes_in" if way == "down" else "bytes_out"]
    assert GIB <= moved < GIB * 1.02
