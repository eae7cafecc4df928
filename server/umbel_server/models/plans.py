"""Plans that the server holds: signed bundles in the blob store, with a local copy to work from."""

from pathlib import Path

from umbel.atomic import write_atomically
from umbel.messages import Blob
from umbel.plan import Plan
from umbel.tensors import digest
from umbel_server.security.keyring import Keyring
from umbel_server.storage.blobs import Blobs


class Plans:
    """Signed plans by the SHA-256 of their bundle; `folder` is a cache of the blob store."""

    def __init__(self, folder: Path, blobs: Blobs, keys: Keyring) -> None:
        self._folder, self._blobs, self._keys = folder, blobs, keys

    def add(self, path: Path) -> Plan:
        """Check the bundle at `path`, sign it with the server's key, and store it; raises PlanError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        plan = Plan.open(path)
        if plan.signature is not None:
            plan.verify(self._keys.lineage.all)
        else:
            plan = plan.sign(self._folder / f"{plan.sha256}.unsigned", self._keys.current)
        stored = self._blobs.put(plan.path.read_bytes())
        if plan.path.parent == self._folder:
            plan.path.unlink()
        return self.get(stored.sha256)

    def get(self, sha256: str) -> Plan:
        """The signed plan whose bundle has this digest; raises BlobError or PlanError."""
        path = self._folder / f"{sha256}.plan"
        if not path.is_file() or digest(path.read_bytes()) != sha256:
            write_atomically(path, self._blobs.get(sha256))
        plan = Plan.open(path)
        plan.verify(self._keys.lineage.all)
        return plan

    def blob(self, plan: Plan) -> Blob:
        """The address that commands give devices."""
        return Blob(plan.sha256, self._blobs.size(plan.sha256))
