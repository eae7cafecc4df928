"""Releases: TFLite files made from a checkpoint by the plan's weight maps, evaluated, and signed."""

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from joserfc.jwk import ECKey
from sqlalchemy import select

from umbel import placement, release
from umbel.errors import UmbelError
from umbel.examples import Examples
from umbel.messages import Blob, Install, Variant
from umbel.plan import INFER, INFER_INT8, Plan
from umbel.tensors import load
from umbel_server.blobs import Blobs
from umbel_server.database import Checkpoint, Database, Release, Run
from umbel_server.evaluation import evaluate_file

VARIANTS: dict[Variant, str] = {"float32": INFER, "int8": INFER_INT8}


class Releases:
    """Releases in the database, their files in the blob store."""

    def __init__(self, database: Database, blobs: Blobs, key: ECKey, clock: Callable[[], float] = time.time) -> None:
        self._database, self._blobs, self._key, self._clock = database, blobs, key, clock

    def export(self, run: Run, checkpoint: Checkpoint, plan: Plan, examples: Examples | None) -> Release:
        """Make a release of a checkpoint: every variant, with the plan's metrics on `examples` when there are some."""
        weights = load(self._blobs.get(checkpoint.weights))
        files: dict[str, release.ReleaseFile] = {}
        for variant, name in VARIANTS.items():
            model = placement.place(plan.read(name), weights, plan.manifest.weight_maps[name])
            metrics = evaluate_file(model, plan.manifest, examples) if examples is not None else {}
            blob = self._blobs.put(model)
            files[variant] = release.ReleaseFile(blob.sha256, blob.size, metrics)
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
        )
        row = Release(
            id=manifest.id,
            run=run.id,
            round=checkpoint.round,
            task=run.task,
            created=manifest.created,
            manifest=release.sign(manifest, self._key),
            files=msgspec.to_builtins(files),
        )
        with self._database.transaction() as session:
            session.add(row)
        return row

    def get(self, id: str) -> Release:
        """One release; raises UmbelError when there is none."""
        with self._database.transaction() as session:
            row = session.get(Release, id)
        if row is None:
            raise UmbelError(f"no release {id!r} is known here; see 'umbel releases list'")
        return row

    def list(self) -> Sequence[Release]:
        """Every release, newest first."""
        with self._database.transaction() as session:
            return session.scalars(select(Release).order_by(Release.created.desc())).all()

    def install(self, id: str, variant: Variant) -> Install:
        """The command that installs one variant of a release; raises UmbelError when there is none."""
        row = self.get(id)
        if variant not in row.files:
            raise UmbelError(f"release {id} has no {variant} file; it has {', '.join(row.files)}")
        file = row.files[variant]
        return Install(id, variant, row.manifest.decode(), Blob(file["sha256"], file["size"]))


def describe(row: Release) -> dict[str, Any]:
    """A release as the API shows it."""
    return {
        "id": row.id,
        "run": row.run,
        "round": row.round,
        "task": row.task,
        "created": row.created,
        "files": row.files,
    }
