"""What the files of a release are worth: metrics beside the plan's own, difference from float32, time of one row."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbel.errors import UmbelError
from umbel.examples import Examples
from umbel.litert import Predictor, runtime_name
from umbel.plan import Plan
from umbel.release import Parity
from umbel.tensors import Tensors, TensorSpec
from umbel_server.models.held_out import HeldOut

RANDOM_ROWS = 64
TIMED_RUNS, TIMED_SECONDS = 50, 1.0
"""Runs whose median is the latency, and the time after which fewer have to do."""


@dataclass(frozen=True)
class FileParity:
    """One file: held-out metrics (empty when nothing is held out), largest output difference, median milliseconds."""

    metrics: dict[str, float]
    difference: float
    latency_ms: float


class Yardstick:
    """Measures files made of `weights`, whose float32 file is `whole`.

    On the held-out `examples`; without, outputs are compared on the `representative` rows, or on random ones.
    """

    def __init__(
        self,
        plan: Plan,
        weights: Tensors,
        whole: bytes,
        examples: Examples | None,
        representative: Tensors | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self._held_out = HeldOut(plan, examples) if examples is not None else None
        self._plan_metrics = self._held_out(weights) if self._held_out is not None else {}
        specs = plan.manifest.inputs
        if examples is not None:
            self._inputs, kind = {name: examples.tensors[name] for name in specs}, "held-out"
        elif representative is not None:
            self._inputs, kind = representative, "representative"
        else:
            self._inputs, kind = _random_rows(specs), "random"
        self._rows = f"{len(next(iter(self._inputs.values())))} {kind}"
        self._expected = _answers(Predictor(whole), self._inputs)

    def describe(self, keras: Mapping[str, float]) -> Parity:
        """What is measured by, with the metrics that Keras gave."""
        machine = f"{platform.machine()}, {os.cpu_count()} cores, {runtime_name()}"
        return Parity(self._rows, machine, self._plan_metrics, dict(keras))

    def measure(self, model: bytes) -> FileParity:
        """How one file does; raises UmbelError when it does not run here."""
        predictor = Predictor(model)
        outputs = _answers(predictor, self._inputs)
        return FileParity(
            self._held_out.score(outputs) if self._held_out is not None else {},
            max(_difference(outputs[name], expected) for name, expected in self._expected.items()),
            self._latency_ms(predictor),
        )

    def _latency_ms(self, predictor: Predictor) -> float:
        row = {name: value[:1] for name, value in self._inputs.items()}
        predictor(row)  # the first run prepares the kernels
        times: list[float] = []
        while len(times) < TIMED_RUNS and sum(times) < TIMED_SECONDS:
            started = self._clock()
            predictor(row)
            times.append(self._clock() - started)
        return round(statistics.median(times) * 1000, 4)


def _answers(predictor: Predictor, inputs: Tensors) -> Tensors:
    try:
        return predictor(inputs)
    except RuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        raise UmbelError(f"the exported file does not run on {runtime_name()}: {first[:200]}") from error


def _difference(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    return float(np.max(np.abs(ours.astype(np.float64) - theirs), initial=0.0))


def _random_rows(specs: Mapping[str, TensorSpec]) -> Tensors:
    """The same rows every time: numbers from 0 to 1, which every embedding has an index for."""
    rng = np.random.default_rng(0)
    return {
        name: (
            rng.integers(0, 2, (RANDOM_ROWS, *spec.shape))
            if spec.dtype.startswith(("int", "uint"))
            else rng.uniform(0, 1, (RANDOM_ROWS, *spec.shape))
        ).astype(spec.dtype)
        for name, spec in specs.items()
    }
