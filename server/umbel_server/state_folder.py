"""The server's state folder: configuration, keys, database and blobs."""

import secrets
import socket
import ssl
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec
import tomli_w
from joserfc.jwk import ECKey

from umbel import signing
from umbel.atomic import write_atomically
from umbel.enrolment import SECRET_BYTES, Trust, make_secret, make_token
from umbel.errors import UmbelError
from umbel.tls import client_context
from umbel.topics import check_name
from umbel_server.limits.rates import Limits
from umbel_server.security import pki
from umbel_server.security.keyring import KEY, Keyring

CONFIG, ADMIN_TOKEN, ENROLMENT_SECRET = "umbel.toml", "admin-token", "enrolment-secret"
AGREEMENT_KEY = "agreement-key.pem"
SCHEMA = 2
"""The version of `umbel.toml`; version 1 had no TLS."""

ANY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Addresses that mean "all interfaces", and how to reach a listener on them from this machine."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names of this machine that mean another machine elsewhere."""

MOST_PORT = 65535
Port = Annotated[int, msgspec.Meta(ge=1, le=MOST_PORT)]


def _key(sentence: str) -> msgspec.Meta:
    """What a key of `umbel.toml` is for; the reference pages show it."""
    return msgspec.Meta(description=sentence)


class Http(msgspec.Struct, forbid_unknown_fields=True):
    """The table `[http]`: the API and the blobs."""

    host: Annotated[str, _key("Address to listen on.")] = "127.0.0.1"
    port: Annotated[Port, _key("Port to listen on.")] = 8470
    tls: Annotated[bool, _key("Speak TLS 1.3, with a certificate by the state folder's own authority.")] = True


class Mqtt(msgspec.Struct, forbid_unknown_fields=True):
    """The table `[mqtt]`: the broker."""

    host: Annotated[str, _key("Address of the broker. The embedded broker listens there.")] = "127.0.0.1"
    port: Annotated[Port, _key("Port of the broker.")] = 1883
    embedded: Annotated[
        bool, _key("Let `umbel serve` start the embedded broker. With `false` another broker must run at `host`.")
    ] = True
    advertised_host: Annotated[
        str,
        _key(
            "Name or address of the broker that devices are told. Empty: `host`, "
            "or the first of `hostnames` where `host` means every address."
        ),
    ] = ""
    silence_seconds: Annotated[
        float,
        msgspec.Meta(ge=5, le=86_400),
        _key(
            "A device that says nothing for so long is asked whether it is there, and counts as offline when it does not "
            "answer. More seconds cost the devices less data."
        ),
    ] = 90.0
    tls: Annotated[bool, _key("Speak TLS 1.3 to the broker, whose certificate is by the state folder's authority.")] = (
        True
    )


class Enrolment(msgspec.Struct, forbid_unknown_fields=True):
    """The table `[enrolment]`: who may enrol."""

    open: Annotated[
        bool,
        _key(
            "Insecure. One token that never expires lets any device enrol, in any population. "
            "With `false` each device needs an invitation of its own."
        ),
    ] = False


class Population(msgspec.Struct, forbid_unknown_fields=True):
    """A table `[populations.NAME]`: what holds for one population."""

    encrypt_commands: Annotated[
        bool,
        _key("Seal every command to this population's devices, and their answers, so that no broker can read them."),
    ] = False


class Config(msgspec.Struct, forbid_unknown_fields=True):
    """The file `umbel.toml`."""

    schema: Annotated[int, _key("Version of this file's format. `umbel init` writes it; leave it as it is.")] = SCHEMA
    http: Annotated[Http, _key("The API and the blobs.")] = msgspec.field(default_factory=Http)
    mqtt: Annotated[Mqtt, _key("The broker.")] = msgspec.field(default_factory=Mqtt)
    hostnames: Annotated[
        list[str],
        _key(
            "Names and addresses at which devices reach this server. The server's certificate names them, "
            "and devices and administrators elsewhere are told the first."
        ),
    ] = []
    enrolment: Annotated[Enrolment, _key("Who may enrol.")] = msgspec.field(default_factory=Enrolment)
    limits: Annotated[Limits, _key("How often one device may ask and send.")] = msgspec.field(default_factory=Limits)
    database: Annotated[
        str,
        _key(
            "SQLAlchemy URL of the database, for example `postgresql+psycopg://...` (install `umbel[postgresql]`). "
            "Empty: SQLite in the state folder."
        ),
    ] = ""
    blobs: Annotated[
        str, _key("URL of the blob store, `file://...` or `s3://...`. Empty: the folder `blobs` in the state folder.")
    ] = ""
    max_blob_mb: Annotated[
        int, msgspec.Meta(ge=1, le=10**7), _key("Largest blob that is stored, in MB (10^6 bytes).")
    ] = 2048
    keep_updates: Annotated[
        bool,
        _key(
            "Keep every update at `received/COMMAND` among the blobs, so that checkpoints can be computed again. "
            "With `false` an update is removed once it is in a checkpoint or refused."
        ),
    ] = False
    populations: Annotated[dict[str, Population], _key("What holds for one population, by its name.")] = {}

    @property
    def encrypted(self) -> frozenset[str]:
        """The populations whose commands are encrypted."""
        return frozenset(name for name, population in self.populations.items() if population.encrypt_commands)


@dataclass(frozen=True)
class State:
    """An opened state folder."""

    folder: Path
    config: Config
    keys: Keyring
    admin_token: str
    enrolment_secret: str

    @cached_property
    def agreement_key(self) -> ECKey:
        """The key with which devices encrypt their answers; made at its first use."""
        return signing.load_or_create_key(self.folder / AGREEMENT_KEY)

    @property
    def key(self) -> ECKey:
        """The current signing key."""
        return self.keys.current

    @property
    def database_url(self) -> str:
        """The database's URL in SQLAlchemy's form."""
        return self.config.database or f"sqlite:///{self.folder / 'umbel.sqlite'}"

    @property
    def blobs_url(self) -> str:
        """The blob store's URL in obstore's form, `file://` or `s3://`."""
        return self.config.blobs or (self.folder / "blobs").resolve().as_uri()

    @property
    def enrolment_token(self) -> str:
        """The reusable enrolment token; raises UmbelError unless [enrolment] is open."""
        if not self.config.enrolment.open:
            raise UmbelError(
                f"{self.folder}: this server has no reusable enrolment token; make one that is good once with "
                "'umbel devices invite', or set open = true under [enrolment] in umbel.toml"
            )
        return make_token(self.enrolment_secret, self.trust)

    @property
    def tls(self) -> bool:
        """Whether HTTP or MQTT uses TLS."""
        return self.config.http.tls or self.config.mqtt.tls

    @cached_property
    def ca(self) -> str:
        """The authority's certificate in PEM; empty without TLS."""
        return (self.folder / pki.CA).read_text() if self.tls else ""

    @property
    def trust(self) -> Trust:
        """The keys and the authority that devices pin."""
        return Trust(signing.public_key(self.key), self.ca, self.keys.successions)

    @property
    def names(self) -> list[str]:
        """The names and addresses that the server's certificate covers."""
        known = [*LOOPBACK, machine_name(), self.config.mqtt.advertised_host]
        hosts = [self.config.http.host, self.config.mqtt.host if self.config.mqtt.embedded else ""]
        return [name for name in dict.fromkeys([*self.config.hostnames, *hosts, *known]) if name and name not in ANY]

    def keep_certificate(self) -> None:
        """Issue the server's certificate if it is missing, in its last year, or for other names."""
        if self.tls:
            pki.own(self.folder, self.names).keep(self.folder, datetime.now(UTC))

    def context(self) -> ssl.SSLContext:
        """The TLS context with which clients on this machine check the server."""
        return client_context(self.ca)

    def broker_context(self) -> ssl.SSLContext:
        """The TLS context with which the server checks its broker, and presents its own certificate to it."""
        context = client_context(self.ca)
        context.load_cert_chain(self.folder / pki.CERTIFICATE, self.folder / pki.CERTIFICATE_KEY)
        return context

    @property
    def server_url(self) -> str:
        """The API's URL on this machine."""
        return self._url(reachable(self.config.http.host))

    @property
    def public_url(self) -> str:
        """The API's URL for other machines: with the first of the hostnames, if there is one."""
        return self._url(self.config.hostnames[0]) if self.config.hostnames else self.server_url

    @property
    def public_broker(self) -> str:
        """The broker's host as devices are told."""
        mqtt, hostnames = self.config.mqtt, self.config.hostnames
        return mqtt.advertised_host or (hostnames[0] if mqtt.host in ANY and hostnames else reachable(mqtt.host))

    def _url(self, host: str) -> str:
        http = self.config.http
        return f"{'https' if http.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{http.port}"


def init_state(folder: Path, config: Config) -> State:
    """Make a state folder with new keys; raises UmbelError when the folder is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UmbelError(f"{folder}: expected a new or empty folder for the server's state; name another one")
    _check_hosts(config)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    signing.load_or_create_key(folder / KEY)
    if config.http.tls or config.mqtt.tls:
        pki.make_authority(folder, datetime.now(UTC))
    write_atomically(folder / ADMIN_TOKEN, secrets.token_urlsafe(32).encode(), mode=0o600)
    write_atomically(folder / ENROLMENT_SECRET, make_secret(secrets.token_bytes(SECRET_BYTES)).encode(), mode=0o600)
    written = msgspec.to_builtins(config)
    if not config.populations:
        del written["populations"]  # keys that a person appends would fall into an empty table at the end
    write_atomically(folder / CONFIG, tomli_w.dumps(written).encode(), mode=0o600)
    state = open_state(folder)
    state.keep_certificate()
    return state


def open_state(folder: Path) -> State:
    """Open the state folder at `folder`; raises UmbelError when it is not one, or its configuration is not valid."""
    path = folder / CONFIG
    if not path.is_file():
        raise UmbelError(f"{folder}: expected a state folder made by 'umbel init', found no {CONFIG} in it")
    try:
        config = _config(tomllib.loads(path.read_text()), (folder / pki.CA).is_file())
        _check_hosts(config)
    except (ValueError, RecursionError, msgspec.ValidationError, UmbelError) as error:
        raise UmbelError(f"{path}: {error}; correct the file") from error
    if config.schema > SCHEMA:
        raise UmbelError(f"{path}: made by a newer Umbel (schema {config.schema}, this one reads {SCHEMA}); upgrade")
    for name in config.populations:
        check_name(name, f"{path}: a population")
    needed = [ADMIN_TOKEN, ENROLMENT_SECRET]
    if config.http.tls or config.mqtt.tls:
        needed += [pki.CA, pki.CA_KEY]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise UmbelError(f"{folder}: {missing[0]} is missing; restore it from a backup or make a new folder")
    return State(
        folder,
        config,
        Keyring(folder),
        (folder / ADMIN_TOKEN).read_text().strip(),
        (folder / ENROLMENT_SECRET).read_text().strip(),
    )


def _config(table: dict[str, Any], has_authority: bool) -> Config:
    if table.get("schema", 1) == 1:
        if has_authority:  # without this check the server would silently run without TLS
            raise UmbelError(f"expected schema = {SCHEMA} at its beginning, as this server speaks TLS")
        msgspec.convert(table, Config)
        table = table | {part: {"tls": False, **table.get(part, {})} for part in ("http", "mqtt")}
    return msgspec.convert(table, Config)


def _check_hosts(config: Config) -> None:
    """Raise UmbelError on a host that is neither a name nor an address."""
    listening = [host for host in (config.http.host, config.mqtt.host) if host not in ANY]
    advertised = [config.mqtt.advertised_host] if config.mqtt.advertised_host else []
    for name in (*config.hostnames, *listening, *advertised):
        pki.alternative(name)


def machine_name() -> str:
    """This machine's host name, or "" when it is not a valid one."""
    name = socket.gethostname()
    try:
        pki.alternative(name)
    except UmbelError:
        return ""
    return name


def listener(host: str, port: int, backlog: int | None = None) -> socket.socket:
    """A listening socket for IPv4 or IPv6, as `host` says; `::` means every address of both. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=family, backlog=backlog, dualstack_ipv6=both)


def reachable(host: str) -> str:
    """The address at which a program on this machine reaches a listener on `host`."""
    return ANY.get(host, host)
