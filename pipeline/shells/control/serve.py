"""Where the API listens: a unix socket in the home, 0600, and TCP with TLS when `[control] listen` is set."""

import ssl
from pathlib import Path

from aiohttp import web

from schemas.config import Control
from schemas.errors import OperatorFault
from schemas.keys import loose_mode
from schemas.process import unix_socket

BACKLOG = 128


def tls(own: Control) -> ssl.SSLContext:
    """The server's side of TLS: our certificate, and a client certificate from the given authority or nothing."""
    for name in ("tls_certificate_file", "tls_key_file", "tls_client_ca_file"):
        if not getattr(own, name):
            raise OperatorFault(f"control.{name}: is not set, but control.listen is `{own.listen}`")
    if wrong := loose_mode(Path(own.tls_key_file)):
        raise OperatorFault(wrong)
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(own.tls_certificate_file, own.tls_key_file)
        context.load_verify_locations(own.tls_client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as fault:
        raise OperatorFault(f"control.tls_*_file: cannot be loaded: {str(fault).splitlines()[0]}") from fault
    return context


async def listen(app: web.Application, own: Control, path: Path) -> tuple[web.AppRunner, str]:
    """Serve on both; returns the runner and the address to show: HOST:PORT, or the path of the socket.

    Raises OperatorFault naming the setting that is wrong.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.SockSite(runner, unix_socket(path, BACKLOG), backlog=BACKLOG).start()
    if not own.listen:
        return runner, str(path)
    host, _, port = own.listen.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise OperatorFault(f"control.listen: `{own.listen}` is not HOST:PORT")
    site = web.TCPSite(runner, host.removeprefix("[").removesuffix("]"), int(port), ssl_context=tls(own), backlog=BACKLOG)
    try:
        await site.start()
    except OSError as fault:
        raise OperatorFault(f"control.listen: `{own.listen}`: {(fault.strerror or str(fault)).lower()}") from fault
    served = next(address for address in runner.addresses if isinstance(address, tuple))
    return runner, f"{host}:{served[1]}"
