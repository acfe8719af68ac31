"""What a host tells an egress door comes out as it went in, and half of it is nothing."""

import pytest

from enforcers.doors.egress.orders import Orders, parse_orders
from schemas.config import Egress, Enforcer, Issuer

ORDERS = Orders(
    host="enforce-1",
    name="door-3",
    boot=f"{7:016x}",
    port=17480,
    own=("kafka.example:9092", "[::1]:8443"),
    egress=Egress(doors=3, allow_addresses=("10.0.0.0/8", "127.0.0.1/32:8080"), dns_servers=("192.0.2.1",)),
    enforcer=Enforcer(spool_bytes=1 << 24),
    issuers=(Issuer(url="https://idp.example", audience="https://egress.example", jwks_file="/etc/idp.json"),),
)


def test_orders_come_out_as_they_went_in() -> None:
    assert parse_orders(ORDERS.encode()) == ORDERS
    assert ORDERS.encode().count(b"\n") == 1


def test_orders_whose_writer_was_killed_are_refused() -> None:
    for end in (0, 1, len(ORDERS.encode()) // 2, len(ORDERS.encode()) - 1):
        with pytest.raises(ValueError, match="no end"):
            parse_orders(ORDERS.encode()[:end])
