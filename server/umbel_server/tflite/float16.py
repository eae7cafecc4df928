"""Make a float16 TFLite file of a float32 one, half as large, with the layout of TFLite's converter but without it."""

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from umbel_server.tflite.file import add_buffer, constant, op_code, pack, unpack

_DEQUANTIZE_FLOAT16 = 3
"""The version of DEQUANTIZE that reads float16 (LiteRT 2.6 and newer have it)."""


def float16(model: bytes) -> bytes:
    """`model` with its float32 constants rounded to float16; a DEQUANTIZE op converts each back to float32 before use.

    Inputs, outputs and arithmetic stay float32; a runtime that computes in float16 may use the constants directly. Values
    beyond float16's range become its largest value. Constants of a single number stay float32: they save no space, and an
    epsilon of 1e-8 would become 0.
    """
    file = unpack(model)
    halves: dict[int, int] = {}
    for graph in file.subgraphs:
        widened: dict[int, int] = {}
        for index in range(len(graph.tensors)):
            tensor = graph.tensors[index]
            data = constant(file, tensor)
            if tensor.type == schema.TensorType.FLOAT32 and data is not None and len(data) > 4:
                widened[index] = _widened(graph, index)
                if tensor.buffer not in halves:
                    # A new buffer, because integers with the same bytes may share the old one.
                    halves[tensor.buffer] = add_buffer(file, half(data))
                tensor.type, tensor.buffer = schema.TensorType.FLOAT16, halves[tensor.buffer]
        for op in graph.operators:
            op.inputs = [widened.get(int(i), int(i)) for i in op.inputs]
        graph.outputs = [widened.get(int(i), int(i)) for i in graph.outputs]
        if widened:
            code = op_code(file, schema.BuiltinOperator.DEQUANTIZE, _DEQUANTIZE_FLOAT16)
            graph.operators = [_dequantize(code, index, wide) for index, wide in widened.items()] + graph.operators
    used = {tensor.buffer for graph in file.subgraphs for tensor in graph.tensors}
    for buffer in halves.keys() - used:
        file.buffers[buffer].data = None
    return pack(file)


def half(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Round float32 values, given and returned as bytes, to the nearest float16 values."""
    largest = np.finfo(np.float16).max
    values = np.frombuffer(data.tobytes(), np.float32)
    return np.frombuffer(np.clip(values, -largest, largest).astype(np.float16).tobytes(), np.uint8)


def _widened(graph: Any, index: int) -> int:
    """A new float32 tensor of the graph, of the shape and name of the constant at `index`."""
    narrow, wide = graph.tensors[index], schema.TensorT()
    wide.name, wide.shape, wide.hasRank = narrow.name + b"_float32", narrow.shape, narrow.hasRank
    wide.type = schema.TensorType.FLOAT32
    graph.tensors.append(wide)  # with the empty buffer 0, because the tensor is computed
    return len(graph.tensors) - 1


def _dequantize(code: int, source: int, target: int) -> Any:
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = code, [source], [target]
    op.builtinOptionsType, op.builtinOptions = schema.BuiltinOptions.DequantizeOptions, schema.DequantizeOptionsT()
    return op
