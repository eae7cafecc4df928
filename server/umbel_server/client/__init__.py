"""The API as Python: `Client(url, token).runs.show("latest")`. Light: it needs no database, web framework or key."""

import hashlib
import ssl
from pathlib import Path
from typing import Any

from msgspec.json import Decoder

from umbel.errors import UmbelError
from umbel_server import answers
from umbel_server.client.connection import TIMEOUT, Connection, NoAnswer, at
from umbel_server.client.nouns import (
    FINAL,
    Admins,
    Audit,
    Commands,
    Devices,
    Invitations,
    Keys,
    Quotas,
    Releases,
    Runs,
)

__all__ = ["FINAL", "Client", "NoAnswer", "at"]

_ANY: Decoder[Any] = Decoder()
_HEALTH, _ADDED_PLAN = Decoder(answers.Health), Decoder(answers.AddedPlan)


class Client:
    """A connection to one server's API, by noun; every error is an UmbelError with one sentence."""

    def __init__(self, url: str, token: str, tls: ssl.SSLContext | None = None, public_url: str = "") -> None:
        """At `url`; others reach the server at `public_url`, if that is another."""
        self.url = public_url or url
        self._connection = connection = Connection(url, token, tls)
        self.devices, self.invitations, self.commands = (
            Devices(connection),
            Invitations(connection),
            Commands(connection),
        )
        self.runs, self.releases, self.quotas = Runs(connection), Releases(connection), Quotas(connection)
        self.admins, self.audit, self.keys = Admins(connection), Audit(connection), Keys(connection)

    def health(self) -> answers.Health:
        """Whether the server answers, and whether it is connected to its broker."""
        return self._connection.ask(_HEALTH, "GET", "/v1/health")

    def put_blob(self, data: bytes, population: str = "") -> str:
        """Store `data` for a population; returns its address. With none it is only for an administrator of all to use."""
        address = hashlib.sha256(data).hexdigest()
        self._connection.call("PUT", f"/v1/blobs/{address}", content=data, params=_for(population))
        return address

    def get_blob(self, address: str) -> bytes:
        """The bytes at an address, checked."""
        data = self._connection.call("GET", f"/v1/blobs/{address}").content
        if hashlib.sha256(data).hexdigest() != address:
            raise UmbelError(f"blob {address[:12]} arrived with another digest; try again")
        return data

    def add_plan(self, path: Path, population: str = "") -> answers.AddedPlan:
        """Upload a plan for a population, which the server signs."""
        from umbel.plan import Plan  # it needs cryptography and NumPy

        if not path.is_file():
            raise UmbelError(f"{path}: no such plan; make one with 'umbel compile'")
        Plan.open(path)  # here, so that an error names this file
        body = path.read_bytes()
        return self._connection.ask(_ADDED_PLAN, "POST", "/v1/plans", content=body, params=_for(population))

    def get(self, path: str, timeout: float = TIMEOUT, **params: Any) -> Any:
        """The JSON at any path, without a type."""
        asked = {name: value for name, value in params.items() if value is not None}
        return self._connection.ask(_ANY, "GET", path, params=asked, timeout=timeout)

    def post(self, path: str, body: Any = None, timeout: float = TIMEOUT) -> Any:
        """The JSON answer of any path to `body` as JSON, without a type."""
        return self._connection.ask(_ANY, "POST", path, json={} if body is None else body, timeout=timeout)


def _for(population: str) -> dict[str, str]:
    return {"population": population} if population else {}
