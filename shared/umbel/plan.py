import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import msgspec
from joserfc.jwk import ECKey
from msgspec import Struct

from umbel import signing
from umbel.atomic import write_atomically
from umbel.errors import NOT_DECODED, PlanError, SignatureError
from umbel.metrics import MetricSpec
from umbel.signing import Keys
from umbel.tensors import Tensors, TensorSpec, WeightSpec, load

SCHEMA = 1
MANIFEST, SIGNATURE = "manifest.json", "manifest.jws"
TRAIN, INFER, INFER_INT8, INITIAL = "train.tflite", "infer.tflite", "infer.int8.tflite", "initial.safetensors"
FROZEN = "frozen.safetensors"
KIND = "plan"
"""The purpose in the JWS header of a signed manifest (`signing.sign_as`). The signature names no population and does not
expire, because any population may train the plan: a signed command sends it to one device, and that command expires."""
PLACED = {"float32": INFER, "int8": INFER_INT8}
"""The inference files that have a weight map, by the name of their variant in a release."""
TASK_NAME = re.compile(r"[a-z0-9_-]{1,64}")
"""The form of a task's name; it is restricted because files are named after tasks, on devices too."""
_CHUNK = 1 << 16


class File(Struct, frozen=True):
    """A file of the bundle: SHA-256 in hex and size in bytes."""

    sha256: str
    size: int


class Placement(Struct, frozen=True, omit_defaults=True):
    """The place of one weight's bytes in a TFLite file, and their layout.

    The weight, with its axes permuted by `permutation` (empty: not permuted) and in C order, occupies `length` bytes from
    `offset`. Without `scale_offset` it is float32. With it the weight is int8, symmetric: q = round(w / s), where
    s = max|w| / 127 over each slice along `axis` of the permuted weight (-1: one scale for all). The float32 scales lie at
    `scale_offset`. `scale_copies` are further offsets of the same scales: a tensor of rows that are gathered from an int8
    weight has its own copy.
    """

    weight: str
    offset: int
    length: int
    permutation: tuple[int, ...] = ()
    scale_offset: int | None = None
    axis: int = -1
    scale_copies: tuple[int, ...] = ()


class Manifest(Struct, frozen=True):
    """The description of a plan.

    `weights` are the weights that training changes, and only these travel. They are in the order of the signature tensors
    `w0`, `w1`, ... of `set_weights` and `get_weights`. The other weights are constants in the plan's files (and in FROZEN,
    for a device that trains with Keras). `metrics` are computed from the sums that `train` and `evaluate` return beside
    `loss` and `weight`. `inputs`, `targets` and `outputs` are specs of one example, by name. `weight_maps` holds, for each
    inference file, the places of its weights. `parity` is the largest relative error against Keras that the compiler
    measured, by quantity; `worst` names the tensor or value with that error. `value_counts` says of inputs and targets that
    are ids or labels how many there are: with n, 0 to n - 1 are known.
    """

    schema: int
    task: str
    batch_size: int
    learning_rate: float
    loss: str
    optimizer: str
    metrics: tuple[MetricSpec, ...]
    inputs: dict[str, TensorSpec]
    targets: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    weights: tuple[WeightSpec, ...]
    weight_maps: dict[str, tuple[Placement, ...]]
    parity: dict[str, float]
    producer: dict[str, str]
    files: dict[str, File]
    worst: dict[str, str] = {}
    value_counts: dict[str, int] = {}

    @property
    def untrained(self) -> frozenset[str]:
        """The names of the weights that no gradient trains, such as batch normalization's moving averages."""
        return frozenset(spec.name for spec in self.weights if not spec.trainable)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of an evaluation's results: `loss` and the metrics."""
        return ("loss", *(metric.name for metric in self.metrics))


# Made here, in one thread: msgspec 0.22 crashes when several threads decode nested structs for the first time at once.
_MANIFEST = msgspec.json.Decoder(Manifest)


class _Schema(Struct):
    schema: int


class Plan:
    """A task compiled into a bundle that a device can execute: data only, no Python code.

    The bundle is a ZIP archive (stored, not compressed) of `manifest.json`, optionally `manifest.jws` (the manifest as a
    compact JWS), and the files that the manifest lists with their digests. `open` checks every byte of the archive.
    """

    def __init__(self, path: Path, manifest: Manifest, signature: bytes | None, sha256: str) -> None:
        self.path = path
        self.manifest = manifest
        self.signature = signature
        self.sha256 = sha256

    @classmethod
    def open(cls, path: Path) -> "Plan":
        """The plan at `path`; raises PlanError when it is damaged, incomplete, changed, or of a newer schema."""
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                if any(_is_packed(entry) for entry in archive.infolist()):
                    raise PlanError(
                        f"{path}: the files in a plan are stored uncompressed, one here is compressed; compile it again"
                    )
                if MANIFEST not in names:
                    raise PlanError(
                        f"{path}: expected a plan made by 'umbel compile', got an archive without a manifest"
                    )
                manifest_bytes = archive.read(MANIFEST)
                manifest = _parse(path, manifest_bytes)
                signature = archive.read(SIGNATURE) if SIGNATURE in names else None
                if sorted(names) != sorted([MANIFEST, *([SIGNATURE] if signature else []), *manifest.files]):
                    raise PlanError(
                        f"{path}: the files in the bundle are not those its manifest lists; compile it again"
                    )
                for name, file in manifest.files.items():
                    with archive.open(name) as stream:
                        if _sha256(stream) != file.sha256:
                            raise PlanError(
                                f"{path}: {name} was changed after it was compiled; compile or fetch the plan again"
                            )
                canonical = hashlib.sha256()
                _write(_Sink(canonical.update), manifest_bytes, signature, archive, manifest.files)
            with path.open("rb") as stream:
                sha256 = _sha256(stream)
        except zipfile.BadZipFile as error:
            raise PlanError(f"{path}: not a plan made by 'umbel compile', or changed or cut since ({error})") from error
        except (
            OSError,
            NotImplementedError,
            RuntimeError,
            ValueError,
            EOFError,
        ) as error:
            raise PlanError(f"{path}: expected a plan made by 'umbel compile', could not read one: {error}") from error
        if sha256 != canonical.hexdigest():
            raise PlanError(f"{path}: the bundle was changed after it was compiled; compile or fetch the plan again")
        return cls(path, manifest, signature, sha256)

    @classmethod
    def write(cls, path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> "Plan":
        """Write an unsigned bundle of `files` to `path` atomically, and fill in the manifest's `files`.

        The same input gives the same bytes.
        """
        entries = {name: File(hashlib.sha256(data).hexdigest(), len(data)) for name, data in sorted(files.items())}
        complete = msgspec.structs.replace(manifest, files=entries)
        buffer = io.BytesIO()
        _write(_Sink(buffer.write), msgspec.json.encode(complete), None, files, complete.files)
        write_atomically(path, buffer.getvalue())
        return cls.open(path)

    def sign(self, path: Path, key: ECKey) -> "Plan":
        """Write this plan, signed by `key`, to `path`."""
        manifest_bytes = self._manifest_bytes()
        buffer = io.BytesIO()
        with zipfile.ZipFile(self.path) as archive:
            _write(
                _Sink(buffer.write),
                manifest_bytes,
                signing.sign_as(KIND, manifest_bytes, key),
                archive,
                self.manifest.files,
            )
        write_atomically(path, buffer.getvalue())
        return Plan.open(path)

    def verify(self, key: Keys) -> None:
        """Raise PlanError unless `key`, or one of them, signed this plan's manifest."""
        if self.signature is None:
            raise PlanError(f"{self.path}: the plan is not signed; start a run with it: the server then signs it")
        try:
            payload = signing.verify_as(KIND, self.signature, key)
        except SignatureError as error:
            raise PlanError(f"{self.path}: the plan's signature does not verify: {error}") from error
        if payload != self._manifest_bytes():
            raise PlanError(f"{self.path}: the plan's signature is of another manifest")

    def read(self, name: str) -> bytes:
        """The bytes of the file `name` in the bundle; raises PlanError when there is none."""
        if name not in self.manifest.files:
            raise PlanError(f"{self.path}: the plan has no file {name}; it has {', '.join(self.manifest.files)}")
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(name)

    def initial_weights(self) -> Tensors:
        """The weights from which training starts, by name."""
        return load(self.read(INITIAL))

    def frozen_weights(self) -> Tensors:
        """The weights that training does not change, by name; empty when it changes all."""
        return load(self.read(FROZEN)) if FROZEN in self.manifest.files else {}

    def _manifest_bytes(self) -> bytes:
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(MANIFEST)


def _is_packed(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry is compressed or claims another size than it has: a few bytes could then fill all memory."""
    return entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size


def _parse(path: Path, data: bytes) -> Manifest:
    try:
        schema = msgspec.json.decode(data, type=_Schema).schema
        if schema > SCHEMA:
            raise PlanError(
                f"{path}: the plan has schema {schema}, this Umbel reads up to {SCHEMA}: upgrade Umbel here"
            )
        manifest = _MANIFEST.decode(data)
    except NOT_DECODED as error:
        raise PlanError(f"{path}: the plan's manifest does not parse: {error}") from error
    if not TASK_NAME.fullmatch(manifest.task):
        raise PlanError(
            f"{path}: a task's name is at most 64 lower-case letters, digits, '-' and '_'; got {manifest.task[:80]!r}"
        )
    return manifest


def _sha256(stream: IO[bytes]) -> str:
    total = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        total.update(chunk)
    return total.hexdigest()


class _Sink(io.RawIOBase):
    """A write-only stream without seek. Every archive is written to one, so that its bytes depend on its content alone."""

    def __init__(self, write: object) -> None:
        self._write = write

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        self._write(view)  # type: ignore[operator]
        return view.nbytes


def _write(
    sink: _Sink,
    manifest: bytes,
    signature: bytes | None,
    source: zipfile.ZipFile | Mapping[str, bytes],
    files: Mapping[str, File],
) -> None:
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(MANIFEST), manifest)
        if signature is not None:
            archive.writestr(zipfile.ZipInfo(SIGNATURE), signature)
        for name in sorted(files):
            if isinstance(source, zipfile.ZipFile):
                with source.open(name) as stream, archive.open(zipfile.ZipInfo(name), "w") as out:
                    while chunk := stream.read(_CHUNK):
                        out.write(chunk)
            else:
                with archive.open(zipfile.ZipInfo(name), "w") as out:
                    out.write(source[name])
