"""The API's nouns as objects whose methods are its routes; every method returns structs of umbel_server.answers."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec.json import Decoder

from umbel_server import answers
from umbel_server.client.connection import TIMEOUT, Connection, at

FINAL = ("done", "declined", "failed", "rejected", "cancelled", "expired")
"""The states in which a command stays."""
POLL_SECONDS = 0.1

# Made here, in one thread: msgspec 0.22 crashes when several threads decode nested structs for the first time at once.
_ADMIN, _ADMINS, _NEW_ADMIN = Decoder(answers.Admin), Decoder(list[answers.Admin]), Decoder(answers.NewAdmin)
_ENTRIES, _VERDICT = Decoder(list[answers.AuditEntry]), Decoder(answers.AuditVerdict)
_COMMAND, _COMMANDS = Decoder(answers.Command), Decoder(list[answers.Command])
_DEVICE, _DEVICES, _DEVICE_DETAILS = (
    Decoder(answers.Device),
    Decoder(list[answers.Device]),
    Decoder(answers.DeviceDetails),
)
_DELETED_DEVICE = Decoder(answers.DeletedDevice)
_INVITATION, _INVITATIONS = Decoder(answers.Invitation), Decoder(list[answers.Invitation])
_NEW_INVITATIONS = Decoder(list[answers.NewInvitation])
_KEYS = Decoder(list[answers.Key])
_QUOTA, _QUOTAS = Decoder(answers.Quota), Decoder(list[answers.Quota])
_RELEASE, _RELEASES, _RELEASE_DETAILS = (
    Decoder(answers.Release),
    Decoder(list[answers.Release]),
    Decoder(answers.ReleaseDetails),
)
_RUN, _RUNS, _RUN_DETAILS, _LIVE_RUN = (
    Decoder(answers.Run),
    Decoder(list[answers.Run]),
    Decoder(answers.RunDetails),
    Decoder(answers.LiveRun),
)


class Noun:
    """Routes of one noun, over a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection


class Devices(Noun):
    """Devices, of which each is named by its population and its id."""

    def list(self, population: str | None = None) -> "list[answers.Device]":
        """Every device, or those of one population."""
        return self._connection.ask(_DEVICES, "GET", "/v1/devices", params=_given(population=population))

    def show(self, population: str, device: str) -> answers.DeviceDetails:
        """One device with its latest commands."""
        return self._connection.ask(_DEVICE_DETAILS, "GET", at("/v1/devices/{}/{}", population, device))

    def readmit(self, population: str, device: str) -> answers.Device:
        """End a device's quarantine."""
        return self._decide(population, device, "readmit")

    def suspend(self, population: str, device: str, reason: str = "") -> answers.Device:
        """Give a device no work until it is resumed."""
        return self._decide(population, device, "suspend", reason=reason)

    def resume(self, population: str, device: str) -> answers.Device:
        """Give a suspended device work again."""
        return self._decide(population, device, "resume")

    def revoke(self, population: str, device: str, reason: str = "") -> answers.Device:
        """Refuse a device and its key for good."""
        return self._decide(population, device, "revoke", reason=reason)

    def rename(self, population: str, device: str, name: str) -> answers.Device:
        """Set the name that people see, or remove it with ""."""
        return self._decide(population, device, "rename", name=name)

    def label(
        self, population: str, device: str, labels: Mapping[str, str], remove: Sequence[str] = ()
    ) -> answers.Device:
        """Set labels that win over the device's own, and remove some that were set."""
        return self._decide(population, device, "label", labels=dict(labels), remove=[*remove])

    def delete(self, population: str, device: str) -> answers.DeletedDevice:
        """Remove a device that is revoked or was never online from the register."""
        path = at("/v1/devices/{}/{}/delete", population, device)
        return self._connection.ask(_DELETED_DEVICE, "POST", path, json={})

    def _decide(self, population: str, device: str, what: str, **body: Any) -> answers.Device:
        return self._connection.ask(_DEVICE, "POST", at("/v1/devices/{}/{}/{}", population, device, what), json=body)


class Invitations(Noun):
    """Invitations, each of which lets one device enrol."""

    def add(
        self, population: str, count: int = 1, ttl: float = 86_400.0, labels: Mapping[str, str] = {}, kind: str = ""
    ) -> "list[answers.NewInvitation]":
        """Make invitations, each good for `ttl` seconds; no other answer holds their tokens."""
        body = {"population": population, "count": count, "ttl": ttl, "labels": dict(labels), "kind": kind}
        return self._connection.ask(_NEW_INVITATIONS, "POST", "/v1/invitations", json=body)

    def list(self) -> "list[answers.Invitation]":
        """Every invitation, newest first."""
        return self._connection.ask(_INVITATIONS, "GET", "/v1/invitations")

    def revoke(self, id: str) -> answers.Invitation:
        """Take back an invitation that no device has used."""
        return self._connection.ask(_INVITATION, "POST", at("/v1/invitations/{}/revoke", id), json={})


class Commands(Noun):
    """Commands to devices."""

    def send(
        self, population: str, kind: str, devices: Iterable[str] = (), ttl: float = 600.0, **about: str
    ) -> "list[answers.Command]":
        """Send a command to `devices`, or to all of the population; `about` are the fields that its kind needs."""
        body = {"population": population, "kind": kind, "devices": [*devices], "ttl": ttl, **about}
        return self._connection.ask(_COMMANDS, "POST", "/v1/commands", json=body)

    def show(self, id: str) -> answers.Command:
        """One command."""
        return self._connection.ask(_COMMAND, "GET", at("/v1/commands/{}", id))

    def settle(self, commands: Iterable[answers.Command], seconds: float) -> "list[answers.Command]":
        """Wait until every command has its final state, at most `seconds`; returns them as they are then."""
        deadline = time.monotonic() + seconds
        current = {command.id: command for command in commands}
        while time.monotonic() < deadline:
            waiting = [command.id for command in current.values() if command.state not in FINAL]
            if not waiting:
                break
            current |= {id: self.show(id) for id in waiting}
            time.sleep(POLL_SECONDS)
        return [*current.values()]


class Runs(Noun):
    """Runs, of which each is named by its id, the beginning of it, or "latest"."""

    def start(self, population: str, plan: str, settings: Mapping[str, Any], **source: Any) -> answers.Run:
        """Start a run of the plan with this digest; `source` is `from_run` and `from_round`, the checkpoint to start from."""
        body = {"population": population, "plan": plan, "settings": dict(settings), **source}
        return self._connection.ask(_RUN, "POST", "/v1/runs", json=body)

    def clone(self, run: str, settings: Mapping[str, Any], **source: Any) -> answers.Run:
        """Start a run with the settings of another but these; `source` is as for `start`."""
        path = at("/v1/runs/{}/clone", run)
        return self._connection.ask(_RUN, "POST", path, json={"settings": dict(settings), **source})

    def list(self) -> "list[answers.Run]":
        """Every run, newest first."""
        return self._connection.ask(_RUNS, "GET", "/v1/runs")

    def show(self, run: str, round: int | None = None) -> answers.RunDetails:
        """A run with its checkpoints, and with attempts and assignments of one round (default: the newest)."""
        return self._connection.ask(_RUN_DETAILS, "GET", at("/v1/runs/{}", run), params=_given(round=round))

    def live(self, run: str, after: int | None = None) -> answers.LiveRun:
        """What goes on in a run now; its checkpoints are those after round `after`, or the newest ones."""
        return self._connection.ask(_LIVE_RUN, "GET", at("/v1/runs/{}/live", run), params=_given(after=after))

    def pause(self, run: str) -> answers.Run:
        """Pause a run until it is resumed."""
        return self._connection.ask(_RUN, "POST", at("/v1/runs/{}/pause", run), json={})

    def resume(self, run: str) -> answers.Run:
        """Go on with a paused run."""
        return self._connection.ask(_RUN, "POST", at("/v1/runs/{}/resume", run), json={})

    def stop(self, run: str) -> answers.Run:
        """Stop a run for good."""
        return self._connection.ask(_RUN, "POST", at("/v1/runs/{}/stop", run), json={})


class Releases(Noun):
    """Releases."""

    def export(self, run: str, timeout: float = TIMEOUT, **wanted: Any) -> answers.Release:
        """Export a release from a run; `wanted` are the fields of ReleaseRequest."""
        path = at("/v1/runs/{}/releases", run)
        return self._connection.ask(_RELEASE, "POST", path, json=wanted, timeout=timeout)

    def list(self) -> "list[answers.Release]":
        """Every release, newest first."""
        return self._connection.ask(_RELEASES, "GET", "/v1/releases")

    def show(self, id: str) -> answers.ReleaseDetails:
        """One release with its manifest."""
        return self._connection.ask(_RELEASE_DETAILS, "GET", at("/v1/releases/{}", id))


class Quotas(Noun):
    """Quotas of populations."""

    def list(self) -> "list[answers.Quota]":
        """What every population uses and may use, by name."""
        return self._connection.ask(_QUOTAS, "GET", "/v1/quotas")

    def show(self, population: str) -> answers.Quota:
        """What one population uses and may use."""
        return self._connection.ask(_QUOTA, "GET", at("/v1/quotas/{}", population))

    def set(self, population: str, limits: Mapping[str, int | None]) -> answers.Quota:
        """Change limits by name: `devices`, `storage`, `bytes_per_day`; None is no limit."""
        return self._connection.ask(_QUOTA, "POST", at("/v1/quotas/{}", population), json=dict(limits))


class Admins(Noun):
    """Administrators."""

    def add(self, name: str, role: str, populations: "list[str]", expires_in: float = 0.0) -> answers.NewAdmin:
        """Add an administrator, for `expires_in` seconds or (0) for ever; no other answer holds the token."""
        body = {"name": name, "role": role, "populations": populations, "expires_in": expires_in}
        return self._connection.ask(_NEW_ADMIN, "POST", "/v1/admins", json=body)

    def list(self) -> "list[answers.Admin]":
        """Every administrator by name, the revoked and expired ones included."""
        return self._connection.ask(_ADMINS, "GET", "/v1/admins")

    def revoke(self, name: str) -> answers.Admin:
        """End an administrator's token at once."""
        return self._connection.ask(_ADMIN, "POST", at("/v1/admins/{}/revoke", name), json={})


class Audit(Noun):
    """The audit log."""

    def list(self, within: float | None = None, who: str | None = None, limit: int = 100) -> "list[answers.AuditEntry]":
        """The newest entries, newest first: of the last `within` seconds, by `who`."""
        params = _given(within=within, who=who, limit=limit)
        return self._connection.ask(_ENTRIES, "GET", "/v1/audit", params=params)

    def verify(self, timeout: float = TIMEOUT) -> answers.AuditVerdict:
        """Check that no entry was changed or removed."""
        return self._connection.ask(_VERDICT, "GET", "/v1/audit/verify", timeout=timeout)


class Keys(Noun):
    """The server's signing keys."""

    def rotate(self, overlap: float) -> "list[answers.Key]":
        """Make a key that signs in `overlap` seconds, or at once with 0; returns all keys."""
        return self._connection.ask(_KEYS, "POST", "/v1/keys/rotate", json={"overlap": overlap})

    def list(self) -> "list[answers.Key]":
        """Every key, oldest first."""
        return self._connection.ask(_KEYS, "GET", "/v1/keys")


def _given(**params: Any) -> Mapping[str, Any]:
    return {name: value for name, value in params.items() if value is not None}
