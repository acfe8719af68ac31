"""Requests for an egress door, read as its door reads them.

    read_request(data)      what the door's parser makes of the bytes: (request, where, the bytes behind the head)
"""


from enforcers.core.http.head import Request, find_head, parse_request
from enforcers.core.http.target import Where, read_target

LIMIT = 65_536


def read_request(data: bytes) -> tuple[Request, Where, bytes] | None:
    """What the parser makes of the bytes; None when it asks for more. Raises BadRequest."""
    size = find_head(data, LIMIT)
    if not size:
        return None
    request = parse_request(data[:size])
    return request, read_target(request), data[size:]
