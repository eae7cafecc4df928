from types import SimpleNamespace
from typing import Any

import pytest
from ai_edge_litert import schema_py_generated as schema

from umbel_sim.virtual.operations import products


@pytest.mark.parametrize(
    ("kind", "shapes", "expected"),
    [
        ("CONV_2D", ([1, 9, 9, 3], [8, 2, 2, 3], [1, 5, 5, 8]), 5 * 5 * 8 * 2 * 2 * 3),
        ("DEPTHWISE_CONV_2D", ([1, 9, 9, 6], [1, 3, 3, 6], [1, 9, 9, 6]), 9 * 9 * 6 * 3 * 3),
        ("TRANSPOSE_CONV", ([4], [8, 2, 2, 3], [1, 4, 4, 3], [1, 8, 8, 8]), 4 * 4 * 3 * 2 * 2 * 8),
        ("FULLY_CONNECTED", ([2, 7], [5, 7], [2, 5]), 2 * 5 * 7),
        ("BATCH_MATMUL", ([2, 3, 4], [2, 4, 5], [2, 3, 5]), 2 * 3 * 5 * 4),
        ("RELU", ([2, 3], [2, 3]), 0),
    ],
)
def test_products_of_an_op(kind: str, shapes: tuple[list[int], ...], expected: int) -> None:
    code = getattr(schema.BuiltinOperator, kind)
    model = SimpleNamespace(operatorCodes=[SimpleNamespace(builtinCode=code, deprecatedBuiltinCode=code)])
    graph = SimpleNamespace(tensors=[SimpleNamespace(shape=shape) for shape in shapes])
    last = len(shapes) - 1
    op: Any = SimpleNamespace(
        opcodeIndex=0, inputs=list(range(last)), outputs=[last], builtinOptions=SimpleNamespace(adjX=False)
    )
    assert products(model, graph, op) == expected
