"""From updates to new weights: each is vetted and folded as it arrives, in the memory of one model, in any order."""

from umbel.updates import largest_update
from umbel_server.aggregation.reading import Buffers, from_blob
from umbel_server.aggregation.updates import (
    BlobPieces,
    DeltaPieces,
    Pieces,
    Update,
    WeightPieces,
    from_weights,
)
from umbel_server.aggregation.vetting import Vetting

__all__ = [
    "BlobPieces",
    "Buffers",
    "DeltaPieces",
    "Pieces",
    "Update",
    "Vetting",
    "WeightPieces",
    "from_blob",
    "from_weights",
    "largest_update",
]
