"""Named moments of a round at which a fault test can hold the server; costs nothing otherwise."""

import os
import socket

VARIABLE = "UMBEL_MOMENTS"
LONGEST_HOLD = 10.0


def watched() -> bool:
    """Whether a fault test wants to hear of moments."""
    return VARIABLE in os.environ


def reached(name: str) -> None:
    """Say that the moment `name` is here on the Unix socket that $UMBEL_MOMENTS names, and go on at its answer.

    Without the variable this does nothing. Nobody listening, or no answer within 10 s, holds nobody up.
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
