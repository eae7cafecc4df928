"""`umbel serve`: the API, the blobs, MQTT and the runs in one process."""

import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path

import uvicorn

from umbel import logs
from umbel.errors import UmbelError
from umbel_server.api import make_app
from umbel_server.api.bounded_http import Patience, bounded
from umbel_server.security import pki
from umbel_server.server import Server
from umbel_server.state_folder import State, listener

log = logging.getLogger("umbel.server")

PATIENCE = Patience()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises UmbelError with what to do when the address cannot be used."""
    try:
        return listener(host, port, backlog=512)
    except OSError as error:
        raise UmbelError(
            f"port {port} on {host} cannot be listened on ({os.strerror(error.errno or 0)}); "
            "stop what uses it, or set [http] port in umbel.toml"
        ) from error


def allow_many_files() -> None:
    """Raise this process's limit of open files and connections as far as the system lets it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def http_config(server: Server, patience: Patience = PATIENCE) -> uvicorn.Config:
    """How the API of a server is served: with TLS where its state says so, and to nobody who keeps it waiting."""
    config = uvicorn.Config(
        make_app(server),
        http=bounded(patience),
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    config.load()
    if server.state.config.http.tls:
        config.ssl = pki.server_context(server.state.folder)
    return config


def serve(state: State) -> None:
    """Run until SIGTERM or SIGINT."""
    end_on_sigterm()
    allow_many_files()
    state.keep_certificate()
    listener = listen(state.config.http.host, state.config.http.port)
    try:
        server = Server(state)
        try:
            server.start()
            config = http_config(server)
            log.info("serving on %s", state.server_url)
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            server.stop()
    finally:
        listener.close()


def end_on_sigterm() -> None:
    """Make SIGTERM end this process with exit code 0, after its `finally` blocks; call it from the main thread."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def set_up_logging(file: Path | None, verbose: bool) -> None:
    """Log lines with time and level to `file`, or to standard error; libraries log no more than what an operator needs."""
    logs.set_up_logging(file, verbose)
    for name in ("httpx", "alembic", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    flower = logging.getLogger("flwr")
    flower.handlers = []
    flower.propagate = True
    flower.setLevel(logging.INFO if verbose else logging.ERROR)  # the rounds are logged by us
