"""The number of floating-point operations of a plan's training, counted on the graph that a device runs."""

import math
from collections.abc import Sequence
from typing import Any

from umbel.plan import INFER, Plan
from umbel_server.tflite.file import op_name, unpack

OPERATIONS_A_PRODUCT = 6.0
"""Operations of training for each product of inference.

A product is a multiplication and an addition; training has one for the output, one for the gradient of the input and one
for the gradient of the weight.
"""


def training_operations(plan: Plan) -> float:
    """Floating-point operations of a training step for one example.

    Products of convolutions, dense layers and matrices are counted. The result is at least one product a weight, which
    covers layers without such ops, for example an embedding or an LSTM that is a loop.
    """
    model = unpack(plan.read(INFER))
    found = sum(products(model, graph, op) for graph in model.subgraphs for op in graph.operators)
    weights = sum(math.prod(spec.shape) for spec in plan.manifest.weights)
    return OPERATIONS_A_PRODUCT * max(found, weights)


def products(model: Any, graph: Any, op: Any) -> int:
    """The products of one op of a TFLite graph, for the number of rows of its tensors; 0 for other kinds of ops."""

    def shape(indices: Sequence[int], number: int) -> list[int]:
        sizes = graph.tensors[indices[number]].shape
        return [] if sizes is None else [abs(int(size)) for size in sizes]

    match op_name(model, op):
        case "CONV_2D" | "FULLY_CONNECTED":
            return math.prod(shape(op.outputs, 0)) * math.prod(shape(op.inputs, 1)[1:])
        case "DEPTHWISE_CONV_2D":
            return math.prod(shape(op.outputs, 0)) * math.prod(shape(op.inputs, 1)[1:3])
        case "TRANSPOSE_CONV":
            return math.prod(shape(op.inputs, 2)) * math.prod(shape(op.inputs, 1)[:3])
        case "BATCH_MATMUL":
            return math.prod(shape(op.outputs, 0)) * shape(op.inputs, 0)[-2 if op.builtinOptions.adjX else -1]
    return 0
