"""One operation across two enforcers, with real processes: an origin that calls on through a second door with the traceparent
that it got, a worker that is killed in between, and what the store and `wardline chain` then say of it."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from schemas.process import read_run_file
from tests.support.home import Wardline, wait_until
from tests.support.origins import ADDRESS

POLICY = """
@id("both-use-the-service")
permit (principal in AgentGroup::"both", action in Action::"http:read", resource);
"""
ENTITIES = """[
    {"uid": {"type": "Agent", "id": "planner"}, "attrs": {}, "parents": [{"type": "AgentGroup", "id": "both"}]},
    {"uid": {"type": "Agent", "id": "researcher"}, "attrs": {}, "parents": [{"type": "AgentGroup", "id": "both"}]}
]"""


class Service:
    """What planner asks. It is the agent researcher, and asks itself for data through a proxy before it answers."""

    def __init__(self) -> None:
        self.proxy = ""
        self.asked = threading.Event()
        self.go_on = threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/ask":
                    got(service.proxy, f"{service.url}/data", {"traceparent": self.headers["traceparent"]})
                    service.asked.set()
                    service.go_on.wait(60)
                self.send_response(200)
                self.send_header("Content-Length", "4")
                self.end_headers()
                self.wfile.write(b"well")

            def log_message(self, *words: Any) -> None:
                pass

        self._server = ThreadingHTTPServer((ADDRESS, 0), Handler)
        self.url = f"http://{ADDRESS}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()


def got(proxy: str, url: str, headers: dict[str, str]) -> bytes:
    """The answer to a GET through a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": proxy}))
    with opener.open(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        return bytes(answer.read())


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


def test_an_operation_that_crosses_two_enforcers_is_one_trace_though_its_worker_is_killed(
    tmp_path: Path, service: Service
) -> None:
    with Wardline(tmp_path / "home", config=f'[egress]\nallow_addresses = ["{ADDRESS}/32"]\n') as home:
        home.write_policies(POLICY)
        (home.home.policies / "entities.json").write_text(ENTITIES)
        home.start_all(enforcers=2, doors=1)
        proxies = proxies_of(home, "planner", "researcher")
        service.proxy = proxies[1]
        asking = threading.Thread(target=got, args=(proxies[0], f"{service.url}/ask", {}), daemon=True)
        asking.start()
        assert service.asked.wait(30), "the service was asked"
        wait_until(lambda: home.sql("SELECT count() FROM calls") == [(2,)], 30, "both calls are stored")
        home.kill("work-1")
        home.start("work-1")
        service.go_on.set()
        asking.join(30)

        def trace() -> Any:
            rows = home.sql("SELECT grade, calls, agents, enforcers, root, why, trace_id FROM traces")
            return rows if rows and rows[0][0] != "provisional" else None

        ((grade, calls, agents, enforcers, root, why, trace_id),) = wait_until(
            trace, 60, lambda: f"the trace is quiet: {home.sql('SELECT * FROM traces')}"
        )
        assert (grade, calls, root, why) == ("complete", 2, 'Agent::"planner"', "")
        assert (agents, enforcers) == (["planner", "researcher"], ["enforce-1", "enforce-2"])
        ids = dict(home.sql("SELECT agent, call_id FROM calls"))
        whole = ['Agent::"planner"', 'Agent::"researcher"']
        edges = home.sql("SELECT call_id, parent, assurance, chain, grade FROM edges")
        assert edges == [(ids["researcher"], ids["planner"], "observed", whole, "complete")], "nobody caused the planner's"
        (said,) = json.loads(home.run("chain", ids["researcher"], "--json").stdout)["traces"]
        assert (said["trace_id"], said["grade"], said["stored"]["grade"]) == (trace_id, "complete", "complete")
        drawn = [(one["call_id"], one["parent"], one["effective_chain"], one["outcome"]) for one in said["calls_drawn"]]
        assert drawn == [(ids["planner"], "", whole[:1], "ok"), (ids["researcher"], ids["planner"], whole, "ok")]
        text = home.run("chain", trace_id).stdout
        assert f"`- (observed) researcher  http:GET {service.url[7:]}/data: allow, ok 200" in text
        assert 'for Agent::"planner" -> Agent::"researcher"' in text


def proxies_of(home: Wardline, *agents: str) -> list[str]:
    """A proxy URL for each agent: the first one's door is the first host's, and so on."""
    made = [home.run("agent", "add", name, "--owner", "test").stdout.splitlines() for name in agents]
    epoch = int(made[-1][0].partition(" as epoch ")[2].partition(";")[0])
    doors: dict[str, dict[str, Any]] = {}

    def ready() -> bool:
        for path in home.home.run.glob("door-*.json"):
            said = read_run_file(path)
            if said is not None and said["alive"] and said.get("state") == "ready" and said.get("epoch", 0) >= epoch:
                doors[said["host"]] = said
        return len(doors) == len(agents)

    wait_until(ready, 30, lambda: f"each door knows the agents: {doors}")
    pairs = zip(agents, made, sorted(doors), strict=True)
    return [f"http://{name}:{out[-1]}@{doors[host]['address']}" for name, out, host in pairs]
