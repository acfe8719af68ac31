"""Enforcers and workers on other machines, on a real Kafka: a home of their own, an enrolment file, and the end of it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from schemas.frame import Frame
from schemas.keys import parse_private
from schemas.process import read_run_file
from tests.support.certificates import Authority
from tests.support.frames import HOST_BOOT, Host
from tests.support.home import Wardline, wait_until
from tests.support.kafka import Kafka

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def main(kafka: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wardline]:
    """The home of control, with everything in it."""
    folder = tmp_path_factory.mktemp("main")
    authority = Authority(folder)
    authority.issue("server")
    authority.issue("desk")
    config = f"""
        [kafka]
        prefix = "ctl."
        [control]
        listen = "127.0.0.1:0"
        tls_certificate_file = "{folder / "server.pem"}"
        tls_key_file = "{folder / "server.key"}"
        tls_client_ca_file = "{folder / "ca.pem"}"
    """
    with Wardline(folder / "home", kafka=kafka.address, config=config) as home:
        home.write_policies("permit (principal, action, resource);\n")
        home.up("--doors", "0")
        yield home


def enforcers(home: Wardline) -> dict[str, Any]:
    found = json.loads(home.run("enforcer", "list", "--json").stdout)
    return {one["name"]: one for one in found}


def send(kafka: Kafka, *frames: Frame) -> None:
    """As a host would, by whoever has its key."""
    producer = Producer({"bootstrap.servers": kafka.address, "acks": "all"})
    for frame in frames:
        producer.produce("ctl.calls", frame.wire, partition=0)
    assert producer.flush(30) == 0


def test_an_enforcer_of_another_machine_obeys_and_may_publish_until_it_is_removed(
    main: Wardline, kafka: Kafka, tmp_path: Path
) -> None:
    file = tmp_path / "edge-7.enrol"
    told = main.run("enforcer", "add", "edge-7", "--kafka", kafka.address, "--out", str(file)).stdout
    assert re.search(r"added enforcer `edge-7` as epoch \d+; .*edge-7\.enrol holds its private key", told)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().splitlines()[-2] not in told
    again = main.run("enforcer", "add", "edge-7", "--kafka", kafka.address, "--out", str(file), check=False)
    assert (again.returncode, "is there already, and may be the only copy of a key" in again.stderr) == (2, True)
    assert enforcers(main)["edge-7"]["state"] == "never seen"

    with Wardline(tmp_path / "edge") as edge:
        for _ in range(2):  # the second start finds everything in place
            edge.popen("enforce", "--enrol", str(file), "--doors", "0", log="edge-7")
            edge.wait_ready("edge-7")
            wait_until(lambda: enforcers(main)["edge-7"]["state"] == "ready", 20, "control hears it")
            assert edge.stop("edge-7") == 0
            wait_until(lambda: enforcers(main)["edge-7"]["state"] == "stopped", 20, "control hears its end")
        edge.popen("enforce", "--enrol", str(file), "--doors", "0", log="edge-7")
        edge.wait_ready("edge-7")
        status = edge.status()
        assert status["ready"]
        assert [process["name"] for process in status["processes"]] == ["edge-7"]
        wait_until(lambda: enforcers(main)["edge-7"]["state"] == "ready", 20, "control hears it")
        told = main.run("revoke", "agent", "mallory", "--reason", "drill").stdout
        assert re.search(r"  edge-7 +\d+ ms\n", told)
        assert "2 of 2 enforcers ready" in main.run("status").stdout
        one = enforcers(main)["edge-7"]
        assert (one["lag_records"], one["doors"], one["seen_s"] < 10) == (0, 0, True)

        # its key may publish, whoever has it, until it is removed
        path = edge.home.private_key("hosts", "edge-7")
        host = Host("edge-7", boot=HOST_BOOT, key=parse_private(path.read_bytes(), path))
        send(kafka, host.frame(3), host.frame(3))
        rows = "SELECT countIf(boot != 0) FROM records WHERE enforcer = 'edge-7'"
        wait_until(lambda: main.sql(rows) == [(6,)], 30, lambda: f"stored: {main.sql(rows)}")
        told = main.run("enforcer", "remove", "edge-7").stdout
        assert re.fullmatch(r"removed enforcer `edge-7` as epoch \d+: its later frames are dead letters\n", told)
        assert "edge-7" not in enforcers(main)
        send(kafka, host.frame(3), host.frame(3))
        letters = "SELECT reason, count() FROM deadletters FINAL GROUP BY reason"
        wait_until(lambda: main.sql(letters) == [("key", 2)], 30, lambda: f"dead letters: {main.sql(letters)}")
        assert main.sql(rows) == [(6,)]
        wait_until(lambda: not edge.status()["ready"], 20, "its own host refuses everything")
        (process,) = edge.status()["processes"]
        assert process["state"] == "stale"
    assert main.run("enforcer", "remove", "edge-7", check=False).returncode == 2


def test_a_worker_of_another_machine_takes_its_share(main: Wardline, kafka: Kafka, tmp_path: Path) -> None:
    file = tmp_path / "loader-2.enrol"
    main.run("worker", "add", "loader-2", "--kafka", kafka.address, "--out", str(file))
    assert "loader-2" in main.run("worker", "list").stdout
    store = read_run_file(main.home.run_file("store"))
    assert store is not None
    secret = main.home.password("writer")
    config = f'[clickhouse]\nurl = "http://{store["address"]}"\nwriter_password_file = "{secret}"\n'
    with Wardline(tmp_path / "loader", config=config) as loader:
        done = loader.run("enforce", "--enrol", str(file), check=False)
        assert done.stderr == f"wardline: {file}: enrols a worker: run `wardline work --enrol` with it\n"
        loader.popen("work", "--enrol", str(file), log="loader-2")
        loader.wait_ready("loader-2")
        workers = "SELECT count() > 0 FROM fence WHERE startsWith(owner, 'loader-2/')"

        def both() -> bool:
            main.replay(main.home.root / "calls.jsonl")
            return main.sql(workers) == [(1,)]

        wait_until(both, 120, lambda: f"the worker on the other machine stores too: {loader.said('loader-2')}")
    main.run("worker", "remove", "loader-2")
    assert "loader-2" not in main.run("worker", "list").stdout


def test_commands_on_another_machine_need_a_certificate_and_are_named_by_it(main: Wardline, tmp_path: Path) -> None:
    control = read_run_file(main.home.run_file("control"))
    assert control is not None
    folder = main.home.root.parent
    url = f'[control]\nurl = "https://{control["address"]}"\nclient_ca_file = "{folder / "ca.pem"}"\n'
    config = url + f'client_certificate_file = "{folder / "desk.pem"}"\nclient_key_file = "{folder / "desk.key"}"\n'
    with Wardline(tmp_path / "desk", config=config) as desk:
        told = desk.run("revoke", "session", "from-afar", "--reason", "drill").stdout
        assert re.search(r"revoked session `from-afar` as epoch \d+\n", told)
        listed = json.loads(desk.run("revocations", "--json").stdout)
        assert [one["by"] for one in listed if one["name"] == "from-afar"] == ["cn:desk"]
        desk.home.config.write_text(url)
        done = desk.run("pause", check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "control.client_certificate_file: is not set" in done.stderr
        stranger, key = Authority(tmp_path / "other").issue("desk")
        desk.home.config.write_text(url + f'client_certificate_file = "{stranger}"\nclient_key_file = "{key}"\n')
        done = desk.run("pause", check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "does control take this certificate" in done.stderr
        assert json.loads(main.run("status", "--json").stdout)["control"]["paused"] is None
