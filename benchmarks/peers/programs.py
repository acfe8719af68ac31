"""How each peer is run: the list of allowed hosts as its policy, one line for each request as its record, one worker.

haproxy and nginx have one fixed origin behind a list of hosts and resolve nothing: bounds, not proxies for an agent. All the
others take any host of the list. Each writes its log where it is told to, so that the log may be on a full disk or in a pipe.
"""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.peers.setup import ROOT, libraries
from benchmarks.wire.tools import MEASURED, end, family, free_port, on

HERE: Final = Path(__file__).resolve().parent
HOSTS: Final = 100
"""Names on the list beside the origin's own: a policy of some size."""

START_S: Final = 30.0
CONNECTS: Final = ("envoy", "mitmproxy", "proxy.py", "squid", "tinyproxy")
"""Those that open tunnels."""


@dataclass(slots=True)
class Peer:
    """One that runs."""

    name: str
    port: int
    log: Path
    process: "subprocess.Popen[bytes]"

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        return family(self.process.pid)


@contextlib.contextmanager
def running(name: str, program: Path, folder: Path, origin: int, log: Path | None = None) -> Iterator[Peer]:
    """Run a peer that lets calls go to `localhost:ORIGIN`, until the block ends; `log` is where its record goes.

    Raises OSError or AssertionError with what it printed when it does not listen.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, log = free_port(), log or folder / "access.log"
    for path in {folder, log.parent}:
        _open_to_all(path)
    words, extra = COMMANDS[name](program, folder, port, origin, log)
    environment = os.environ | libraries() | extra
    # haproxy writes its record to stdout; nobody else says much there
    out = os.open(log if name == "haproxy" else folder / "out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    with (folder / "err").open("ab") as err:
        process = subprocess.Popen([*on(MEASURED), *words], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment,
                                   cwd=folder, start_new_session=True)  # fmt: skip
    os.close(out)
    try:
        _wait(name, port, process, folder)
        yield Peer(name, port, log, process)
    finally:
        end(process, 3)


def _open_to_all(folder: Path) -> None:
    """squid gives up root before it opens its files, so that their folder and the way to it must be anybody's."""
    folder.chmod(0o777)
    top = Path(tempfile.gettempdir())
    for above in folder.parents:
        if above == top or not above.is_relative_to(top):
            return
        above.chmod(0o755)


def _wait(name: str, port: int, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Until it answers: a listening socket is not enough, as some listen before they can serve."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if _listens(port):
            return
        time.sleep(0.05)
    said = "".join((folder / which).read_text(errors="replace")[-600:] for which in ("out", "err") if (folder / which).exists())
    raise AssertionError(f"{name} does not start: {said}")


def _listens(port: int) -> bool:
    wanted = f":{port:04X} "
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines():
                words = line.split()
                if words[3] == "0A" and f"{words[1]} ".endswith(wanted):
                    return True
    return False


def _hosts(origin: int) -> list[str]:
    return [f"service-{number}.example.com" for number in range(HOSTS)] + ["localhost"]


def _haproxy(program: Path, folder: Path, port: int, origin: int, log: Path) -> tuple[list[str], dict[str, str]]:
    (folder / "hosts").write_text("\n".join(f"{host}:{origin}" for host in _hosts(origin)) + "\n")
    (folder / "haproxy.cfg").write_text(f"""
global
    log stdout format raw local0
    nbthread 1
    maxconn 4096
defaults
    mode http
    log global
    option httplog
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    http-reuse always
frontend proxy
    bind 127.0.0.1:{port}
    acl known hdr(host) -f {folder}/hosts
    http-request deny deny_status 403 if !known
    default_backend origin
backend origin
    server origin 127.0.0.1:{origin}
""")
    return [str(program), "-db", "-f", str(folder / "haproxy.cfg")], {}


def _nginx(program: Path, folder: Path, port: int, origin: int, log: Path) -> tuple[list[str], dict[str, str]]:
    known = "".join(f"  {host} 1;\n" for host in _hosts(origin))
    (folder / "nginx.conf").write_text(f"""
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
{"user root;" if os.geteuid() == 0 else ""}
events {{ worker_connections 4096; }}
http {{
  map $host $known {{
  default 0;
{known}  }}
  log_format line '$remote_addr [$time_iso8601] "$request" $status $body_bytes_sent $upstream_addr $request_time';
  access_log {log} line;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 100000000;
  upstream origin {{ server 127.0.0.1:{origin}; keepalive 64; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port};
    if ($known = 0) {{ return 403; }}
    location / {{ proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
""")
    return [str(program), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")], {}


def _squid(program: Path, folder: Path, port: int, origin: int, log: Path) -> tuple[list[str], dict[str, str]]:
    share = ROOT if ROOT in program.parents else Path("/")
    (folder / "hosts").write_text("\n".join(_hosts(origin)) + "\n")
    unpacked = f"""
mime_table {share}/usr/share/squid/mime.conf
error_directory {share}/usr/share/squid/errors/templates
icon_directory {share}/usr/share/squid/icons
unlinkd_program {share}/usr/lib/squid/unlinkd
""" if share == ROOT else ""  # fmt: skip
    (folder / "squid.conf").write_text(f"""
http_port 127.0.0.1:{port}
acl known dstdomain "{folder}/hosts"
http_access allow known
http_access deny all
cache deny all
cache_mem 8 MB
access_log stdio:{log} squid
cache_log {folder}/cache.log
pid_filename {folder}/squid.pid
coredump_dir {folder}
logfile_rotate 0
pinger_enable off
dns_v4_first on
shutdown_lifetime 0 seconds
via off
visible_hostname bench
buffered_logs off
{unpacked}{"cache_effective_user nobody" if os.geteuid() == 0 else ""}
""")
    return [str(program), "-N", "-f", str(folder / "squid.conf")], {}


def _tinyproxy(program: Path, folder: Path, port: int, origin: int, log: Path) -> tuple[list[str], dict[str, str]]:
    (folder / "hosts").write_text("".join(f"^{host}$\n" for host in _hosts(origin)))
    (folder / "tinyproxy.conf").write_text(f"""
Port {port}
Listen 127.0.0.1
Timeout 60
LogFile "{log}"
LogLevel Connect
MaxClients 1000
Filter "{folder}/hosts"
FilterExtended On
FilterDefaultDeny Yes
DisableViaHeader Yes
PidFile "{folder}/tinyproxy.pid"
""")
    return [str(program), "-d", "-c", str(folder / "tinyproxy.conf")], {}


def _mitmproxy(program: Path, folder: Path, port: int, origin: int, log: Path) -> tuple[list[str], dict[str, str]]:
    words = [
        str(program), "-q", "--listen-host", "127.0.0.1", "--listen-port", str(port), "--set", f"confdir={folder}/conf",
        "--set", "connection_strategy=lazy", "-s", str(HERE / "mitm_policy.py"),
    ]  # fmt: skip
    return words, _list(origin, log)


def _proxy_py(program: Path, folder: Path, port: int, origin: int, log: Path) -> tuple[list[str], dict[str, str]]:
    words = [
        str(program), "--hostname", "127.0.0.1", "--port", str(port), "--num-workers", "1", "--num-acceptors", "1",
        "--log-level", "ERROR", "--plugins", "proxy_policy.Policy", "--data-dir", str(folder / "data"),
    ]  # fmt: skip
    return words, _list(origin, log) | {"PYTHONPATH": str(HERE)}


def _list(origin: int, log: Path) -> dict[str, str]:
    return {"PEER_LOG": str(log), "PEER_HOSTS": ",".join(f"{host}:{origin}" for host in _hosts(origin))}


def _envoy(program: Path, folder: Path, port: int, origin: int, log: Path) -> tuple[list[str], dict[str, str]]:
    api = "type.googleapis.com/envoy.extensions"
    names: dict[str, Any] = {"name": "names", "dns_lookup_family": "V4_ONLY"}
    known = [{"header": {"name": ":authority", "string_match": {"exact": f"{host}:{origin}"}}} for host in _hosts(origin)]
    manager = {
        "@type": f"{api}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "proxy",
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "access_log": [{"name": "file", "typed_config": {
            "@type": f"{api}.access_loggers.file.v3.FileAccessLog", "path": str(log),
            "log_format": {"json_format": {
                "time": "%START_TIME%", "method": "%REQ(:METHOD)%", "host": "%REQ(:AUTHORITY)%", "path": "%REQ(:PATH)%",
                "status": "%RESPONSE_CODE%", "in": "%BYTES_RECEIVED%", "out": "%BYTES_SENT%", "took": "%DURATION%",
            }},
        }}],
        "route_config": {"name": "routes", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"connect_matcher": {}},
             "route": {"cluster": "forward", "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]}},
            {"match": {"prefix": "/"}, "route": {"cluster": "forward", "timeout": "60s"}},
        ]}]},
        "http_filters": [
            {"name": "rbac", "typed_config": {
                "@type": f"{api}.filters.http.rbac.v3.RBAC",
                "rules": {"action": "ALLOW", "policies": {"known": {
                    "permissions": [{"or_rules": {"rules": known}}], "principals": [{"any": True}]}}},
            }},
            {"name": "forward", "typed_config": {
                "@type": f"{api}.filters.http.dynamic_forward_proxy.v3.FilterConfig", "dns_cache_config": names}},
            {"name": "router", "typed_config": {"@type": f"{api}.filters.http.router.v3.Router"}},
        ],
    }  # fmt: skip
    tree = {
        "static_resources": {
            "listeners": [{
                "name": "proxy", "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
            }],
            "clusters": [{
                "name": "forward", "lb_policy": "CLUSTER_PROVIDED",
                "circuit_breakers": {"thresholds": [{"max_connections": 20000, "max_pending_requests": 20000,
                                                      "max_requests": 20000}]},
                "cluster_type": {"name": "forward", "typed_config": {
                    "@type": f"{api}.clusters.dynamic_forward_proxy.v3.ClusterConfig", "dns_cache_config": names}},
            }],
        },
    }  # fmt: skip
    (folder / "envoy.json").write_text(json.dumps(tree))
    words = [str(program), "-c", str(folder / "envoy.json"), "--concurrency", "1", "--log-level", "error",
             "--use-dynamic-base-id", "--disable-hot-restart"]  # fmt: skip
    return words, {}


COMMANDS: Final = {
    "haproxy": _haproxy, "nginx": _nginx, "envoy": _envoy, "squid": _squid, "tinyproxy": _tinyproxy, "proxy.py": _proxy_py,
    "mitmproxy": _mitmproxy,
}  # fmt: skip
