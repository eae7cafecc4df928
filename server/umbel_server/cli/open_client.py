"""The connection of a command to its server."""

import os
from pathlib import Path

from umbel.errors import UmbelError
from umbel.tls import client_context
from umbel_server.client import Client
from umbel_server.state_folder import open_state


def open_client(folder: Path) -> Client:
    """Open a client of the server that UMBEL_URL and UMBEL_TOKEN name; without these, of the state folder's server.

    UMBEL_CA is the path of that server's `ca.pem`; not needed when a public authority issued its certificate.
    Raises UmbelError when a variable or the state folder cannot be used.
    """
    url, token = os.environ.get("UMBEL_URL"), os.environ.get("UMBEL_TOKEN")
    if bool(url) != bool(token):
        given, other = ("UMBEL_URL", "UMBEL_TOKEN") if url else ("UMBEL_TOKEN", "UMBEL_URL")
        raise UmbelError(f"{given} is set and {other} is not: set both for another server, or neither for this one")
    if url and token:
        if not (token.isascii() and token.isprintable()):
            raise UmbelError(
                "UMBEL_TOKEN should be the token as 'umbel admin add' printed it; it holds other characters"
            )
        file = os.environ.get("UMBEL_CA")
        return Client(url, token, client_context(_read(Path(file))) if file else None)
    state = open_state(folder)
    tls = state.context() if state.config.http.tls else None
    return Client(state.server_url, state.admin_token, tls, state.public_url)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UmbelError(
            f"{path}: UMBEL_CA should name the server's ca.pem; this file cannot be read: {error}"
        ) from error
