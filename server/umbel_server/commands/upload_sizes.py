"""Upload sizes: the bytes that an answer to a command can have at most."""

from umbel_server.aggregation import largest_update
from umbel_server.models.plans import Plans


class UploadSizes:
    """The sizes that bound uploads, in bytes: `most` for an answer of unknown size, and those that follow from a plan."""

    def __init__(self, plans: Plans, most: int) -> None:
        self._plans, self.most = plans, most
        self._remembered: dict[tuple[str, str], int] = {}

    def update(self, plan: str) -> int:
        """The size of the largest update of a plan, given by its digest."""
        return self._size(plan, "")

    def file(self, plan: str, name: str) -> int:
        """The size of a file of a plan, given by its digest."""
        return self._size(plan, name)

    def _size(self, plan: str, file: str) -> int:
        if (plan, file) not in self._remembered:  # opening a plan reads all of it
            manifest = self._plans.get(plan).manifest
            self._remembered[plan, file] = manifest.files[file].size if file else largest_update(manifest.weights)
        return self._remembered[plan, file]
