"""The weighted mean of updates as they arrive, in the memory of one model (FedAvg: McMahan et al., arXiv 1602.05629)."""

from umbel.errors import UmbelError
from umbel.tensors import Tensors
from umbel.updates import Pipeline
from umbel_server.aggregation.exact_float import ExactFloat
from umbel_server.aggregation.order_free_sum import MOST_ROWS, OrderFreeSum
from umbel_server.aggregation.passes import CORES
from umbel_server.aggregation.updates import Pieces, Update

NEARBY, FEW = 1 << 26, 4
"""Updates wait until they have NEARBY bytes and are at least FEW, and are then folded together."""


class Mean:
    """base + sum(weight * update) / sum(weight), the same bytes whatever the order of the updates.

    `count` is how many updates it holds. For each it keeps the pieces to read it again.
    """

    def __init__(self, pipeline: Pipeline, threads: int = CORES) -> None:
        self._pipeline = pipeline
        self._sum = OrderFreeSum(pipeline.size, threads)
        self.clear()

    def clear(self) -> None:
        """Forget every update."""
        self._sum.clear()
        self._waiting: list[tuple[Update, float]] = []
        self._bytes = 0
        self._folded: list[tuple[Pieces, float]] = []
        self._weight = ExactFloat()
        self.count = 0

    @property
    def total_weight(self) -> float:
        """The sum of the weights, rounded once."""
        return self._weight.value

    def add(self, update: Update, weight: float) -> None:
        """Fold one vetted update of the pipeline's shapes, all finite; `weight` is positive, examples or a fraction of them.

        The tensors are kept until MOST_ROWS updates, or NEARBY bytes, wait or the result is asked for. Raises TensorError, after
        which only `clear` helps, when they do not fit.
        """
        self._waiting.append((update, weight))
        self._folded.append((update.pieces, weight))
        self._weight.add(weight)
        self.count += 1
        self._bytes += sum(tensor.nbytes for tensor in update.delta.values())
        if len(self._waiting) == MOST_ROWS or (len(self._waiting) >= FEW and self._bytes > NEARBY):
            self._fold()

    def _fold(self) -> None:
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        if waiting:
            deltas, weights = [update.delta for update, _ in waiting], [weight for _, weight in waiting]
            self._pipeline.fold(deltas, weights, self._sum.add_all)

    def moved(self, base: Tensors, scale: float | None = None) -> Tensors:
        """base + scale * sum(weight * update) in the dtypes and order of `base`; `scale` is 1 / sum(weight) if not given.

        Raises UmbelError when there is no update.
        """
        if not self.count:
            raise UmbelError("a mean of at least one update was expected, none was folded")
        self._fold()
        factor = 1.0 / self.total_weight if scale is None else scale
        return {
            name: self._sum.moved(self._pipeline.starts[name], weight, factor, self._folded, name)
            for name, weight in base.items()
        }
