"""The agent's configuration: one TOML file."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from umbel.atomic import write_atomically
from umbel.conditions import Rules
from umbel.enrolment import split_token
from umbel.errors import UmbelError
from umbel.sizes import check_labels
from umbel.topics import check_name

EXAMPLE = """\
device = "phone-1"              # this device's id, unique in its population
population = "home"             # the population that this device belongs to
kind = "phone"                  # phone, vehicle or gateway
server = "https://127.0.0.1:8470"
# enrolment_token = "SECRET.FINGERPRINT"   # needed until this device is enrolled; 'umbel devices invite' prints one
examples = "examples.npz"       # one array for each input and target of the plan: x and y
state = "state"                 # the agent's own folder; paths are relative to this file
trainer = "litert"              # litert, or keras on a device with TensorFlow
# task = "task.py"              # keras only: the task file, installed on this device
threads = 1                     # threads of the LiteRT interpreter
progress_seconds = 20           # seconds between two saves of half-finished training; 0: never save
# readings = "readings.json"    # take readings from this file, not from the system (null: unknown):
                                # {"battery": 0.8, "charging": true, "metered": false, "load": 0.1, "temperature": 30,
                                #  "hour": 23, "free_memory_mb": 900, "free_disk_mb": 5000, "examples": 200}

[key]                           # this device's private key; 'umbel-agent enrol' makes it
store = "file"                  # file: in the state folder; pkcs11: on a TPM or another PKCS#11 token, which keeps it
# module = "/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so"   # pkcs11 only, like the next keys: the token's library
# token = "umbel"               # the token's label
# name = "umbel"                # the key's label on the token
# pin_file = "pin"              # a file with the token's PIN, readable by its owner only
# pin_env = "UMBEL_PIN"         # or an environment variable with the token's PIN

[labels]                        # your own names and values, to tell devices apart
# site = "lab"

[conditions]                    # must hold before and while this device trains; a run may add stricter ones
min_battery = 0.0               # share of a full battery, 0 to 1
charging = false                # true: train only while charging
unmetered = false               # true: train only on a network without costs (as NetworkManager says)
# max_load = 0.5                # 1-minute load average without the agent, divided by the number of cores
# max_temperature = 45          # degrees Celsius of the hottest sensor
# hours = "22-6"                # local time; several windows: "0-6, 22-24"
min_free_memory_mb = 0
min_free_disk_mb = 0
min_examples = 0
unknown = "allow"               # a condition that cannot be measured here: allow (it holds) or refuse (it does not)

# [mqtt]                        # only if the broker is not at the address that the server gives
# host = "127.0.0.1"
# port = 1883
"""


class Mqtt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The broker's address, if it is not the one that the server gives."""

    host: str
    port: int


class KeyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[key]` of the configuration: the store of the device's private key.

    All fields but `store` are for PKCS#11 tokens.
    """

    store: Literal["file", "pkcs11"] = "file"
    module: Path | None = None
    token: str = ""
    name: str = "umbel"
    pin_file: Path | None = None
    pin_env: str = ""

    def check(self) -> None:
        """Raise UmbelError when the fields contradict each other or one is missing."""
        if self.store == "file":
            if self != KeyConfig():
                raise UmbelError('[key]: module, token, name, pin_file and pin_env are only for store = "pkcs11"')
            return
        if self.module is None or not self.token or not self.name:
            raise UmbelError(
                "[key]: store = 'pkcs11' needs module (the token's library), token (its label) and name (the key's label)"
            )
        if (self.pin_file is None) == (not self.pin_env):
            raise UmbelError("[key]: give the token's PIN with either pin_file or pin_env")

    def within(self, folder: Path) -> "KeyConfig":
        """A copy whose paths are absolute: relative ones are relative to `folder`."""
        module = folder / self.module if self.module is not None else None
        pin_file = folder / self.pin_file if self.pin_file is not None else None
        return msgspec.structs.replace(self, module=module, pin_file=pin_file)


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fields of the configuration file; EXAMPLE explains each."""

    device: str
    population: str
    kind: Literal["phone", "vehicle", "gateway"]
    server: str
    examples: Path
    state: Path = Path("state")
    enrolment_token: str = ""
    trainer: Literal["litert", "keras"] = "litert"
    task: Path | None = None
    threads: int = 1
    progress_seconds: float = 20.0
    conditions: Rules = Rules()
    readings: Path | None = None
    labels: dict[str, str] = {}
    mqtt: Mqtt | None = None
    key: KeyConfig = KeyConfig()


def load_config(path: Path) -> AgentConfig:
    """The configuration in the file at `path`, with absolute paths; raises UmbelError that says what to correct."""
    try:
        config = msgspec.convert(tomllib.loads(path.read_text()), AgentConfig, dec_hook=_path)
    except FileNotFoundError as error:
        raise UmbelError(f"{path}: no such configuration file; 'umbel-agent --example' prints one") from error
    except (OSError, ValueError, RecursionError, msgspec.ValidationError) as error:
        raise UmbelError(f"{path}: {error}; 'umbel-agent --example' prints a valid one") from error
    check_name(config.device, f"{path}: device")
    check_name(config.population, f"{path}: population")
    check_labels(config.labels, f"{path}: labels")
    if config.enrolment_token:
        split_token(config.enrolment_token)
    if not config.server.startswith(("http://", "https://")):
        raise UmbelError(f"{path}: server should begin with http:// or https://, got {config.server!r}")
    if config.threads < 1:
        raise UmbelError(f"{path}: threads should be at least 1, got {config.threads}")
    if not 0 <= config.progress_seconds < float("inf"):
        raise UmbelError(f"{path}: progress_seconds should be 0 or more seconds, got {config.progress_seconds}")
    if (config.trainer == "keras") != (config.task is not None):
        raise UmbelError(f"{path}: task is for trainer = 'keras', which needs it")
    try:
        config.key.check()
    except UmbelError as error:
        raise UmbelError(f"{path}: {error}") from error
    folder = path.resolve().parent
    return msgspec.structs.replace(
        config,
        state=folder / config.state,
        examples=folder / config.examples,
        readings=folder / config.readings if config.readings is not None else None,
        task=folder / config.task if config.task is not None else None,
        key=config.key.within(folder),
    )


def write_config(path: Path, values: Mapping[str, str]) -> None:
    """Write EXAMPLE to a new file at `path`, with these `values` for its keys; only its owner can read the file."""
    lines = []
    for line in EXAMPLE.splitlines():
        key, _, rest = line.partition(" = ")
        key = key.removeprefix("# ")
        if key in values:
            comment = rest.partition("#")[2]
            line = f"{key} = {_quoted(values[key])}".ljust(31) + (f" #{comment}" if comment else "")
            line = line.rstrip()
        lines.append(line)
    write_atomically(path, ("\n".join(lines) + "\n").encode(), mode=0o600)


def _quoted(text: str) -> str:
    """A TOML basic string: a JSON string, but with the character DEL escaped."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")


def _path(kind: type, value: object) -> Path:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"expected a path as text, got {value!r}")
