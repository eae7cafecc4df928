"""A plan's signatures as Python functions, executed by the LiteRT interpreter that is installed."""

import importlib
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import RuntimeMissing, TensorError
from umbel.examples import Batch
from umbel.metrics import Sums, add
from umbel.plan import Manifest
from umbel.tensors import Tensors

_RUNTIMES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite")
ROWS_AT_ONCE = 64
"""Rows in one inference; more rows take more memory and are no faster."""


def interpreter(model: bytes, threads: int = 1) -> Any:
    """An interpreter of a TFLite file. It uses the first of ai_edge_litert, tflite_runtime and tensorflow.lite installed.

    Raises RuntimeMissing when none is installed, ValueError when the bytes are not a TFLite file.
    """
    return _runtime().Interpreter(model_content=model, num_threads=threads)


def runtime_name() -> str:
    """The runtime in use and its version, for example "ai-edge-litert 2.3.0"."""
    package = str(_runtime().__name__).partition(".")[0]
    name = package.replace("_", "-")
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return name


def _runtime() -> Any:
    for name in _RUNTIMES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise RuntimeMissing("no LiteRT interpreter is installed: pip install ai-edge-litert (or tflite-runtime on armv7)")


class Signature:
    """One signature of an interpreter, as a function of arrays by name; the arrays it returns are copies.

    The runtime's own SignatureRunner resizes every input before every call. That takes time, and on aarch64 it ends the
    process when the input is a scalar (ai-edge-litert 1.4 to 2.3). Here an input is resized when its shape has changed.
    """

    def __init__(self, interpreter: Any, name: str) -> None:
        runner = interpreter.get_signature_runner(name)
        self._runtime, self._subgraph = runner._interpreter_wrapper, runner._subgraph_index
        self._inputs: dict[str, int] = runner._inputs
        self._outputs = dict(runner._outputs)
        self.input_details: dict[str, dict[str, Any]] = runner.get_input_details()
        self._shapes = {name: tuple(map(int, detail["shape"])) for name, detail in self.input_details.items()}

    def __call__(self, given: Mapping[str, NDArray[Any]]) -> Tensors:
        """Outputs by name. A scalar is given as the file declares it: as shape (1,), in older plans as shape ().

        Raises TensorError when a name is missing or unknown, ValueError when the runtime refuses a shape or a dtype.
        """
        if given.keys() != self._inputs.keys():
            raise TensorError(f"expected the inputs {', '.join(self._inputs)}, got {', '.join(given) or 'none'}")
        arrays = {name: self._declared(name, value) for name, value in given.items()}
        for name, array in arrays.items():
            if array.shape != self._shapes[name]:
                shape = np.array(array.shape, np.int32)
                self._runtime.ResizeInputTensor(self._inputs[name], shape, False, self._subgraph)
                self._shapes[name] = array.shape
        self._runtime.AllocateTensors(self._subgraph)
        for name, array in arrays.items():
            self._runtime.SetTensor(self._inputs[name], array, self._subgraph)
        self._runtime.Invoke(self._subgraph)
        # The runtime gives a scalar output as a NumPy scalar.
        return {name: np.asarray(self._runtime.GetTensor(i, self._subgraph)) for name, i in self._outputs.items()}

    def _declared(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        array = np.asarray(value)
        return array.reshape(self._shapes[name]) if array.ndim == 0 and self._shapes[name] == (1,) else array


class Trainable:
    """A plan's `train.tflite`, ready to train, evaluate and infer. Use one in each thread: an interpreter is not shared.

    Call `set_weights` and `reset` before anything else. Sums are over examples: `loss`, `weight` (the sum of sample
    weights) and the sums of the manifest's metrics; see umbel.metrics.
    """

    def __init__(self, model: bytes, manifest: Manifest, threads: int = 1) -> None:
        self._manifest = manifest
        self._interpreter = interpreter(model, threads)
        names = self._interpreter.get_signature_list()
        self._signatures = {name: Signature(self._interpreter, name) for name in names}

    def set_weights(self, weights: Mapping[str, NDArray[Any]]) -> None:
        """Replace every weight, and with them the weights to which FedProx's proximal term pulls."""
        self._signatures["set_weights"]({f"w{i}": weights[spec.name] for i, spec in enumerate(self._manifest.weights)})

    def get_weights(self) -> Tensors:
        """A copy of every weight by name."""
        values = self._signatures["get_weights"]({})
        return {spec.name: values[f"w{i}"] for i, spec in enumerate(self._manifest.weights)}

    def reset(self) -> None:
        """Set the optimizer's slots (its state, such as momentum) to their initial values."""
        self._signatures["reset"]({})

    def get_slots(self) -> Tensors:
        """A copy of the optimizer's slots, named `s0`, `s1`, ...; empty when the optimizer has none."""
        run = self._signatures.get("get_slots")
        return run({}) if run is not None else {}

    def set_slots(self, slots: Mapping[str, NDArray[Any]]) -> None:
        """Set the optimizer's slots to values that `get_slots` returned."""
        if "set_slots" in self._signatures:
            self._signatures["set_slots"](slots)

    def train(self, batch: Batch, learning_rate: float, proximal_mu: float = 0.0, seed: int = 0) -> Sums:
        """Take one optimizer step; returns the sums before the step, as Keras does.

        `seed` is a new random int32 for every step. Random layers such as Dropout derive their numbers from it.
        """
        given = {**batch.tensors, "sample_weight": batch.sample_weight}
        given |= {"learning_rate": np.array(learning_rate, np.float32), "seed": np.array(seed, np.int32)}
        if proximal_mu == 0.0:
            return _sums(self._signatures["train"](given))
        return _sums(self._signatures["train_proximal"]({**given, "proximal_mu": np.array(proximal_mu, np.float32)}))

    def evaluate(self, batches: Iterable[Batch]) -> Sums:
        """The sums over all of `batches`."""
        return self._over("evaluate", batches)

    @property
    def scores(self) -> bool:
        """Whether the plan has a `score` signature. It has none when loss or metrics use masks or losses inside the model."""
        return "score" in self._signatures

    def score(self, batches: Iterable[Batch]) -> Sums:
        """The sums that `evaluate` returns, from outputs that another file of the model has computed.

        Batches hold the targets by name, and the outputs as `o0`, `o1`, ... in the manifest's order.
        """
        return self._over("score", batches)

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """The outputs for one batch of exactly the plan's batch size."""
        return self._signatures["infer"](inputs)

    def _over(self, signature: str, batches: Iterable[Batch]) -> Sums:
        total: Sums = {}
        for batch in batches:
            given = {**batch.tensors, "sample_weight": batch.sample_weight}
            total = add(total, _sums(self._signatures[signature](given)))
        return total


class Predictor:
    """An inference file (`infer.tflite` or a release): outputs for any number of rows."""

    def __init__(self, model: bytes, threads: int = 1) -> None:
        self._interpreter = interpreter(model, threads)
        signatures = self._interpreter.get_signature_list()
        if "infer" not in signatures:
            raise TensorError("expected a TFLite file with an 'infer' signature, got one without")
        self._run = Signature(self._interpreter, "infer")
        self._details = self._run.input_details

    def blank(self) -> Tensors:
        """One row of zeros for every input, for a trial inference."""
        return {
            name: np.zeros((1, *(int(n) for n in detail["shape"][1:])), detail["dtype"])
            for name, detail in self._details.items()
        }

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """Outputs by name, with rows as the first axis; raises TensorError when the inputs do not fit the file."""
        for name, detail in self._details.items():
            shape = tuple(int(n) for n in detail["shape"][1:])
            if name not in inputs or inputs[name].ndim == 0 or inputs[name].shape[1:] != shape:
                got = list(inputs[name].shape) if name in inputs else "nothing"
                raise TensorError(f"input {name!r} should have shape [rows, {', '.join(map(str, shape))}], got {got}")
        if extra := sorted(inputs.keys() - self._details.keys()):
            raise TensorError(f"input {extra[0]!r} is not one of the model's: {', '.join(self._details)}")
        rows = {len(inputs[name]) for name in self._details}
        if len(rows) != 1 or rows == {0}:
            raise TensorError(f"expected the same positive number of rows in every input, got {sorted(rows)}")
        pieces: list[Tensors] = []
        count = rows.pop()
        for start in range(0, count, ROWS_AT_ONCE):
            piece = {
                name: np.ascontiguousarray(inputs[name][start : start + ROWS_AT_ONCE], dtype=detail["dtype"])
                for name, detail in self._details.items()
            }
            pieces.append(self._run(piece))
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _sums(outputs: Mapping[str, Any]) -> Sums:
    return {name: np.asarray(value, np.float64).tolist() for name, value in outputs.items()}
