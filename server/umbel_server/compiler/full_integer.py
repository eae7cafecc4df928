"""Full-integer quantisation: int8 weights and activations, calibrated by a representative set; float32 in and out.

TensorFlow's calibrator and quantiser work on the float32 TFLite file, so no Keras model is needed. They run in a process of
their own. So TensorFlow's 500 MB stay out of the server's memory, and a crash of its native code does not end the server.
"""

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from umbel.errors import UmbelError
from umbel.keras_import import import_keras
from umbel.litert import Predictor
from umbel.tensors import Tensors, dump, load
from umbel_server.compiler.errors import CompileError
from umbel_server.tflite.file import add_constant, op_code, op_name, pack, unpack

SECONDS = 240.0
"""The longest time that a quantisation may take."""
ROWS = 1000
"""The most rows of the representative set that are used; the ranges of activations settle after a few hundred rows."""

_MODEL, _ROWS, _QUANTISED = "model.tflite", "representative.safetensors", "quantised.tflite"
_OLDEST = (2, 14)
_BOUNDARY = ("QUANTIZE", "DEQUANTIZE")
_NEWER = ("DIV",)
"""Ops that the quantiser makes int8 and that LiteRT 2.14 does not run, although their version numbers say that it does."""
_one_at_a_time = threading.Lock()


def full_integer(model: bytes, representative: Tensors, seconds: float = SECONDS) -> bytes:
    """Quantise the float32 inference file `model`; the result has an `infer` signature for any number of rows.

    `representative` holds the model's inputs by name, one row for each example; the first ROWS are used. Raises UmbelError
    when TensorFlow is not installed, when an op has no int8 form (the error names it), or after `seconds`.
    """
    if find_spec("tensorflow") is None or find_spec("keras") is None:
        raise UmbelError(
            "int8-full is made by TensorFlow's quantiser, which is not installed on this server: pip install "
            "'umbel[keras]', or leave int8-full out"
        )
    with _one_at_a_time, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / _MODEL).write_bytes(model)
        (folder / _ROWS).write_bytes(dump({key: value[:ROWS] for key, value in representative.items()}))
        command = [sys.executable, "-m", "umbel_server.compiler.full_integer", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired as error:
            raise UmbelError(
                f"int8-full was not done after {seconds:.0f} s; give a representative set of fewer rows"
            ) from error
        if done.returncode == 1 and (said := done.stdout.strip()):
            raise CompileError(said.splitlines()[-1])
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["it printed no error"])[-1]
            raise CompileError(f"TensorFlow's quantiser ended with code {done.returncode} ({last[:200]}); use int8")
        return (folder / _QUANTISED).read_bytes()


def quantise(model: bytes, representative: Tensors) -> bytes:
    """Quantise a model as `full_integer` does, but in the calling process; raises CompileError."""
    import_keras()
    from tensorflow.lite.python.convert import mlir_quantize
    from tensorflow.lite.python.optimize.calibrator import Calibrator, add_intermediate_tensors

    from umbel_server.compiler.runtimes import check_runtime, ops

    def rows() -> Iterator[tuple[str, Tensors]]:
        for i in range(len(next(iter(representative.values())))):
            yield "infer", {name: value[i : i + 1] for name, value in representative.items()}

    try:
        calibrated = Calibrator(add_intermediate_tensors(_without_negations(model))).calibrate(rows)
        # Dense layers get a single scale, as in a plan's int8 file: runtimes before 2.17 do not support one per channel.
        quantised = bytes(mlir_quantize(calibrated, disable_per_channel_for_dense_layers=True))
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CompileError(f"TensorFlow's quantiser refused the model ({first[:300]}); use int8") from error
    if others := _not_in_int8(quantised):
        raise CompileError(
            f"int8-full needs every op in int8, and {', '.join(others)} {'has' if len(others) == 1 else 'have'} no int8 "
            "form in LiteRT 2.14; use int8, which keeps activations in float32, or replace the layer"
        )
    check_runtime("the int8-full file", quantised, max(_OLDEST, *(needed for _, _, needed in ops(model))))
    try:
        Predictor(quantised)({name: value[:1] for name, value in representative.items()})
    except RuntimeError as error:  # the kernels of grouped convolutions refuse weights as the quantiser splits them
        first = str(error).strip().partition("\n")[0]
        raise CompileError(
            f"LiteRT cannot run the file that TensorFlow's quantiser made ({first[:200]}); use int8"
        ) from error
    return quantised


def _without_negations(model: bytes) -> bytes:
    """The file with every NEG replaced by a multiplication by -1, because MUL has an int8 form and NEG has none."""
    file = unpack(model)
    for graph in file.subgraphs:
        for op in graph.operators:
            if op_name(file, op) == "NEG" and graph.tensors[op.inputs[0]].type == schema.TensorType.FLOAT32:
                minus = add_constant(file, graph, "minus_one", np.array([-1.0], np.float32), schema.TensorType.FLOAT32)
                op.opcodeIndex = op_code(file, schema.BuiltinOperator.MUL, 1)
                op.inputs = [int(op.inputs[0]), minus]
                op.builtinOptionsType, op.builtinOptions = schema.BuiltinOptions.MulOptions, schema.MulOptionsT()
    return pack(file)


def _not_in_int8(model: bytes) -> list[str]:
    """The kinds of ops that read or write float32, or whose int8 form is too new; ops at the model's boundary excluded."""
    file = unpack(model)
    found: set[str] = set()
    for graph in file.subgraphs:
        for op in graph.operators:
            tensors = [graph.tensors[i] for i in (*op.inputs, *op.outputs) if i >= 0]
            if (name := op_name(file, op)) in _NEWER or any(t.type == schema.TensorType.FLOAT32 for t in tensors):
                found.add(name)
    return sorted(found.difference(_BOUNDARY))


def main(folder: Path) -> int:
    """Quantise the model in `folder`; on an error, print it as one sentence and return 1."""
    try:
        quantised = quantise((folder / _MODEL).read_bytes(), load((folder / _ROWS).read_bytes()))
    except UmbelError as error:
        print(error)
        return 1
    (folder / _QUANTISED).write_bytes(quantised)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
