"""TFLite files as objects of LiteRT's own schema that can be changed, without TensorFlow."""

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

_IDENTIFIER = b"TFL3"
_OP_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}


def unpack(model: bytes) -> Any:
    """The file as a `ModelT` of the schema. Tensors that share a buffer in the file share it in the object."""
    return schema.ModelT.InitFromPackedBuf(model, 0)


def pack(model: Any) -> bytes:
    """The bytes of the TFLite file of a `ModelT`. Kinds of ops that no graph uses are removed from its table of ops."""
    ops = [op for graph in model.subgraphs for op in graph.operators]
    used = sorted({op.opcodeIndex for op in ops})
    for op in ops:
        op.opcodeIndex = used.index(op.opcodeIndex)
    model.operatorCodes = [model.operatorCodes[i] for i in used]
    builder = flatbuffers.Builder(sum(0 if b.data is None else len(b.data) for b in model.buffers) + 1024)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def constant(model: Any, tensor: Any) -> NDArray[np.uint8] | None:
    """The bytes of a constant tensor; None for a tensor that is computed."""
    data = model.buffers[tensor.buffer].data
    return None if data is None or len(data) == 0 else np.asarray(data, np.uint8)


def add_buffer(model: Any, data: NDArray[np.uint8]) -> int:
    """Add a buffer with these bytes for tensors to refer to; returns its index."""
    buffer = schema.BufferT()
    buffer.data = data
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def add_constant(model: Any, graph: Any, name: str, value: NDArray[Any], kind: int) -> int:
    """Add a constant tensor of the schema's type `kind` to a graph; returns its index."""
    tensor = schema.TensorT()
    tensor.name, tensor.type = name.encode(), kind
    tensor.buffer = add_buffer(model, np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8))
    tensor.shape, tensor.hasRank = [int(n) for n in value.shape], True
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def op_code(model: Any, code: int, version: int) -> int:
    """The index of a built-in op in the file's table of ops; it is added when it is missing."""
    for i, known in enumerate(model.operatorCodes):
        if (max(known.builtinCode, known.deprecatedBuiltinCode), known.version) == (code, version):
            return i
    new = schema.OperatorCodeT()
    new.builtinCode = new.deprecatedBuiltinCode = code
    new.version = version
    model.operatorCodes.append(new)
    return len(model.operatorCodes) - 1


def op_name(model: Any, op: Any) -> str:
    """The name of an op's kind, for example CONV_2D."""
    code = model.operatorCodes[op.opcodeIndex]
    return str(_OP_NAMES.get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM"))
