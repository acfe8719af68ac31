"""Run a single-node Apache Kafka (KRaft) from jars that Maven resolves: `python deploy/kafka/run.py [--port P] [--data DIR]`.

Needs Java 17 and Maven, and nothing of Wardline. The jars go to `.cache/kafka/jars`, the data to `.cache/kafka/data` or DIR,
where the next run finds it again. The process becomes Kafka itself (exec), so its id is Kafka's and signals reach it.
"""

import argparse
import base64
import os
import shutil
import socket
import subprocess
import sys
import uuid
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".cache" / "kafka"
JARS = CACHE / "jars"
MAIN_CLASS_JAR = "kafka_2.13-*.jar"
QUIET = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"


def fail(message):
    """One line, exit code 2."""
    sys.exit(_say(message))


def _say(message):
    print(f"kafka: {message}", file=sys.stderr)
    return 2


def missing_tools():
    """The commands that are needed and not there."""
    return [tool for tool in ("java", "mvn") if shutil.which(tool) is None]


def fetch_jars():
    """Resolve the jars by their coordinates in pom.xml, once; a changed pom.xml does it again."""
    stamp = JARS / ".complete"
    pom = HERE / "pom.xml"
    if stamp.exists() and stamp.read_bytes() == pom.read_bytes():
        return
    shutil.rmtree(JARS, ignore_errors=True)
    JARS.parent.mkdir(parents=True, exist_ok=True)
    command = ["mvn", "-q", "-B", "-Dstyle.color=never", "-f", str(pom), "dependency:copy-dependencies",
               "-DincludeScope=runtime", f"-DoutputDirectory={JARS}"]  # fmt: skip
    if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode != 0 or not any(JARS.glob(MAIN_CLASS_JAR)):
        fail("Maven could not resolve the jars in deploy/kafka/pom.xml; its lines above say why")
    # the stamp comes last: a run that was interrupted starts over
    stamp.write_bytes(pom.read_bytes())


def free_port():
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def prepare(data, port, controller):
    """Write the settings for these ports, and format the data folder if it is new. Returns the settings file."""
    data.mkdir(parents=True, exist_ok=True)
    logs = data / "logs"
    settings = data / "server.properties"
    text = (HERE / "server.properties").read_text()
    for name, value in (("@PORT@", port), ("@CONTROLLER@", controller), ("@DATA@", logs)):
        text = text.replace(name, str(value))
    settings.write_text(text)
    if not (logs / "meta.properties").exists():
        shutil.rmtree(logs, ignore_errors=True)
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode().replace("-", "A", 1)
        command = ["java", QUIET, "-cp", f"{JARS}/*", "kafka.tools.StorageTool", "format", "--standalone", "-t", cluster,
                   "-c", str(settings)]  # fmt: skip
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).strip().splitlines()
            fail(f"{logs} cannot be formatted: {lines[-1] if lines else 'no word why'}")
    return settings


def java_command(settings, heap):
    """The command that is Kafka."""
    return ["java", f"-Xmx{heap}", "-XX:+UseSerialGC", QUIET, "-cp", f"{JARS}/*", "kafka.Kafka", str(settings)]


def main():
    """Fetch, format when new, run."""
    parser = argparse.ArgumentParser(description="Run a single-node Apache Kafka from Maven's jars.")
    parser.add_argument("--port", type=int, default=9092, help="port for clients on 127.0.0.1 (default 9092; 0: a free one)")
    parser.add_argument("--controller-port", type=int, default=0, help="port of the controller (default 0: a free one)")
    parser.add_argument("--data", type=Path, default=CACHE / "data", help="folder of the data (default .cache/kafka/data)")
    parser.add_argument("--heap", default="1g", help="Java's heap (default 1g)")
    parser.add_argument("--fetch", action="store_true", help="only fetch the jars")
    args = parser.parse_args()
    if missing := missing_tools():
        fail(f"needs {' and '.join(missing)} on the path (Debian: apt install openjdk-17-jre-headless maven)")
    fetch_jars()
    if args.fetch:
        return
    port = args.port or free_port()
    settings = prepare(args.data.resolve(), port, args.controller_port or free_port())
    print(f"Kafka on 127.0.0.1:{port}, data in {args.data}; use it with: wardline up --kafka 127.0.0.1:{port}", flush=True)
    command = java_command(settings, args.heap)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
