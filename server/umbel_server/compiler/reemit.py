"""Copies a traced program, op by op, into the current graph, and applies the lowering table on the way."""

import re
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.function_def_to_graph import function_def_to_graph

from umbel_server.compiler.errors import CompileError
from umbel_server.compiler.lowerings import Lowering, load_table
from umbel_server.compiler.tracing import all_layers

# Ops that the converter turns into built-ins by itself.
BUILT_IN = frozenset(
    """
    Abs Add AddN AddV2 All Any ArgMax ArgMin AvgPool BatchMatMulV2 BatchToSpaceND BiasAdd BroadcastTo Cast
    Ceil ConcatV2 Const Cos Cumsum DepthToSpace DepthwiseConv2dNative Div DivNoNan Elu Equal Exp ExpandDims Fill
    Floor FloorDiv FloorMod Gather GatherNd GatherV2 Greater GreaterEqual Identity LeakyRelu Less LessEqual Log
    LogSoftmax LogicalAnd LogicalNot LogicalOr MatMul Max MaxPool Maximum Min Minimum MirrorPad Mul Neg
    NotEqual OneHot OnesLike Pack Pad PadV2 Pow Prod Range Rank RealDiv Reciprocal Relu Relu6 Reshape
    ResizeBilinear ResizeNearestNeighbor ReverseV2 Round Rsqrt ScatterNd Select SelectV2 Shape Sigmoid Sign Sin Size Slice
    Softmax SoftmaxCrossEntropyWithLogits SpaceToBatchND
    SparseSoftmaxCrossEntropyWithLogits SpaceToDepth Split SplitV Sqrt Square SquaredDifference
    Squeeze StridedSlice Sub Tanh Tile TopKV2 Transpose Unpack ZerosLike
    """.split()
)
_PASS = frozenset(["PreventGradient", "StopGradient", "IdentityN", "Snapshot", "EnsureShape"])
_SKIP = frozenset(["Placeholder", "NoOp", "Assert"])
_CALLS = frozenset(["PartitionedCall", "StatefulPartitionedCall"])
_WRITES = frozenset(
    ["AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", "ResourceScatterAdd", "ResourceScatterSub"]
)
_READS = frozenset(["ReadVariableOp", "ResourceGather"])
_BRANCHES = frozenset(["If", "StatelessIf", "Case", "StatelessCase"])
_COUNTED = re.compile(r"_\d+$")
_LARGEST_CONSTANT = 4096
_UNROLL = "give the recurrence a fixed length so that it can be unrolled, and use no keras.ops loops"
_LOOK_UP = "look words and ids up when examples are made, and give the model indices"
_AUGMENT = "augment images when examples are made, or use RandomFlip, RandomBrightness or RandomContrast"
_INSTEAD = {
    **dict.fromkeys(["While", "StatelessWhile", "TensorListFromTensor", "TensorListReserve"], _UNROLL),
    **dict.fromkeys(["Conv3D", "Conv3DBackpropInputV2"], "use Conv2D over frames, or TimeDistributed"),
    "Where": "give it a fixed size: keras.ops.where(condition, a, b) picks between two tensors",
    "MaxPool3D": "use MaxPooling2D",
    "AvgPool3D": "use AveragePooling2D",
    **dict.fromkeys(["AsString", "LookupTableFindV2", "StringToHashBucketFast", "StringToHashBucketStrong"], _LOOK_UP),
    **dict.fromkeys(["ImageProjectiveTransformV3", "RGBToHSV", "HSVToRGB"], _AUGMENT),
    "ScaleAndTranslate": "use interpolation 'nearest', 'bilinear' or 'bicubic'",
}
_OTHERWISE = "write it with other keras.ops, or use another layer"


class Program:
    """A TensorFlow ConcreteFunction as a pure function of its inputs and of its variables' values."""

    def __init__(self, concrete: Any, model: Any, writes: bool = True) -> None:
        """With `writes` false, assignments to variables are left out."""
        self._concrete = concrete
        captured = len(concrete.captured_inputs)
        placeholders = list(concrete.inputs)
        self._inputs = placeholders[: len(placeholders) - captured]
        self._captures = dict(
            zip((p.name for p in placeholders[len(self._inputs) :]), concrete.captured_inputs, strict=True)
        )
        self._ops = _needed(concrete.graph, concrete.outputs, writes)
        self._layers = [layer.name for layer in all_layers(model)]
        self._refuse_unknown_ops(self._ops)

    @property
    def used(self) -> set[int]:
        """The variables that the program reads or assigns, by `key`."""
        return {id(handle) for handle in self._captures.values() if handle.dtype == tf.resource}

    @property
    def assigned(self) -> set[int]:
        """The variables that the program assigns, by `key`."""
        return _assigned(self._ops, {name: id(handle) for name, handle in self._captures.items()})

    def reads(self, key: int) -> int:
        """The number of ops that read the variable; a call of a function counts as one op."""
        handles = {name for name, handle in self._captures.items() if id(handle) == key}
        return sum(tensor.name in handles for op in self._ops for tensor in op.inputs)

    def __call__(
        self, arguments: Sequence[Any], values: Mapping[int, Any], lowered: bool = True
    ) -> tuple[list[Any], dict[int, Any]]:
        """Emit the ops for `arguments` (one for each flat input) and for the variables' `values`, by `key`.

        Returns the flat outputs, and the variables' values after the program. With `lowered` false the ops are not lowered,
        for execution by TensorFlow itself. Raises CompileError.
        """
        state = dict(values)
        known: dict[str, Any] = {}
        for placeholder, argument in zip(self._inputs, arguments, strict=True):
            known[placeholder.name] = argument
        for name, capture in self._captures.items():
            known[name] = _Handle(id(capture)) if capture.dtype == tf.resource else tf.constant(capture.numpy())
        try:
            table = load_table() if lowered else {}
            return _emit(self._ops, known, state, self._concrete.outputs, table), state
        except _Unlowered as refusal:
            raise CompileError(
                f"{_place(refusal.op, self._layers)}: op {refusal.op.type} ({refusal.op.name}) {refusal}"
            ) from refusal.__cause__

    def _refuse_unknown_ops(self, ops: Sequence[Any]) -> None:
        table = load_table()
        known = BUILT_IN | _PASS | _SKIP | _WRITES | _READS | table.keys()
        for op in ops:
            if op.type in _CALLS | _BRANCHES:
                for graph in _bodies(op):
                    inner = _needed(graph, graph.outputs)
                    if op.type in _BRANCHES and any(each.type in _WRITES for each in inner):
                        raise CompileError(
                            f"a condition on a tensor ({op.name}) assigns a variable, and devices compute both branches; "
                            "assign keras.ops.where(condition, new, old) instead"
                        )
                    self._refuse_unknown_ops(inner)
            elif op.type not in known and not _is_constant(op):
                raise CompileError(
                    f"{_place(op, self._layers)}: op {op.type} ({op.name}) has no LiteRT built-in and no lowering; "
                    f"{_INSTEAD.get(op.type, _OTHERWISE)}"
                )
            elif (strange := _strange(op)) and not _is_constant(op):
                raise CompileError(
                    f"{_place(op, self._layers)}: op {op.type} ({op.name}) computes in {strange}; devices train float32: cast "
                    "to float32 before it"
                )


class _Handle:
    """A placeholder for a variable's resource handle while ops are emitted."""

    def __init__(self, key: int) -> None:
        self.key = key


def key(variable: Any) -> int:
    """The key of a variable (of Keras or TensorFlow) in the mappings of `Program`."""
    return id((variable if isinstance(variable, tf.Variable) else variable.value).handle)


def _emit(
    ops: Sequence[Any],
    known: dict[str, Any],
    state: dict[int, Any],
    wanted: Sequence[Any],
    table: Mapping[str, Lowering],
) -> list[Any]:
    for op in ops:
        if op.type in _SKIP:
            continue
        inputs = [known[tensor.name] for tensor in op.inputs]
        constants = _constant_outputs(op, inputs)
        if constants is not None:
            outputs = constants
        elif op.type in table:
            outputs = _lowered(table[op.type], op, inputs)
        elif op.type == "ReadVariableOp":
            outputs = [state[inputs[0].key]]
        elif op.type == "ResourceGather":
            outputs = [tf.gather(state[inputs[0].key], inputs[1])]
        elif op.type == "AssignVariableOp":
            state[inputs[0].key], outputs = inputs[1], []
        elif op.type == "AssignAddVariableOp":
            state[inputs[0].key], outputs = state[inputs[0].key] + inputs[1], []
        elif op.type == "AssignSubVariableOp":
            state[inputs[0].key], outputs = state[inputs[0].key] - inputs[1], []
        elif op.type == "ResourceScatterAdd":
            state[inputs[0].key], outputs = (
                state[inputs[0].key] + _scattered(state[inputs[0].key], inputs[1], inputs[2]),
                [],
            )
        elif op.type == "ResourceScatterSub":
            state[inputs[0].key], outputs = (
                state[inputs[0].key] - _scattered(state[inputs[0].key], inputs[1], inputs[2]),
                [],
            )
        elif op.type in _PASS:
            outputs = inputs
        elif op.type in _CALLS:
            outputs = _call(_bodies(op)[0], inputs, state, table)
        elif op.type in _BRANCHES:
            # All branches are computed, and the device chooses between their values.
            *branches, outputs = [_call(body, inputs[1:], state, table) for body in _bodies(op)]
            for number, branch in reversed(list(enumerate(branches))):
                chosen = inputs[0] if op.type.endswith("If") else tf.equal(inputs[0], number)
                outputs = [tf.where(chosen, own, other) for own, other in zip(branch, outputs, strict=True)]
        else:
            outputs = _lowered(_as_it_is, op, inputs)
        for tensor, output in zip(op.outputs, outputs, strict=True):
            if not isinstance(output, _Handle):
                output.set_shape(tensor.shape)
            known[tensor.name] = output
    return [known[tensor.name] for tensor in wanted]


def _assigned(ops: Sequence[Any], handles: Mapping[str, int]) -> set[int]:
    found = {handles[op.inputs[0].name] for op in ops if op.type in _WRITES}
    for op in ops:
        if op.type in _CALLS:
            (body,) = _bodies(op)
            given = zip(body.inputs, op.inputs, strict=True)
            inner = {inside.name: handles[outside.name] for inside, outside in given if outside.name in handles}
            found |= _assigned(_needed(body, body.outputs), inner)
    return found


def _as_it_is(op: Any, inputs: list[Any]) -> list[Any]:
    made = tf.compat.v1.get_default_graph().create_op(
        op.type,
        [tf.convert_to_tensor(value) for value in inputs],
        [tensor.dtype for tensor in op.outputs],
        name=op.type,
        attrs={name: value for name, value in op.node_def.attr.items() if not name.startswith("_")},
        op_def=op.op_def,
    )
    return list(made.outputs)


class _Unlowered(Exception):
    """An op that its lowering refuses; the message is the reason."""

    def __init__(self, op: Any, why: str) -> None:
        super().__init__(why)
        self.op = op


def _lowered(lowering: Lowering, op: Any, inputs: list[Any]) -> list[Any]:
    try:
        return lowering(op, inputs)
    except Exception as error:
        if isinstance(error, CompileError):
            why = str(error)
        elif any(not tensor.shape.is_fully_defined() for tensor in (*op.inputs, *op.outputs)):
            why = "works on a shape that is not known when compiling; give every axis but the batch a size"
        else:
            what = str(error).strip().partition("\n")[0][:200]
            why = f"cannot be rewritten for a device ({what}); {_OTHERWISE}"
        raise _Unlowered(op, why) from error


def _strange(op: Any) -> str:
    """The dtype in which an op computes when devices do not support it; else empty."""
    if op.type in _PASS | _SKIP | {"Cast", "Const", "Identity"}:
        return ""
    others = [t.dtype for t in op.outputs if (t.dtype.is_floating or t.dtype.is_complex) and t.dtype != tf.float32]
    return str(others[0].name) if others else ""


def _place(op: Any, layers: Sequence[str]) -> str:
    """The innermost layer that contains an op, found by the op's name, as words for an error."""
    parts = [part for scope in reversed(op.name.split("/")) for part in (scope, _COUNTED.sub("", scope))]
    where = next((part for part in parts if part in layers), None)
    return f"layer {where}" if where else "the train step"


def _bodies(op: Any) -> list[Any]:
    """The graphs of the functions that an op calls."""
    if op.type in _CALLS:
        called = [op.get_attr("f")]
    elif op.type.endswith("If"):
        called = [op.get_attr("then_branch"), op.get_attr("else_branch")]
    else:
        called = op.get_attr("branches")
    return [function_def_to_graph(op.graph._get_function(each.name).cached_definition) for each in called]


def _call(body: Any, inputs: Sequence[Any], state: dict[int, Any], table: Mapping[str, Lowering]) -> list[Any]:
    known = {placeholder.name: value for placeholder, value in zip(body.inputs, inputs, strict=True)}
    return _emit(_needed(body, body.outputs), known, state, body.outputs, table)


def _scattered(value: Any, indices: Any, updates: Any) -> Any:
    """A tensor of the shape of `value` with `updates` added at the rows `indices`, and 0 elsewhere."""
    rank = len(indices.shape)
    rows = tf.reshape(updates, [-1, *(int(n) for n in updates.shape[rank:])])
    return tf.scatter_nd(tf.reshape(tf.cast(indices, tf.int32), [-1, 1]), rows, value.shape)


def _is_constant(op: Any) -> bool:
    """Whether all inputs of the op are constants, so that it is computed when compiling."""
    return (
        bool(op.inputs)
        and not op.op_def.is_stateful
        and all(tf.get_static_value(tensor) is not None for tensor in op.inputs)
    )


def _constant_outputs(op: Any, inputs: Sequence[Any]) -> list[Any] | None:
    """The op's outputs as constants when its inputs are small constants, because a lowering may need a shape; else None."""
    if not inputs or any(isinstance(value, _Handle) for value in inputs) or op.op_def.is_stateful:
        return None
    known = [tf.get_static_value(value) for value in inputs]
    if any(value is None or np.size(value) > _LARGEST_CONSTANT for value in known) or not hasattr(tf.raw_ops, op.type):
        return None
    run = getattr(tf.raw_ops, op.type)
    wanted = list(signature(run).parameters)
    # Python's function has other names for some inputs; they are in the same order.
    renamed = iter(
        [name for name in wanted if name not in {part.name for part in (*op.op_def.input_arg, *op.op_def.attr)}]
    )
    arguments: dict[str, Any] = {}
    # As arrays with a dtype: an op that takes several dtypes would read plain numbers as its first one.
    dtypes = [tensor.dtype for tensor in op.inputs]
    remaining = [np.asarray(value, dtype.as_numpy_dtype) for value, dtype in zip(known, dtypes, strict=True)]
    for argument in op.op_def.input_arg:
        name = argument.name if argument.name in wanted else next(renamed)
        if argument.number_attr or argument.type_list_attr:
            count = op.get_attr(argument.number_attr) if argument.number_attr else len(remaining)
            arguments[name], remaining = remaining[:count], remaining[count:]
        else:
            arguments[name] = remaining.pop(0)
    attributes = {a.name: op.get_attr(a.name) for a in op.op_def.attr if a.name in wanted}
    with tf.init_scope():
        results = run(**tf.nest.map_structure(tf.constant, arguments), **attributes)
        results = list(results) if isinstance(results, list | tuple) else [results]
        values = [value.numpy() for value in results]
    return [tf.constant(value) for value in values]


def _needed(graph: Any, outputs: Sequence[Any], writes: bool = True) -> list[Any]:
    """The ops on which the outputs depend, and with `writes` the variables' new values; in the graph's order."""
    needed: set[str] = set()
    operations = graph.get_operations()
    waiting = [tensor.op for tensor in outputs]
    if writes:
        waiting += [op for op in operations if op.type in _WRITES or op.type in _CALLS]
    while waiting:
        op = waiting.pop()
        if op.name not in needed:
            needed.add(op.name)
            waiting += [tensor.op for tensor in op.inputs]
    return [op for op in operations if op.name in needed]
