"""`umbel-agent enrol`: make a device's key, enrol the device, and write its configuration."""

import argparse
import hashlib
import logging
import os
import shlex
import sys
import threading
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from umbel import signing
from umbel.enrolment import split_token
from umbel.errors import UmbelError
from umbel.printable import printable
from umbel.topics import check_name
from umbel_edge.config import AgentConfig, KeyConfig, load_config, write_config
from umbel_edge.connection.enrolment import ATTEMPTS, enrol
from umbel_edge.connection.http import ServerHttp
from umbel_edge.device.state import AgentState
from umbel_edge.device.trust_file import load_trust
from umbel_edge.identity.keys import store_of

KINDS = ("phone", "vehicle", "gateway")
STATE = "state"
SCHEME = "umbel:"


def make_parser() -> argparse.ArgumentParser:
    """The options of `umbel-agent enrol`."""
    parser = argparse.ArgumentParser(
        prog="umbel-agent enrol",
        description="Enrol this device with a server, using a token from 'umbel devices invite', and write its "
        "configuration file. The device's private key is made on the device and never leaves it.",
    )
    parser.add_argument("url", help="the server's URL, or the text in the invitation's QR code (umbel:URL#TOKEN)")
    parser.add_argument("token", nargs="?", help="the enrolment token; it can be used once")
    parser.add_argument("--device", help="this device's id (default: derived from its key)")
    parser.add_argument("--kind", choices=KINDS, default="", help="the kind of device, unless the invitation sets it")
    parser.add_argument(
        "--examples",
        type=Path,
        default=None,
        help="the .npz file of examples (default: examples.npz beside the configuration)",
    )
    parser.add_argument(
        "--key-store",
        choices=("file", "pkcs11"),
        default="file",
        help="where the private key is made and kept: in a file of the state folder (file), "
        "or on a TPM or another PKCS#11 token, which never gives it out (pkcs11)",
    )
    parser.add_argument("--module", type=Path, help="pkcs11: the token's PKCS#11 library")
    parser.add_argument("--token-label", default="", help="pkcs11: the token's label")
    parser.add_argument("--key-name", default="umbel", help="pkcs11: the key's label on the token (default: umbel)")
    parser.add_argument("--pin-file", type=Path, help="pkcs11: a file with the token's PIN, readable by its owner only")
    parser.add_argument(
        "--pin-env", default="", help="pkcs11: an environment variable with the token's PIN, instead of --pin-file"
    )
    parser.add_argument(
        "--config", type=Path, default=Path("agent.toml"), help="the configuration file to write (default: agent.toml)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def options_of(words: list[str]) -> argparse.Namespace:
    """The options on the command line after `enrol`."""
    parser = make_parser()
    options = parser.parse_args(words)
    if options.token is None and options.url.startswith(SCHEME):
        options.url, _, options.token = options.url.removeprefix(SCHEME).partition("#")
    if options.token is None:
        parser.error("give the enrolment token too: umbel-agent enrol URL TOKEN")
    return options


def run(options: argparse.Namespace) -> None:
    """Enrol, and write the configuration and the state folder beside it; raises UmbelError and overwrites nothing.

    After an interruption the same command can be given again: the device keeps its key, and the server answers again.
    """
    path: Path = options.config
    if not options.url.startswith(("http://", "https://")):
        raise UmbelError(f"the server's URL should begin with http:// or https://, got {options.url!r}")
    split_token(options.token)
    key = _key_of(options)
    examples = _beside(path, options.examples)
    asked = {"server": options.url, "examples": examples, "state": STATE, **_key_lines(path, key)}
    if path.exists():
        made = _made_before(path, options, asked)
        _tell(made.device, made.population, path, examples)
        return
    logging.basicConfig(level=logging.WARNING, format="umbel-agent: %(message)s", stream=sys.stderr)
    store = store_of(key, path.parent / STATE, threading.Event(), patient=False)
    state = AgentState(path.parent / STATE, store)
    try:
        device = check_name(options.device or _id_of(state), "a device id")
        if (owner := state.claim_device(device)) != device:
            raise UmbelError(
                f"{state.folder}: this state folder belongs to device {owner}; give --config in another folder"
            )
        # The server's reply has the population and the kind; enrolling needs only the address.
        config = AgentConfig(device, "", "phone", options.url, Path(examples), state.folder)
        http = ServerHttp(config, state.key, threading.Event())
        reply = enrol(http, state, options.token, device, options.kind, attempts=ATTEMPTS)
    finally:
        state.close()
    write_config(path, {"device": reply.device, "population": reply.population, "kind": reply.kind, **asked})
    _tell(reply.device, reply.population, path, examples)


def _tell(device: str, population: str, path: Path, examples: str) -> None:
    """Print that the device is enrolled, and the next steps."""
    print(printable(f"{device} is enrolled in population {population}; {path} is its configuration. Next:"))
    if not (path.parent / examples).is_file():
        print(f"  put the device's examples into {path.parent / examples}")
    print(f"  umbel-agent {shlex.quote(str(path))}")


def _made_before(path: Path, options: argparse.Namespace, asked: Mapping[str, str]) -> AgentConfig:
    """The configuration at `path`, if the same command wrote it before an interruption; raises UmbelError if not."""
    wanted = {**asked, "device": options.device, "kind": options.kind}
    with suppress(UmbelError):
        config = load_config(path)
        trust = load_trust(path.parent / STATE)
        written = tomllib.loads(path.read_text())
        written |= written.get("key", {})
        if trust is not None and all(written.get(name) == value for name, value in wanted.items() if value):
            trust.anchored(split_token(options.token)[1])
            return config
    raise UmbelError(f"{path}: there is a configuration file already; give another one with --config")


def _key_of(options: argparse.Namespace) -> KeyConfig:
    """The key store in the options; raises UmbelError when an option of it is missing."""
    key = KeyConfig(
        options.key_store, options.module, options.token_label, options.key_name, options.pin_file, options.pin_env
    )
    key.check()
    return key.within(Path.cwd())


def _key_lines(path: Path, key: KeyConfig) -> dict[str, str]:
    """The values of [key] for the configuration at `path`; the PIN file is relative to the folder of `path`."""
    if key.store == "file":
        return {}
    pin = {"pin_env": key.pin_env} if key.pin_file is None else {"pin_file": os.path.relpath(key.pin_file, path.parent)}
    return {"store": key.store, "module": str(key.module), "token": key.token, "name": key.name, **pin}


def _id_of(state: AgentState) -> str:
    """An id derived from the device's key: unique, and the same at every call."""
    return "device-" + hashlib.sha256(signing.fingerprint(state.key).encode()).hexdigest()[:10]


def _beside(path: Path, examples: Path | None) -> str:
    """The path of the examples, relative to the folder of the configuration at `path`."""
    if examples is None:
        return "examples.npz"
    return str(examples) if examples.is_absolute() else os.path.relpath(examples, path.parent)
