"""A device's examples, kept in memory from one command to the next."""

from pathlib import Path

from umbel.examples import Examples, load_examples
from umbel.plan import Plan


class ExampleCache:
    """The examples in the `.npz` file at `path`, read again when the file or the plan changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loaded: tuple[tuple[str, int, int], Examples] | None = None

    def load(self, plan: Plan) -> Examples:
        """The examples, checked against the plan; raises UmbelError when they do not fit it."""
        key = plan.sha256, *self.version()
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # let go of the old ones before the new ones take memory
            self._loaded = key, load_examples(self._path, plan.manifest)
        return self._loaded[1]

    def version(self) -> tuple[int, int]:
        """Modification time (ns) and size (bytes) of the file; (0, 0) when there is none."""
        found = self._path.stat() if self._path.exists() else None
        return (found.st_mtime_ns, found.st_size) if found is not None else (0, 0)
