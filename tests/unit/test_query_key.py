"""The key that hashes of queries are made with: one for a home, whoever asks first, and never readable for others."""

import threading
from pathlib import Path

import pytest

from pipeline.cli.common import open_home
from schemas.errors import OperatorFault
from schemas.home import Home
from schemas.keys import QUERY_KEY_BYTES, query_key


def test_all_who_ask_at_the_same_time_get_the_same_key(tmp_path: Path) -> None:
    home, found, start = Home(tmp_path / "home"), [], threading.Barrier(8)

    def ask() -> None:
        start.wait()
        found.append(query_key(home))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert len(found[0]) == QUERY_KEY_BYTES
    assert [path.name for path in home.query_key.parent.iterdir()] == ["query.key"]


def test_an_opened_home_has_a_key_that_stays_and_another_home_has_another(tmp_path: Path) -> None:
    homes = [Home(tmp_path / "a"), Home(tmp_path / "b")]
    for home in homes:
        open_home(home)
    keys = [home.query_key.read_bytes() for home in homes]
    assert keys[0] != keys[1]
    open_home(homes[0])
    assert homes[0].query_key.read_bytes() == keys[0]
    assert homes[0].query_key.stat().st_mode & 0o777 == 0o600


def test_a_key_that_others_can_read_or_that_was_cut_is_refused_by_name(tmp_path: Path) -> None:
    home = Home(tmp_path)
    query_key(home)
    home.query_key.chmod(0o640)
    with pytest.raises(OperatorFault, match=r"secrets/query\.key: mode is 0640, must be 0600$"):
        query_key(home)
    home.query_key.chmod(0o600)
    home.query_key.write_bytes(b"short")
    with pytest.raises(OperatorFault, match=r"secrets/query\.key: has 5 bytes, must have 32; remove it, and another is made$"):
        query_key(home)
