"""The server's state folder: configuration, keys, database and blobs."""

import secrets
import tomllib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import tomli_w
from joserfc.jwk import ECKey

from umbel import signing
from umbel.atomic import write_atomically
from umbel.enrolment import SECRET_BYTES, make_secret, make_token
from umbel.errors import UmbelError

CONFIG, KEY, ADMIN_TOKEN, ENROLMENT_SECRET = "umbel.toml", "signing-key.pem", "admin-token", "enrolment-secret"
SCHEMA = 1


class Http(msgspec.Struct, forbid_unknown_fields=True):
    """Where the API and the blobs are served."""

    host: str = "127.0.0.1"
    port: int = 8470


class Mqtt(msgspec.Struct, forbid_unknown_fields=True):
    """The broker; with `embedded`, `umbel serve` starts one there. `advertised_host` is what devices are told."""

    host: str = "127.0.0.1"
    port: int = 1883
    embedded: bool = True
    advertised_host: str = ""


class Enrolment(msgspec.Struct, forbid_unknown_fields=True):
    """Who may enrol. Insecure with `open`: whoever has the state folder's one token, which never expires, may be any device."""

    open: bool = False


class Config(msgspec.Struct, forbid_unknown_fields=True):
    """`umbel.toml`. Empty `database` and `blobs` mean SQLite and a folder inside the state folder.

    An update is removed once it is in a checkpoint or refused; with `keep_updates` every one stays, at `received/<command>`
    among the blobs, so that checkpoints can be computed again.
    """

    schema: int = SCHEMA
    http: Http = msgspec.field(default_factory=Http)
    mqtt: Mqtt = msgspec.field(default_factory=Mqtt)
    enrolment: Enrolment = msgspec.field(default_factory=Enrolment)
    database: str = ""
    blobs: str = ""
    max_blob_mb: int = 2048
    keep_updates: bool = False


@dataclass(frozen=True)
class State:
    """An opened state folder."""

    folder: Path
    config: Config
    key: ECKey
    admin_token: str
    enrolment_secret: str

    @property
    def database_url(self) -> str:
        """The database as SQLAlchemy names it."""
        return self.config.database or f"sqlite:///{self.folder / 'umbel.sqlite'}"

    @property
    def blobs_url(self) -> str:
        """The blob store as obstore names it: a `file://` or `s3://` URL."""
        return self.config.blobs or (self.folder / "blobs").resolve().as_uri()

    @property
    def enrolment_token(self) -> str:
        """The token with which any device enrols, where that is open; raises UmbelError where devices are invited."""
        if not self.config.enrolment.open:
            raise UmbelError(
                f"{self.folder}: this server has no reusable enrolment token; make one that is good once with "
                "'umbel devices invite', or set open = true under [enrolment] in umbel.toml"
            )
        return make_token(self.enrolment_secret, self.key)

    @property
    def server_url(self) -> str:
        """Where the API answers on this machine."""
        return f"http://{self.config.http.host}:{self.config.http.port}"


def init_state(folder: Path, config: Config) -> State:
    """Make a state folder with fresh keys; raises UmbelError when the folder holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UmbelError(f"{folder}: expected a new or empty folder for the server's state; name another one")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    signing.load_or_create_key(folder / KEY)
    write_atomically(folder / ADMIN_TOKEN, secrets.token_urlsafe(32).encode(), mode=0o600)
    write_atomically(folder / ENROLMENT_SECRET, make_secret(secrets.token_bytes(SECRET_BYTES)).encode(), mode=0o600)
    write_atomically(folder / CONFIG, tomli_w.dumps(msgspec.to_builtins(config)).encode(), mode=0o600)
    return open_state(folder)


def open_state(folder: Path) -> State:
    """The state folder at `folder`; raises UmbelError when it is not one, or its configuration cannot be used."""
    path = folder / CONFIG
    if not path.is_file():
        raise UmbelError(f"{folder}: expected a state folder made by 'umbel init', found no {CONFIG} in it")
    try:
        config = msgspec.convert(tomllib.loads(path.read_text()), Config)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise UmbelError(f"{path}: {error}; correct the file") from error
    if config.schema > SCHEMA:
        raise UmbelError(f"{path}: made by a newer Umbel (schema {config.schema}, this one reads {SCHEMA}); upgrade")
    missing = [name for name in (KEY, ADMIN_TOKEN, ENROLMENT_SECRET) if not (folder / name).is_file()]
    if missing:
        raise UmbelError(f"{folder}: {missing[0]} is missing; restore it from a backup or make a new folder")
    return State(
        folder,
        config,
        signing.load_or_create_key(folder / KEY),
        (folder / ADMIN_TOKEN).read_text().strip(),
        (folder / ENROLMENT_SECRET).read_text().strip(),
    )
