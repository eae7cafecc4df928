"""Every parser of bytes from outside, as a function that may refuse them with an UmbelError and do nothing else."""

import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from typer import BadParameter

from umbel import messages, release, sealing, signing, succession, tensors
from umbel.conditions import Rules
from umbel.enrolment import (
    Access,
    EnrolmentReply,
    EnrolmentRequest,
    Trust,
    read_request,
    read_trust,
    sign_request,
    split_token,
)
from umbel.errors import NOT_DECODED, UmbelError
from umbel.examples import load_arrays
from umbel.messages import Ack, Answered, Blob, Command, Report, Result, Status, Train, Trained
from umbel.plan import INITIAL, Manifest, Plan
from umbel.release import ReleaseManifest
from umbel.succession import Succession
from umbel.tensors import TensorSpec, WeightSpec
from umbel.topics import parse
from umbel.updates.safetensors_layout import views
from umbel_edge.config import EXAMPLE, load_config
from umbel_edge.device.condition_check import ConditionCheck
from umbel_edge.device.installed_models import CURRENT, InstalledModels
from umbel_edge.training.saved_progress import SavedProgress
from umbel_server.api.routes.admins import AdminRequest
from umbel_server.api.routes.blobs import offset_of, range_of
from umbel_server.api.routes.commands import CommandRequest
from umbel_server.api.routes.devices import Because, Labels, Name
from umbel_server.api.routes.invitations import InvitationRequest
from umbel_server.api.routes.releases import ReleaseRequest
from umbel_server.api.routes.runs import CloneRequest, RunRequest
from umbel_server.cli import values
from umbel_server.cli.runs.policy import policy_of
from umbel_server.runs.settings import RunSettings
from umbel_server.security.admins import public_id
from umbel_server.security.audit.seal import Seal
from umbel_server.security.keyring import KEY as FIRST_KEY
from umbel_server.security.keyring import KEYS, Keyring
from umbel_server.state_folder import CONFIG, open_state
from umbel_server.storage.blobs import check_address
from umbel_sim.partitions import PARTITIONS
from umbel_sim.partitions.spec import parse as parse_partition
from umbel_sim.virtual.classes import mix
from umbel_sim.virtual.trace import Trace

KEY = signing.generate_key()
FOLDER = Path(tempfile.mkdtemp(prefix="umbel-parsers-"))
REFUSED = (UmbelError, BadParameter, *NOT_DECODED)
"""What the callers of msgspec's decoders, and of what reads a command line, take for bad input."""


@dataclass(frozen=True)
class Parser:
    """`parse` of any bytes raises one of REFUSED or nothing; `seeds` are right ones."""

    parse: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


def in_file(parse: Callable[[Path], object], name: str) -> Callable[[bytes], object]:
    """`parse` of a file with these bytes."""

    def parsed(data: bytes) -> object:
        path = FOLDER / name
        path.write_bytes(data)
        return parse(path)

    return parsed


def signed(kind: type[Command | Ack | Result | Status]) -> Callable[[bytes], object]:
    """A message of a sender who has a key, and signs whatever it likes."""
    channel = kind.__name__.lower()
    if kind is Command:
        return lambda data: messages.decode_command(signing.sign_as(channel, data, KEY), KEY)
    return lambda data: messages.check_current(  # type: ignore[type-var]
        messages.decode(signing.sign_as(channel, data, KEY), kind, KEY), 1e9
    )


def unsigned(data: bytes) -> None:
    """A message of anybody: it proves nothing, and is asked for what it claims."""
    messages.claimed_id(data)
    for look in (signing.signer_of, signing.payload_unverified, lambda data: signing.verify(data, KEY)):
        try:
            look(data)
        except UmbelError:
            continue


def opened_state(data: bytes) -> object:
    folder = FOLDER / "state"
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_bytes(data)
    return open_state(folder)


def opened_keyring(data: bytes) -> object:
    folder = FOLDER / "keys"
    (folder / KEYS).write_bytes(data)
    return Keyring(folder)


def kept_keys() -> bytes:
    folder = FOLDER / "keys"
    folder.mkdir()
    signing.load_or_create_key(folder / FIRST_KEY)
    Keyring(folder).begin(60.0, 1.0)
    return (folder / KEYS).read_bytes()


def plan_bytes() -> bytes:
    spec = {"x": TensorSpec((2,))}
    manifest = Manifest(1, "task", 4, 0.1, "mse", "sgd", (), spec, spec, spec, (WeightSpec("w", (2,)),), {}, {}, {}, {})
    path = FOLDER / "seed.plan"
    Plan.write(path, manifest, {INITIAL: tensors.dump({"w": np.zeros(2, np.float32)})})
    return path.read_bytes()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def packed(name: str, data: bytes) -> bytes:
    """A ZIP archive that unpacks to much."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return file.getvalue()


def claiming(shape: tuple[int, ...]) -> bytes:
    """An array that says it is larger than it is."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        archive.writestr("x.npy", file.getvalue())
    return stored.getvalue()


def safetensors(header: str, data: bytes = b"") -> bytes:
    """A file with a header that no library writes."""
    return len(header).to_bytes(8, "little") + header.encode() + data


def tensor(shape: str, start: str = "0", stop: str = "4") -> str:
    return f'{{"a":{{"dtype":"F32","shape":[{shape}],"data_offsets":[{start},{stop}]}}}}'


_digits = "9" * 4300  # as many as Python reads
NASTY_TENSORS = (
    safetensors(tensor("1" + ",1" * 64), bytes(4)),
    safetensors(tensor(f"0,{2**70}", stop="0")),
    safetensors(tensor(f"0,{2**62},{2**62}", stop="0")),
    safetensors(tensor("0", _digits, _digits)),
    safetensors(tensor(",".join([_digits] * 400)), bytes(4)),
)
"""Shapes that no array has, and numbers that nobody multiplies."""

_blob = Blob.of(b"abc")
_specs = {"x": TensorSpec((2,))}
_train = Train("a", "r", 1, _blob, _blob, 2e9, 0.1)
_line = "device,start,end,online,charging,metered\n0,0,10,1,1,0\n0,10,20,0,0,0\n"
_key = signing.public_key(KEY)
_succession = succession.succeed(KEY, signing.generate_key(), 1.0, 2.0)
_safetensors = tensors.dump({"a": np.ones((2, 3), np.float32), "b": np.zeros(0, np.int8)})
_plan = plan_bytes()


def _json(*values: msgspec.Struct) -> tuple[bytes, ...]:
    return tuple(msgspec.json.encode(value) for value in values)


def _signed(data: bytes) -> str:
    return signing.sign_as(succession.KIND, data, KEY).decode()


def _decoder(kind: type[msgspec.Struct]) -> Callable[[bytes], object]:
    return msgspec.json.Decoder(kind).decode


def _text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    """A parser of what comes in a header (latin-1) or on a command line, as a text."""
    return lambda data: parse(data.decode("latin-1"))


def _every(*kinds: type[msgspec.Struct]) -> Callable[[bytes], object]:
    """The body of a request, for each route that it could be sent to."""
    decoders = [_decoder(kind) for kind in kinds]

    def parsed(data: bytes) -> None:
        for decode in decoders:
            with suppress(*REFUSED):
                decode(data)

    return parsed


def sealed(data: bytes) -> object:
    """A seal that is signed, and one that is not."""
    path, keys = FOLDER / "audit-head", Keyring(FOLDER / "keys")
    for written in (data, signing.sign(data, keys.current)):
        path.write_bytes(written)
        try:
            Seal(path, keys).read()
        except UmbelError:
            continue
    return None


def installed(data: bytes) -> object:
    folder = FOLDER / "models"
    folder.mkdir(exist_ok=True)
    (folder / CURRENT).write_bytes(data)
    return InstalledModels(folder, 1, "home").installed


def readings(file: Path) -> object:
    return ConditionCheck(FOLDER, lambda: 1, file).violations(Rules(min_battery=0.5, hours="22-6"))


def policy(file: Path) -> object:
    return policy_of(file, {})


PARSERS = {
    "command": Parser(
        signed(Command),
        _json(*(Command("id", "p", "d", 1.0, 2.0, body, topic="umbel/1/p/d/command") for body in (_train, Report()))),
    ),
    "ack": Parser(signed(Ack), _json(Ack("id", "p", "d", "failed", 1.0, "why", topic="umbel/1/p/d/ack"))),
    "result": Parser(
        signed(Result),
        _json(
            *(
                Result("id", "p", "d", 1.0, o, topic="umbel/1/p/d/result")
                for o in (Trained("a", _blob, 3, {"loss": 0.5}), Answered("r", _blob))
            )
        ),
    ),
    "status": Parser(
        signed(Status),
        _json(
            Status(
                "p", "d", 3, True, labels={"a": "b"}, reasons=["battery"], agreement=_key, topic="umbel/1/p/d/status"
            )
        ),
    ),
    "token": Parser(unsigned, (signing.sign(b'{"id":"x","version":1}', KEY), b"a.b.c", b"e30.e30.e30")),
    "sealed": Parser(
        lambda data: sealing.unseal(data, KEY), (sealing.seal(b"a.b.c", KEY), b"e30.e30.e30.e30.e30", b"....")
    ),
    "topic": Parser(lambda data: parse(data.decode(errors="replace")), (b"umbel/1/home/phone/command",)),
    "enrolment token": Parser(lambda data: split_token(data.decode(errors="replace")), (b"secret." + b"A" * 43,)),
    "enrolment": Parser(
        read_request,
        (sign_request(EnrolmentRequest("d", "phone", _key, "s", "p"), KEY), b"{}", b"e30.e30.e30"),
    ),
    "enrolment reply": Parser(_decoder(EnrolmentReply), _json(EnrolmentReply(_key, "h", 1, "p", "d", "phone", True))),
    "trust": Parser(
        lambda data: read_trust(data).fingerprint(),
        _json(Trust(_key, "ca"), Trust(_key, successions=(_succession,))),
    ),
    "succession": Parser(
        lambda data: succession.read(Succession(_signed(data), _signed(data))),
        (signing.payload_unverified(_succession.by_old.encode()),),
    ),
    "signing keys": Parser(opened_keyring, (kept_keys(),)),
    "access": Parser(_decoder(Access), _json(Access("p", "d", "GET", "/", 1.0))),
    "run settings": Parser(_decoder(RunSettings), _json(RunSettings())),
    "safetensors": Parser(tensors.load, (_safetensors, *NASTY_TENSORS)),
    "update": Parser(views, (_safetensors, *NASTY_TENSORS)),
    "plan": Parser(in_file(Plan.open, "x.plan"), (_plan, packed("manifest.json", bytes(10_000_000)))),
    "plan's manifest": Parser(
        lambda data: in_file(Plan.open, "y.plan")(packed("manifest.json", data)),
        (msgspec.json.encode(Plan.open(FOLDER / "seed.plan").manifest),),
    ),
    "release": Parser(
        lambda data: release.verify(signing.sign_as("release", data, KEY), KEY),
        (b'{"schema":1}', json.dumps({name: 1 for name in ReleaseManifest.__struct_fields__}).encode()),
    ),
    "examples": Parser(
        lambda data: load_arrays(io.BytesIO(data), _specs, "x"),
        (
            npz(x=np.ones((3, 2), np.float32)),
            npz(x=np.ones((3, 2), np.int64), y=np.zeros(2)),
            packed("x.npy", bytes(50_000_000)),
            claiming((10**12, 2)),
            claiming((2**62, 2**62)),
        ),
    ),
    "agent.toml": Parser(in_file(load_config, "agent.toml"), (EXAMPLE.encode(),)),
    "umbel.toml": Parser(
        opened_state, (b'schema = 2\n[http]\nport = 1\n[mqtt]\nhost = "x"\n[populations.p]\nencrypt_commands = true\n',)
    ),
    "readings.json": Parser(in_file(readings, "readings.json"), (b'{"battery": 0.8, "charging": true, "hour": 23}',)),
    "rules": Parser(_decoder(Rules), _json(Rules(min_battery=0.5, hours="0-6, 22-24"))),
    "installed.json": Parser(installed, (b'{"release":"r","variant":"int8","sha256":"x"}',)),
    "progress": Parser(
        in_file(lambda path: SavedProgress(path, "id", 1.0).load(), "progress.npz"),
        (npz(order=np.arange(3)), _safetensors, npz(x=np.arange(3)).replace(b"PK\x01\x02-\x03-", b"PK\x01\x02-\x03@")),
    ),
    "seal": Parser(sealed, (b'{"kind":"audit-head","count":1,"hash":"x"}',)),
    "policy.toml": Parser(in_file(policy, "policy.toml"), (b"target = 10\nquorum = 7\n[labels]\nsite = 'lab'\n",)),
    "policy.json": Parser(in_file(policy, "policy.json"), (b'{"target": 10, "requires": {"charging": true}}',)),
    "requests": Parser(
        _every(CommandRequest, RunRequest, CloneRequest, ReleaseRequest, InvitationRequest, AdminRequest),
        (
            b'{"population":"p","kind":"install","devices":["d"],"ttl":60}',
            b'{"population":"p","plan":"x","settings":{"options":{"beta":0.1},"policy":{"target":3}}}',
            b'{"name":"vera","role":"viewer","populations":["p"]}',
        ),
    ),
    "small requests": Parser(
        _every(Because, Name, Labels), (b'{"reason":"x"}', b'{"name":"x"}', b'{"labels":{"a":"b"},"remove":["c"]}')
    ),
    "range": Parser(_text(lambda text: range_of(text, 1000)), (b"bytes=10-19", b"bytes=0-", b"bytes=1-2,4-5")),
    "upload offset": Parser(_text(offset_of), (b"0", b"123456")),
    "address": Parser(_text(check_address), (b"0" * 64,)),
    "admin's token": Parser(_text(public_id), (b"umbel_" + b"0" * 16 + b"_" + b"A" * 43,)),
    "span": Parser(_text(lambda text: values.seconds_of(text, "--since")), (b"90d", b"1.5h", b"30m", b"30min")),
    "budget": Parser(
        _text(lambda text: values.budget([text])),
        (b"hours=12,bytes=50GB", b"rounds=3", b"bytes=1e308TB", b"rounds=" + b"9" * 5000),
    ),
    "goal": Parser(_text(values.goal), (b"accuracy>=0.97",)),
    "checkpoint": Parser(_text(values.checkpoint), (b"latest@12", b"abc")),
    "option": Parser(_text(lambda text: values.number_pair(text, "--option")), (b"beta=0.2",)),
    "device class": Parser(_text(lambda text: mix([text])), (b"phone-low:drop_out=0.1=0.7", b"vehicle=0.3")),
    "partition": Parser(_text(lambda text: parse_partition(text, PARTITIONS)), (b"shards:2", b"dirichlet:0.1")),
    "trace": Parser(in_file(Trace, "trace.csv"), (_line.encode(),)),
}


def tried(parser: Parser, data: bytes) -> None:
    """Parse; whatever is raised beyond REFUSED is a bug."""
    try:
        parser.parse(data)
    except REFUSED:
        return
