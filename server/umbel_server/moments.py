"""Moments in a round at which a fault test may hold the server; without UMBEL_MOMENTS they cost one look-up."""

import os
import socket

SOCKET = "UMBEL_MOMENTS"
HOLD_SECONDS = 10.0


def reached(name: str) -> None:
    """Tell the Unix socket named by UMBEL_MOMENTS, if there is one, and wait at most HOLD_SECONDS for its answer."""
    path = os.environ.get(SOCKET)
    if not path:
        return
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(HOLD_SECONDS)
            listener.connect(path)
            listener.sendall(f"{name}\n".encode())
            listener.recv(16)
    except OSError:
        return  # nobody listens any more: the test is over, the server is not
