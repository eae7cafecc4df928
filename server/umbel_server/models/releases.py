"""Releases: TFLite files made from a checkpoint, measured, and signed."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from sqlalchemy import Select, select

from umbel import release
from umbel.errors import UmbelError
from umbel.examples import Examples
from umbel.messages import Blob, Install, Variant
from umbel.plan import Plan
from umbel.tensors import Tensors, load
from umbel_server import answers
from umbel_server.limits.quotas import Quotas
from umbel_server.models.measuring import Yardstick
from umbel_server.models.variants import WITHOUT_EXAMPLES, check_variants, make_variant
from umbel_server.security.keyring import Keyring
from umbel_server.storage.blob_ownership import BlobOwnership
from umbel_server.storage.blobs import Blobs
from umbel_server.storage.database import Checkpoint, Database, Release, Run


class UnknownRelease(UmbelError):
    """A release that is not in the database."""


@dataclass(frozen=True)
class Wanted:
    """What a release should hold, and what it is measured on.

    `representative` (the inputs by name) is for int8-full, which goes with it; `keras` are the metrics that Keras gave on
    the held-out `examples`.
    """

    variants: Sequence[Variant] = WITHOUT_EXAMPLES
    examples: Examples | None = None
    representative: Tensors | None = None
    keras: Mapping[str, float] = field(default_factory=dict)


class Releases:
    """Releases in the database, their files in the blob store."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        ownership: BlobOwnership,
        quotas: Quotas,
        keys: Keyring,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._blobs, self._keys, self._clock = database, blobs, keys, clock
        self._ownership, self._quotas = ownership, quotas

    def export(self, run: Run, checkpoint: Checkpoint, plan: Plan, wanted: Wanted) -> Release:
        """Make a release of a checkpoint; raises UmbelError, storing nothing, when one of its files cannot be made.

        Raises QuotaReached when the population may not store them.
        """
        check_variants(wanted.variants, wanted.representative is not None)
        weights = load(self._blobs.get(checkpoint.weights))
        whole = make_variant("float32", plan, weights, None)
        models: dict[str, bytes] = {
            variant: whole if variant == "float32" else make_variant(variant, plan, weights, wanted.representative)
            for variant in wanted.variants
        }
        self._quotas.check_storage(run.population, sum(map(len, models.values())))
        yardstick = Yardstick(plan, weights, whole, wanted.examples, wanted.representative)
        measured = {variant: yardstick.measure(model) for variant, model in models.items()}
        files: dict[str, release.ReleaseFile] = {}
        for variant, model in models.items():
            blob, parity = self._blobs.put(model), measured[variant]
            files[variant] = release.ReleaseFile(
                blob.sha256, blob.size, parity.metrics, parity.difference, parity.latency_ms
            )
        manifest = release.ReleaseManifest(
            schema=release.SCHEMA,
            id=f"{run.task}-{run.id[:6]}-r{checkpoint.round}-{secrets.token_hex(2)}",
            run=run.id,
            round=checkpoint.round,
            plan=plan.sha256,
            task=run.task,
            files=files,
            created=self._clock(),
            lineage={"checkpoint": checkpoint.weights, **plan.manifest.producer},
            parity=yardstick.describe(wanted.keras),
            population=run.population,
        )
        row = Release(
            id=manifest.id,
            run=run.id,
            round=checkpoint.round,
            task=run.task,
            created=manifest.created,
            manifest=release.sign(manifest, self._keys.current),
            files=msgspec.to_builtins(files),
        )
        with self._database.transaction() as session:
            session.add(row)
            self._ownership.claim(session, run.population, *(Blob(file.sha256, file.size) for file in files.values()))
        return row

    def get(self, id: str, populations: Sequence[str] = ()) -> Release:
        """One release, made for one of these `populations` where some are given; raises UnknownRelease when there is none."""
        with self._database.transaction() as session:
            row = session.scalars(_of(populations).where(Release.id == id)).one_or_none()
        if row is None:
            raise UnknownRelease(f"no release {id!r} is known here; see 'umbel releases list'")
        return row

    def list(self, populations: Sequence[str] = ()) -> Sequence[Release]:
        """Every release, or those made for these `populations`, newest first."""
        with self._database.transaction() as session:
            return session.scalars(_of(populations).order_by(Release.created.desc())).all()

    def install(self, id: str, variant: Variant, populations: Sequence[str] = ()) -> Install:
        """The command that installs one variant of a release; raises UmbelError when there is none, as `get`."""
        row = self.get(id, populations)
        if variant not in row.files:
            raise UmbelError(f"release {id} has no {variant} file; it has {', '.join(row.files)}")
        file = row.files[variant]
        return Install(id, variant, row.manifest.decode(), Blob(file["sha256"], file["size"]))


def _of(populations: Sequence[str]) -> Select[Release]:
    query = select(Release)
    return query.join(Run, Run.id == Release.run).where(Run.population.in_(populations)) if populations else query


def describe(row: Release) -> answers.Release:
    """A release as the API shows it; `parity` is None for one of before there was any."""
    return answers.Release(
        id=row.id,
        run=row.run,
        round=row.round,
        task=row.task,
        created=row.created,
        files=msgspec.convert(row.files, dict[str, answers.ReleaseFile]),
        parity=_parity(release.contents(row.manifest).parity),
    )


def _parity(known: release.Parity | None) -> answers.Parity | None:
    return answers.Parity(known.rows, known.machine, {**known.plan}, {**known.keras}) if known is not None else None
