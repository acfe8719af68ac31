"""Bring the peers into `.cache/peers`: programs on PATH are taken as they are, Debian's packages are unpacked (no root needed),
Python's go into an environment of their own. Nothing is installed into the system, and what fails is left out by name.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks.wire.tools import CACHE

PEERS: Final = CACHE / "peers"
ROOT: Final = PEERS / "root"
VENV: Final = PEERS / "venv"
REQUIREMENTS: Final = Path(__file__).with_name("requirements.txt")
DEBIAN: Final = {"haproxy": "haproxy", "nginx": "nginx", "squid": "squid", "tinyproxy": "tinyproxy-bin"}
"""Program -> the package that has it."""

PYTHON: Final = {"envoy": "envoy", "mitmproxy": "mitmdump", "proxy.py": "proxy"}
"""Program -> its command in the environment."""

FETCH_S: Final = 300
AGAIN_S: Final = 24 * 3600
"""So long a failure is remembered, and not tried again at every run."""


def programs() -> tuple[dict[str, Path], dict[str, str]]:
    """The peers that can run here: name -> program; and those that cannot: name -> why."""
    PEERS.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for name, package in DEBIAN.items():
        path = _on_path(name) or _unpacked(name)
        if path is None and not (why := _failed(name)):
            why = _fetch_debian(name, package)
            path = _unpacked(name)
        if path is None:
            missing[name] = why or "its package has no such program"
        else:
            found[name] = path
    why = _failed("venv") or _make_venv()
    for name, command in PYTHON.items():
        path = VENV / "bin" / command
        if path.exists():
            found[name] = path
        else:
            missing[name] = why or "its package has no such program"
    return found, missing


def libraries() -> dict[str, str]:
    """What a program needs in its environment to find the libraries that were unpacked with it."""
    folders = sorted({str(path.parent) for path in ROOT.glob("**/*.so.*")})
    return {"LD_LIBRARY_PATH": ":".join(folders)} if folders else {}


def _on_path(name: str) -> Path | None:
    found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def _unpacked(name: str) -> Path | None:
    return next((path for folder in ("usr/sbin", "usr/bin") if (path := ROOT / folder / name).exists()), None)


def _fetch_debian(name: str, package: str) -> str:
    """Download and unpack a package and what it needs that is not installed; returns why that failed, or nothing."""
    if not all(shutil.which(tool) for tool in ("apt-get", "dpkg")):
        return _remember(name, "no apt-get and dpkg here")
    folder = PEERS / "packages"
    folder.mkdir(exist_ok=True)
    done = _run("apt-get", "install", "--simulate", "--no-install-recommends", package)
    if done.returncode and os.geteuid() == 0:
        _run("apt-get", "update")
        done = _run("apt-get", "install", "--simulate", "--no-install-recommends", package)
    if done.returncode:
        return _remember(name, f"apt-get knows no package `{package}`")
    # "Inst NAME (new ..." is not installed yet; "Inst NAME [old] ..." would only be a newer one
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("Inst ")]
    wanted = sorted({words[1] for words in lines if words[2].startswith("(")} | {package})
    done = _run("apt-get", "download", *wanted, cwd=folder)
    if done.returncode and os.geteuid() == 0:
        _run("apt-get", "update")
        done = _run("apt-get", "download", *wanted, cwd=folder)
    if done.returncode:
        return _remember(name, f"apt-get cannot download {', '.join(wanted)}")
    for one in wanted:
        for path in folder.glob(f"{one}_*.deb"):
            if (done := _run("dpkg", "-x", str(path), str(ROOT))).returncode:
                return _remember(name, f"dpkg cannot unpack `{path.name}`")
    return ""


def _make_venv() -> str:
    wanted = REQUIREMENTS.read_text()
    stamp = VENV / "requirements.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return ""
    for words in (
        (sys.executable, "-m", "venv", "--clear", str(VENV)),
        (str(VENV / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "-r", str(REQUIREMENTS)),
    ):  # fmt: skip
        if (done := _run(*words)).returncode:
            return _remember("venv", (done.stderr.strip().splitlines() or ["pip fails"])[-1][:200])
    stamp.write_text(wanted)
    return ""


def _run(*words: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=FETCH_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as fault:
        return subprocess.CompletedProcess(words, 1, "", str(fault))


def _remember(name: str, why: str) -> str:
    (PEERS / f"{name}.failed").write_text(why)
    return why


def _failed(name: str) -> str:
    path = PEERS / f"{name}.failed"
    try:
        return path.read_text() if time.time() - path.stat().st_mtime < AGAIN_S else ""
    except OSError:
        return ""


if __name__ == "__main__":
    have, lacks = programs()
    for peer, program in sorted(have.items()):
        print(f"{peer}: {program}")
    for peer, reason in sorted(lacks.items()):
        print(f"{peer}: skipped, {reason}")
