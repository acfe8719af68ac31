"""Nothing secret shows anywhere: not in records, topics, logs, errors, metrics, run files or process titles."""

import base64
import contextlib
import re
import subprocess
import urllib.request
from pathlib import Path

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from schemas.process import read_run_file
from tests.support.home import Wardline, wait_until
from tests.support.jobs import EXAMPLES, install_policies
from tests.support.kafka import Kafka

SASL = "planted-sasl-password-5f1c"
STREAMS = ("broker", "store", "control", "work-1", "enforce-1", "door-1")


def secrets_of(home: Wardline) -> dict[str, bytes]:
    """What must not show: both passwords, the body of every private key, and what queries are hashed with."""
    root = home.home.root
    found = {path.name: path.read_bytes().strip() for path in (root / "secrets").glob("*.password")}
    for path in (root / "keys").rglob("*.key"):
        lines = path.read_bytes().splitlines()
        found[path.name] = max(lines, key=len)
    found["query.key"] = home.home.query_key.read_bytes()
    assert len(found) >= 5
    assert all(len(secret) >= 16 for secret in found.values())
    return found


def shown(home: Wardline, answers: list[str]) -> dict[str, bytes]:
    """Everything that anybody may read, by where it is."""
    root = home.home.root
    places = {f"answer {number}": text.encode() for number, text in enumerate(answers)}
    for path in root.rglob("*"):
        if path.is_file() and path.relative_to(root).parts[0] not in ("secrets", "keys"):
            with contextlib.suppress(FileNotFoundError):  # merged, trimmed or rotated just now
                places[str(path.relative_to(root))] = path.read_bytes()
    for name in ("up", *STREAMS):
        said = read_run_file(home.home.run_file(name))
        if said is None or not said["alive"]:
            continue
        places[f"title of {name}"] = Path(f"/proc/{said['pid']}/cmdline").read_bytes()
        places[f"environment of {name}"] = Path(f"/proc/{said['pid']}/environ").read_bytes()
        if metrics := said.get("metrics"):
            with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
                places[f"metrics of {name}"] = answer.read()
    for (table,) in home.sql("SELECT name FROM system.tables WHERE database = 'wardline' AND NOT startsWith(name, '.')"):
        places[f"table {table}"] = str(home.sql(f"SELECT * FROM {table}")).encode()
    return places


def through_the_door(home: Wardline, user: str, url: str) -> list[str]:
    """What curl says of a call through the door, with all that it can say of heads."""
    said = read_run_file(home.home.run_file("door-1"))
    assert said is not None
    done = subprocess.run(
        ["curl", "-sS", "-i", "-m", "20", "-x", f"{user}{said['address']}", url], capture_output=True, text=True, check=True
    )
    return [done.stdout, done.stderr]


def topics(server: str) -> dict[str, bytes]:
    """Every message of every topic."""
    consumer = Consumer({"bootstrap.servers": server, "group.id": "secrets", "enable.auto.commit": False})
    found: dict[str, bytes] = {}
    try:
        for name, topic in consumer.list_topics(timeout=10).topics.items():
            for partition in topic.partitions:
                at = TopicPartition(name, partition, OFFSET_BEGINNING)
                low, high = consumer.get_watermark_offsets(at, timeout=10)
                consumer.assign([at])
                for offset in range(low, high):
                    message = consumer.poll(10)
                    assert message is not None, at
                    found[f"{name}/{partition}/{offset}"] = (message.key() or b"") + (message.value() or b"")
    finally:
        consumer.close()
    return found


def test_no_secret_of_a_home_shows_anywhere(wardline: Wardline) -> None:
    install_policies(wardline)
    wardline.up()
    answers = [wardline.replay(EXAMPLES / "calls.jsonl").stderr]
    added = [wardline.run("agent", *words).stdout for words in (("add", "a", "--owner", "o"), ("rotate", "a"))]
    credentials = {f"credential {n}": text.splitlines()[-1].encode() for n, text in enumerate(added)}
    password = (wardline.home.root / "secrets" / "reader.password").read_text().strip()
    for words in (
        ("status",), ("status", "--json"), ("sql", "SELECT broken FROM calls"), ("sql", "SELECT user()"),
        ("sql", "SHOW CREATE TABLE records"), ("deadletter", "list"), ("deadletter", "show", "00"), ("agent", "list", "--json"),
        ("agent", "show", "a"), ("audit", "control"), ("audit", "control", "--json"), ("agent", "add", "a", "--owner", "o"),
    ):  # fmt: skip
        done = wardline.run(words[0], *words[1:], check=False)
        answers += [done.stdout, done.stderr]
    secrets = secrets_of(wardline) | credentials
    rotated = credentials["credential 1"].decode()
    url = "http://pastebin.com/path?query-of-the-agent"
    wait_until(lambda: "no-p" in through_the_door(wardline, f"http://a:{rotated}@", url)[0], 10, "the door knows the agent")
    for secret in (rotated, credentials["credential 0"].decode(), f"{rotated}x"):  # right, ended, wrong
        answers += through_the_door(wardline, f"http://a:{secret}@", url)
    wardline.wait_stored()
    secrets |= {"basic": base64.b64encode(f"a:{rotated}".encode()), "query": b"query-of-the-agent"}
    # control's journal and topic have it, and the doors of a host, for Wardline alone; no answer, no log and no table
    hashed = b"scrypt$16384$8$1$"
    # the search itself finds what is there
    assert password.encode() in secrets.values()
    assert b"pinned" in b"".join(shown(wardline, [*answers, "pinned"]).values())
    broker = read_run_file(wardline.home.run_file("broker"))
    assert broker is not None
    places = shown(wardline, answers) | topics(broker["address"])
    assert len([place for place in places if place.startswith("wardline.calls/")]) >= 4
    leaks = [(what, place) for place, data in places.items() for what, secret in secrets.items() if secret in data]
    assert leaks == []
    kept = ("control/", "wardline.control/", "hosts/enforce-1/agents.json")
    assert wardline.home.agents("enforce-1").stat().st_mode & 0o777 == 0o600
    assert [place for place, data in places.items() if hashed in data and not place.startswith(kept)] == []


def test_a_password_for_kafka_shows_nowhere_when_it_is_refused(wardline: Wardline, kafka: Kafka, tmp_path: Path) -> None:
    """The broker speaks no SASL, so every client fails to connect, again and again, and says so."""
    secret = tmp_path / "kafka.password"
    secret.write_text(SASL)
    secret.chmod(0o600)
    wardline.home.config.write_text(
        f'[kafka]\nservers = "{kafka.address}"\nsecurity_protocol = "SASL_PLAINTEXT"\nsasl_username = "wardline"\n'
        f'sasl_password_file = "{secret}"\n'
    )
    install_policies(wardline)
    wardline.start("store")
    wardline.popen("control")
    wardline.popen("work", "--slot", "1", log="work-1")
    wardline.popen("enforce", "--slot", "1", "--doors", "0", log="enforce-1")
    refused = re.compile(r"SASL|[Cc]onnect|closed|bootstrap|Kafka", re.ASCII)
    for name in ("control", "work-1", "enforce-1"):
        wait_until(lambda name=name: refused.search(wardline.said(name)), 60, lambda name=name: wardline.said(name))
    up = wardline.run("up", "--port-base", "0", check=False)
    places = shown(wardline, [up.stdout, up.stderr, wardline.run("status", check=False).stdout])
    assert [place for place, data in places.items() if SASL.encode() in data] == []
