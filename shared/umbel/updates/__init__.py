"""What changes an update on its way: steps of two halves, one on the device and one on the server.

A device subtracts the weights it was given from the weights it trained (`difference`) and sends the delta through the
run's `Pipeline`: `encode` takes every step's device half and writes a safetensors file. The server takes the other halves:
`largest` bounds the upload, `decode` reads the file as it arrives, `vet` checks it, `fold` hands it to the sum.

A pipeline without steps is the plain path: the delta in the dtypes of the weights. `Step` says how a new step is made.
"""

from umbel.updates.pipeline import Pipeline, RefusedUpdate, largest_update
from umbel.updates.step import Specs, Step, Training
from umbel.updates.weight_delta import Decoded, difference, empty_delta, exact_difference, sum_of_squares

__all__ = [
    "Decoded",
    "Pipeline",
    "RefusedUpdate",
    "Specs",
    "Step",
    "Training",
    "difference",
    "empty_delta",
    "exact_difference",
    "largest_update",
    "sum_of_squares",
]
