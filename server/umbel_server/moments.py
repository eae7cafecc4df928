"""Named moments of a round at which a fault test can pause the server. Without a test they cost nothing."""

import os
import socket

VARIABLE = "UMBEL_MOMENTS"
LONGEST_HOLD = 10.0


def watched() -> bool:
    """Whether a fault test listens for moments."""
    return VARIABLE in os.environ


def reached(name: str) -> None:
    """Report the moment `name` on the Unix socket that $UMBEL_MOMENTS names, and continue when an answer comes.

    Without the variable this does nothing. Without a listener, or an answer within LONGEST_HOLD seconds, it continues.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(LONGEST_HOLD)
            listener.connect(path)
            listener.sendall(f"{name}\n".encode())
            listener.recv(64)
    except OSError:
        return
