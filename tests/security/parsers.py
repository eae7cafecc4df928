"""Every parser of bytes from outside, as a function that may refuse them with an UmbelError and do nothing else."""

import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from umbel import messages, release, signing, tensors
from umbel.enrolment import Access, EnrolmentReply, EnrolmentRequest, Trust, split_token
from umbel.errors import NOT_DECODED, UmbelError
from umbel.examples import load_arrays
from umbel.messages import Ack, Answered, Blob, Command, Report, Result, Status, Train, Trained
from umbel.plan import INITIAL, Manifest, Plan
from umbel.release import ReleaseManifest
from umbel.tensors import TensorSpec, WeightSpec
from umbel.topics import parse
from umbel_edge.config import EXAMPLE, load_config
from umbel_server.aggregation.safetensors_layout import views
from umbel_server.run_settings import RunSettings
from umbel_server.state import CONFIG, open_state
from umbel_sim.virtual.trace import Trace

KEY = signing.generate_key()
FOLDER = Path(tempfile.mkdtemp(prefix="umbel-parsers-"))
REFUSED = (UmbelError, *NOT_DECODED)
"""What the callers of msgspec's decoders take for bad input."""


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
    if kind is Command:
        return lambda data: messages.decode_command(signing.sign(data, KEY), KEY)
    return lambda data: messages.decode(signing.sign(data, KEY), kind, KEY)  # type: ignore[type-var]


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
_safetensors = tensors.dump({"a": np.ones((2, 3), np.float32), "b": np.zeros(0, np.int8)})
_plan = plan_bytes()


def _json(*values: msgspec.Struct) -> tuple[bytes, ...]:
    return tuple(msgspec.json.encode(value) for value in values)


def _decoder(kind: type[msgspec.Struct]) -> Callable[[bytes], object]:
    return msgspec.json.Decoder(kind).decode


PARSERS = {
    "command": Parser(
        signed(Command), _json(*(Command("id", "p", "d", 1.0, 2.0, body) for body in (_train, Report())))
    ),
    "ack": Parser(signed(Ack), _json(Ack("id", "p", "d", "failed", 1.0, "why"))),
    "result": Parser(
        signed(Result),
        _json(*(Result("id", "p", "d", 1.0, o) for o in (Trained("a", _blob, 3, {"loss": 0.5}), Answered("r", _blob)))),
    ),
    "status": Parser(signed(Status), _json(Status("p", "d", 3, True, labels={"a": "b"}, reasons=["battery"]))),
    "token": Parser(unsigned, (signing.sign(b'{"id":"x","version":1}', KEY), b"a.b.c", b"e30.e30.e30")),
    "topic": Parser(lambda data: parse(data.decode(errors="replace")), (b"umbel/1/home/phone/command",)),
    "enrolment token": Parser(lambda data: split_token(data.decode(errors="replace")), (b"secret." + b"A" * 43,)),
    "enrolment": Parser(_decoder(EnrolmentRequest), _json(EnrolmentRequest("d", "phone", _key, "s", "p"))),
    "enrolment reply": Parser(_decoder(EnrolmentReply), _json(EnrolmentReply(_key, "h", 1, "p", "d", "phone", True))),
    "trust": Parser(lambda data: msgspec.json.decode(data, type=Trust).fingerprint(), _json(Trust(_key, "ca"))),
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
        lambda data: release.verify(signing.sign(data, KEY), KEY),
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
    "umbel.toml": Parser(opened_state, (b'schema = 2\n[http]\nport = 1\n[mqtt]\nhost = "x"\n',)),
    "trace": Parser(in_file(Trace, "trace.csv"), (_line.encode(),)),
}


def tried(parser: Parser, data: bytes) -> None:
    """Parse; whatever is raised beyond REFUSED is a bug."""
    try:
        parser.parse(data)
    except REFUSED:
        return
