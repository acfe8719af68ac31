"""The TLS settings of a sink: who may have signed the other side's certificate, and what we show there."""

import ssl
from pathlib import Path

from schemas.config import Siem
from schemas.errors import OperatorFault
from schemas.keys import loose_mode


def context_of(table: Siem) -> ssl.SSLContext:
    """TLS 1.2 or later; the certificate must be good and name the host. Raises OperatorFault naming the key and the file."""
    try:
        context = ssl.create_default_context(cafile=table.ca_file or None)
    except (OSError, ssl.SSLError) as fault:
        raise OperatorFault(f"siem.ca_file: `{table.ca_file}` cannot be loaded: {_why(fault)}") from fault
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if table.client_certificate_file:
        if wrong := loose_mode(Path(table.client_key_file)):
            raise OperatorFault(wrong)
        try:
            context.load_cert_chain(table.client_certificate_file, table.client_key_file)
        except (OSError, ssl.SSLError) as fault:
            files = f"`{table.client_certificate_file}` and `{table.client_key_file}`"
            raise OperatorFault(f"siem.client_certificate_file: {files} cannot be loaded: {_why(fault)}") from fault
    return context


def _why(fault: OSError) -> str:
    return (fault.strerror or str(fault) or type(fault).__name__).lower()
