"""Signatures of plans on LiteRT: when inputs are resized, how scalars are given, and a plan of an older compiler."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from umbel.errors import TensorError
from umbel.examples import Batch
from umbel.litert import Predictor, Signature, Trainable, interpreter
from umbel.plan import INFER, TRAIN, Plan

OLD = Path(__file__).parents[2] / "plans" / "scalars-without-dimension.plan"
"""The task `line`, compiled before scalars had a dimension: this compiler writes no such plan any more."""


class Watched:
    """What a signature asks of the runtime: it takes the runtime's place and passes every call on."""

    def __init__(self, runtime: Any) -> None:
        self._runtime, self.resized = runtime, 0

    def __getattr__(self, name: str) -> Any:
        self.resized += name == "ResizeInputTensor"
        return getattr(self._runtime, name)


class WatchedInterpreter:
    def __init__(self, model: bytes) -> None:
        self._interpreter = interpreter(model)

    def get_signature_runner(self, name: str) -> Any:
        runner = self._interpreter.get_signature_runner(name)
        self.watched = Watched(vars(runner)["_interpreter_wrapper"])
        vars(runner)["_interpreter_wrapper"] = self.watched
        return runner


def batch() -> Batch:
    x = np.array([[1.0], [3.0]], np.float32)
    return Batch({"x": x, "y": 2 * x - 1}, np.ones(2, np.float32))


def trained(plan: Plan, mu: float) -> tuple[dict[str, bytes], list[Any]]:
    trainable = Trainable(plan.read(TRAIN), plan.manifest)
    trainable.set_weights({spec.name: np.full(spec.shape, 0.25, spec.dtype) for spec in plan.manifest.weights})
    trainable.reset()
    sums = [trainable.train(batch(), 0.05, mu, seed) for seed in range(20)]
    trainable.set_slots(trainable.get_slots())
    return {name: value.tobytes() for name, value in trainable.get_weights().items()}, sums


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_an_old_plan_runs_and_trains_to_the_same_bytes(plan_of: Callable[[str], Plan], mu: float) -> None:
    assert trained(Plan.open(OLD), mu) == trained(plan_of("line"), mu)


def test_every_input_of_a_plan_has_a_dimension_and_an_old_plan_s_scalars_have_none(
    plan_of: Callable[[str], Plan],
) -> None:
    def shapes(plan: Plan) -> dict[tuple[str, str], int]:
        running = interpreter(plan.read(TRAIN))
        found = {name: Signature(running, name).input_details for name in running.get_signature_list()}
        return {(name, one): len(detail["shape"]) for name, inputs in found.items() for one, detail in inputs.items()}

    old, new = shapes(Plan.open(OLD)), shapes(plan_of("line"))
    scalars = {("train", "learning_rate"), ("train", "seed"), ("train_proximal", "proximal_mu"), ("set_slots", "s0")}
    assert {name for name, dimensions in old.items() if dimensions == 0} >= scalars
    assert old.keys() == new.keys()
    assert min(new.values()) == 1


def test_inputs_of_an_unchanged_shape_are_not_resized(plan_of: Callable[[str], Plan]) -> None:
    running = WatchedInterpreter(plan_of("line").read(INFER))
    run = Signature(running, "infer")
    for rows, resized in ((1, 0), (1, 0), (3, 1), (3, 1), (1, 2)):
        (answer,) = run({"x": np.zeros((rows, 1), np.float32)}).values()
        assert (len(answer), running.watched.resized) == (rows, resized)


def test_a_refused_shape_does_not_stay(plan_of: Callable[[str], Plan]) -> None:
    run = Signature(interpreter(plan_of("digits").read(INFER)), "infer")
    whole = run({"x": np.ones((2, 8, 8, 1), np.float32)})
    with pytest.raises((RuntimeError, ValueError)):
        run({"x": np.ones((2, 8, 8, 3), np.float32)})
    again = run({"x": np.ones((2, 8, 8, 1), np.float32)})
    assert all(np.array_equal(whole[name], again[name]) for name in whole)


def test_an_input_that_is_missing_or_unknown_is_named(plan_of: Callable[[str], Plan]) -> None:
    run = Signature(interpreter(plan_of("line").read(INFER)), "infer")
    with pytest.raises(TensorError, match="expected the inputs x, got none"):
        run({})
    with pytest.raises(TensorError, match="expected the inputs x, got y"):
        run({"y": np.zeros((1, 1), np.float32)})


def test_a_predictor_answers_any_number_of_rows_in_any_order_of_calls(plan_of: Callable[[str], Plan]) -> None:
    predictor, x = Predictor(plan_of("line").read(INFER)), np.arange(130, dtype=np.float32)[:, None]
    whole = predictor({"x": x})["output"]
    for rows in (1, 64, 7, 130, 65, 1):
        assert np.array_equal(predictor({"x": x[:rows]})["output"], whole[:rows])
