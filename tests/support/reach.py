"""As a user, answer at sockets or speak to them: `python reach.py UID serve|reach tcp:HOST:PORT udp:HOST:PORT...`."""

import json
import os
import selectors
import socket
import sys

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
WAIT_S = 2.0


def open_at(where: str) -> tuple[socket.socket, tuple[str, int]]:
    kind, _, rest = where.partition(":")
    host, _, port = rest.rpartition(":")
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, KINDS[kind]), (host, int(port))


def serve(places: list[str], uid: int) -> None:
    if uid:
        os.setuid(uid)
    waiting = selectors.DefaultSelector()
    for where in places:
        one, address = open_at(where)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(address)
        if one.type == socket.SOCK_STREAM:
            one.listen()
        waiting.register(one, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in waiting.select():
            one = key.fileobj
            assert isinstance(one, socket.socket)
            if one.type == socket.SOCK_STREAM:
                other, _ = one.accept()
                with other:
                    other.sendall(b"answer")
                continue
            _, who = one.recvfrom(64)
            try:
                one.sendto(b"answer", who)
            except OSError:
                continue


def reach(where: str) -> str:
    one, address = open_at(where)
    with one:
        one.settimeout(WAIT_S)
        try:
            one.connect(address)
            if one.type == socket.SOCK_DGRAM:
                one.send(b"ask")
            return "answered" if one.recv(64) == b"answer" else "silent"
        except OSError as fault:
            return f"{type(fault).__name__}: {fault}"


def main() -> None:
    uid, what, places = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if what == "serve":
        serve(places, uid)
    if uid:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    print(json.dumps({where: reach(where) for where in places}))


if __name__ == "__main__":
    main()
