"""A time without network: whatever of this process looks up a host or connects to one is stopped and written down."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class NetworkTried(BaseException):
    """No Exception, for the scoring code of lmms-eval catches those, tries again, and takes what failed for wrong."""


@contextmanager
def no_network(tried: list[str]) -> Iterator[None]:
    """Raise NetworkTried at every attempt, and add the host to `tried`, for what catches even that."""
    find, connect = socket.getaddrinfo, socket.socket.connect

    def refuse(host: Any, *_: Any, **__: Any) -> Any:
        tried.append(str(host))
        raise NetworkTried(host)

    def connect_within(own: Any, address: Any) -> None:
        if own.family != socket.AF_UNIX:
            refuse(address[0])
        connect(own, address)

    socket.getaddrinfo, socket.socket.connect = refuse, connect_within  # type: ignore[method-assign]
    try:
        yield
    finally:
        socket.getaddrinfo, socket.socket.connect = find, connect  # type: ignore[method-assign]
