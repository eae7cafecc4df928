"""The pipeline of an update: steps that change it on its way, each with a device half and a server half.

A device subtracts the weights before training from the weights after it (`difference`) and sends the delta through the
run's `Pipeline`: `encode` runs the device half of every step and writes a safetensors file. The server runs the other
halves: `largest` bounds the upload, `decode` reads the file as it arrives, `vet` checks the delta, and `fold` gives it to
the sum.

Without steps the delta travels unchanged, in the dtypes of the weights. `Step` describes how to write a new step.
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
