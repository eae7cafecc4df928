"""A traced graph, emitted again op by op into the current graph, with the lowering table applied."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from umbel_server.compiler import CompileError
from umbel_server.compiler.lowerings import load_table

# Ops that the converter turns into built-ins by itself.
BUILT_IN = frozenset(
    """
    Abs Add AddN AddV2 All Any ArgMax AvgPool BatchMatMulV2 BatchToSpaceND BiasAdd BiasAddGrad BroadcastTo Cast ConcatV2 Const
    Conv2D Conv2DBackpropInput Cos Div DivNoNan Elu Equal Exp ExpandDims Fill Floor FloorDiv FloorMod Gather
    GatherV2 Greater GreaterEqual Identity LeakyRelu Less LessEqual Log Log1p LogSoftmax LogicalAnd LogicalNot
    LogicalOr MatMul Max MaxPool Maximum Mean Min Minimum Mul Neg NotEqual OneHot OnesLike Pack Pad PadV2 Pow Prod
    Range Rank RealDiv Reciprocal Relu Relu6 Reshape Round Rsqrt Select SelectV2 Shape Sigmoid Sign Sin Size Slice
    Softmax SpaceToBatchND SoftmaxCrossEntropyWithLogits SparseSoftmaxCrossEntropyWithLogits Split Sqrt Square SquaredDifference
    Squeeze StopGradient StridedSlice Sub Sum Tanh Tile Transpose Unpack ZerosLike
    """.split()
)


def refuse_unknown_ops(traced: Any) -> None:
    """Raise CompileError on the first op that neither LiteRT nor the lowering table has."""
    table = load_table()
    for op in _needed(traced):
        if op.type not in BUILT_IN and op.type not in table and op.type not in ("Placeholder", "PreventGradient"):
            raise CompileError(
                f"op {op.type} of {op.name} has no LiteRT kernel and no lowering yet; build the model of Dense, Conv2D, "
                "MaxPooling2D, Flatten, Reshape and the activations relu, relu6, tanh, sigmoid, softmax"
            )


def reemit(traced: Any, arguments: Sequence[Any]) -> list[Any]:
    """Emit the ops of the ConcreteFunction `traced` on `arguments` (one a flat input); returns its flat outputs."""
    table = load_table()
    graph = tf.compat.v1.get_default_graph()
    values: dict[str, Any] = {
        placeholder.name: argument for placeholder, argument in zip(traced.inputs, arguments, strict=True)
    }
    for op in _needed(traced):
        if op.type == "Placeholder":
            continue
        inputs = [values[tensor.name] for tensor in op.inputs]
        if op.type in table:
            outputs = table[op.type](op, inputs)
        elif op.type == "PreventGradient":
            outputs = inputs
        else:
            outputs = graph.create_op(
                op.type,
                [tf.convert_to_tensor(value) for value in inputs],
                [tensor.dtype for tensor in op.outputs],
                name=op.type,
                attrs=dict(op.node_def.attr),
                op_def=op.op_def,
            ).outputs
        for tensor, output in zip(op.outputs, outputs, strict=True):
            output.set_shape(tensor.shape)
            values[tensor.name] = output
    return [values[tensor.name] for tensor in traced.outputs]


def _needed(traced: Any) -> list[Any]:
    """The ops that the outputs depend on, in the graph's order: the rest (an input's gradient, say) is left out."""
    needed: set[str] = set()
    waiting = [tensor.op for tensor in traced.outputs]
    while waiting:
        op = waiting.pop()
        if op.name not in needed:
            needed.add(op.name)
            waiting += [tensor.op for tensor in op.inputs]
    return [op for op in traced.graph.get_operations() if op.name in needed]
