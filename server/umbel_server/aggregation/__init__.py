"""Updates made into new weights: vetted one by one, folded as they come, in memory of a model and in any order."""

from umbel_server.aggregation.reading import Buffers, from_blob
from umbel_server.aggregation.updates import (
    BlobPieces,
    Pieces,
    Update,
    WeightPieces,
    from_weights,
    largest_header,
    largest_update,
)
from umbel_server.aggregation.vetting import RefusedUpdate, Vetting

__all__ = [
    "BlobPieces",
    "Buffers",
    "Pieces",
    "RefusedUpdate",
    "Update",
    "Vetting",
    "WeightPieces",
    "from_blob",
    "from_weights",
    "largest_header",
    "largest_update",
]
