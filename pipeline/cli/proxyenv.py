"""The environment of a governed program: every variable by which a usual tool finds its proxy names the door, none another.

    curl, wget, git, pip, uv, Go, Rust, Ruby, Python     http_proxy and its kin, in both cases (curl reads no HTTP_PROXY)
    git                                                  also `http.proxy` (GIT_CONFIG_*), which wins over a configuration file
    npm, pnpm, yarn, pip, cargo, gRPC, rsync             their own, which win over their configuration files
    node                                                 NODE_USE_ENV_PROXY (node 22.21 and 24), and global-agent's
    Java                                                 system properties, without a credential: it prints them

What says which hosts go without a proxy is taken away. A program that reads none of these goes direct: only containment, or the
packet filter of the host, keeps it from that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from schemas.errors import OperatorFault
from schemas.limits import NAME_BYTES_MAX
from schemas.vocabulary import host_port, shown

CREDENTIAL: Final = "WARDLINE_CREDENTIAL"
"""The variable that may hold an agent's credential for `wardline run`; the program that is run does not get it."""

BOTH_CASES: Final = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "ws_proxy", "wss_proxy", "grpc_proxy")
OWN: Final = (
    "npm_config_proxy", "npm_config_https_proxy", "YARN_HTTP_PROXY", "YARN_HTTPS_PROXY", "PIP_PROXY", "CARGO_HTTP_PROXY",
    "GLOBAL_AGENT_HTTP_PROXY", "GLOBAL_AGENT_HTTPS_PROXY",
)  # fmt: skip
"""Variables of one tool each; the value is the proxy's URL."""

GONE: Final = frozenset({
    "no_proxy", "no_grpc_proxy", "socks_proxy", "socks5_proxy", "auto_proxy", "global_agent_no_proxy", "npm_config_noproxy",
    "npm_config_no_proxy", "yarn_no_proxy", "git_proxy_command",
})  # fmt: skip
"""Taken away in whatever case they are written: what they say is another way out."""

OURS: Final = frozenset({CREDENTIAL, "WARDLINE_PARENT"})
"""Ours alone: a credential, and which process of ours must not outlive which."""

REACHES_OUT: Final = frozenset({
    "SSH_AUTH_SOCK", "SSH_AGENT_PID", "GPG_AGENT_INFO", "DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS", "DISPLAY",
    "WAYLAND_DISPLAY", "WAYLAND_SOCKET", "XAUTHORITY", "XDG_RUNTIME_DIR", "SESSION_MANAGER", "ICEAUTHORITY", "PULSE_SERVER",
    "DOCKER_HOST", "CONTAINER_HOST", "CONTAINERD_ADDRESS", "BUILDKIT_HOST", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID",
    "LISTEN_FDNAMES", "JOURNAL_STREAM", "TMUX", "TMUX_PANE", "STY", "VSCODE_IPC_HOOK", "VSCODE_IPC_HOOK_CLI",
    "VSCODE_GIT_IPC_HANDLE", "WARDLINE_HOME",
})  # fmt: skip
"""What names a socket or a folder that is not there inside a containment; a program looks for it in vain otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """Where the proxy listens, and the user that it is to be given; none where a relay adds the credential."""

    host: str
    port: int
    user: str = ""
    secret: str = ""

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return host_port(self.host, self.port)

    @property
    def authority(self) -> str:
        """`[USER:SECRET@]HOST:PORT`. A `+` stays as it is: every tool knows it, and not every one decodes it."""
        who = f"{quote(self.user, safe='+')}:{quote(self.secret, safe='')}@" if self.user else ""
        return who + self.address

    @property
    def url(self) -> str:
        """What the variables say."""
        return f"http://{self.authority}"


def user_of(agent: str, session: str) -> str:
    """The proxy's user for an agent's session: `AGENT` or `AGENT+SESSION`. Raises OperatorFault for what that cannot carry."""
    for what, text in (("--as", agent), ("--session", session)):
        if ":" in text:
            raise OperatorFault(f"{what}: `{shown(text)}` has a `:`, which no user of a proxy may have")
        if not text.isprintable():
            raise OperatorFault(f"{what}: `{shown(text)}` has a control character")
        if (size := len(text.encode(errors="surrogatepass"))) > NAME_BYTES_MAX:
            raise OperatorFault(f"{what}: `{shown(text)}` has {size} bytes, limit is {NAME_BYTES_MAX}")
    if not agent:
        raise OperatorFault("--as: the agent has no name")
    if "+" in session:
        raise OperatorFault(f"--session: `{shown(session)}` has a `+`, which separates it from the agent")
    return f"{agent}+{session}" if session else agent


def governed(environ: Mapping[str, str], proxy: Proxy, *, contained: bool = False) -> dict[str, str]:
    """The environment for a program that is to use this proxy; inside a containment also without what reaches out of it."""
    env = {
        name: value for name, value in environ.items()
        if name not in OURS and name.lower() not in GONE and not (contained and name in REACHES_OUT)
    }  # fmt: skip
    for name in BOTH_CASES:
        env[name] = env[name.upper()] = proxy.url
    for name in OWN:
        env[name] = proxy.url
    env["RSYNC_PROXY"] = f"{proxy.user}:{proxy.secret}@{proxy.address}" if proxy.user else proxy.address
    env["npm_config_noproxy"] = env["GLOBAL_AGENT_NO_PROXY"] = ""  # empty, not absent: a configuration file may name hosts
    env["GLOBAL_AGENT_ENVIRONMENT_VARIABLE_NAMESPACE"] = "GLOBAL_AGENT_"
    env["NODE_USE_ENV_PROXY"] = env["ELECTRON_GET_USE_PROXY"] = "1"
    _git(env, proxy)
    properties = [f"-D{scheme}.{key}={value}" for scheme in ("http", "https")
                  for key, value in (("proxyHost", proxy.host), ("proxyPort", proxy.port))]  # fmt: skip
    # without a credential it is refused where one is needed; with one, Java would print it at each start
    env["JAVA_TOOL_OPTIONS"] = " ".join([*env.get("JAVA_TOOL_OPTIONS", "").split(), *properties, "-Dhttp.nonProxyHosts="])
    return env


def _git(env: dict[str, str], proxy: Proxy) -> None:
    """One more of the settings that git takes from its environment, behind those that are there already."""
    count = env.get("GIT_CONFIG_COUNT", "")
    at = int(count) if count.isascii() and count.isdigit() else 0
    env[f"GIT_CONFIG_KEY_{at}"] = "http.proxy"
    env[f"GIT_CONFIG_VALUE_{at}"] = proxy.url
    env["GIT_CONFIG_COUNT"] = str(at + 1)
