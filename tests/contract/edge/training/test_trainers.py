"""The LiteRT and the Keras trainer do the same thing to the same weights."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.compiled_plans import TASKS
from umbel.errors import TaskError, TensorError
from umbel.examples import Examples
from umbel.messages import Blob, Train
from umbel.plan import Plan
from umbel.task import load_task
from umbel_edge.training.keras_trainer import KerasTrainer
from umbel_edge.training.litert_trainer import LiteRTTrainer
from umbel_edge.training.trainer import Cancelled, Trainer
from umbel_server.compiler import compile_task
from umbel_sim.digits import load_digits

HOW = Train("a", "r", 1, Blob("", 0), Blob("", 0), 0.0, learning_rate=0.1, epochs=1, seed=3)


def never() -> None:
    return


def digits(count: int) -> Examples:
    train, _ = load_digits(0.2, np.random.default_rng(0))
    return Examples({"x": train.x[:count], "y": train.y[:count]}, count)


@pytest.fixture(scope="module")
def plan(plan_of: Callable[[str], Plan]) -> Plan:
    return plan_of("digits")


@pytest.fixture(scope="module")
def trainers() -> tuple[Trainer, Trainer]:
    return LiteRTTrainer("phone"), KerasTrainer("phone", TASKS / "digits.py")


@pytest.mark.parametrize(("count", "epochs", "mu"), [(16, 1, 0.0), (10, 4, 0.0), (13, 3, 0.5)])
def test_both_trainers_give_the_same_update(
    plan: Plan, trainers: tuple[Trainer, Trainer], count: int, epochs: int, mu: float
) -> None:
    """With all examples in one batch the order of rows does not matter, so the results must agree."""
    how = msgspec.structs.replace(HOW, epochs=epochs, proximal_mu=mu)
    first, second = (t.train(plan, plan.initial_weights(), digits(count), how, never) for t in trainers)
    assert first.metrics.keys() == second.metrics.keys() == {"loss", "accuracy"}
    for name, value in first.metrics.items():
        assert value == pytest.approx(second.metrics[name], abs=1e-5)
    for name, weight in first.weights.items():
        assert np.allclose(weight, second.weights[name], atol=1e-5)


FROZEN_TASK = """
import keras
from umbel import Task, TensorSpec


def model():
    layers = [keras.layers.Dense(5, "tanh", trainable=False), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((3,)), *layers])


task = Task("frozen", model, "mse", TensorSpec((3,)), TensorSpec((1,)), batch_size=8)
"""


def test_frozen_weights_stay_where_they_are_in_both_trainers(tmp_path: Path) -> None:
    """Loading the task file draws frozen weights anew, so a Keras device must take those of the plan."""
    (tmp_path / "frozen.py").write_text(FROZEN_TASK)
    trainers = LiteRTTrainer("phone"), KerasTrainer("phone", tmp_path / "frozen.py")
    plan = compile_task(load_task(tmp_path / "frozen.py"), tmp_path / "frozen.plan", check=False)
    assert len(plan.manifest.weights) == len(plan.frozen_weights()) == 2
    rng = np.random.default_rng(0)
    examples = Examples({name: rng.uniform(0, 1, (8, n)).astype(np.float32) for name, n in (("x", 3), ("y", 1))}, 8)
    first, second = (t.train(plan, plan.initial_weights(), examples, HOW, never).weights for t in trainers)
    assert first.keys() == second.keys() == plan.initial_weights().keys()
    assert all(np.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_both_trainers_evaluate_alike(plan: Plan, trainers: tuple[Trainer, Trainer]) -> None:
    first, second = (t.evaluate(plan, plan.initial_weights(), digits(101), never) for t in trainers)
    assert first["accuracy"] == pytest.approx(second["accuracy"], abs=1e-6)
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)


def test_both_trainers_learn_and_stop_after_max_steps(plan: Plan, trainers: tuple[Trainer, Trainer]) -> None:
    batches: list[int] = []
    for trainer in trainers:
        before = trainer.evaluate(plan, plan.initial_weights(), digits(200), never)["loss"]
        how = msgspec.structs.replace(HOW, epochs=12)
        trained = trainer.train(plan, plan.initial_weights(), digits(200), how, never)
        assert trainer.evaluate(plan, trained.weights, digits(200), never)["loss"] < before / 2
        batches.clear()
        short = msgspec.structs.replace(how, max_steps=3)
        trainer.train(plan, plan.initial_weights(), digits(200), short, lambda: batches.append(1))
        assert len(batches) == 3


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(plan: Plan) -> None:
    def weights(seed: int) -> bytes:
        how = msgspec.structs.replace(HOW, seed=seed)
        outcome = LiteRTTrainer("phone").train(plan, plan.initial_weights(), digits(100), how, never)
        return b"".join(outcome.weights[name].tobytes() for name in sorted(outcome.weights))

    assert weights(1) == weights(1) != weights(2)


def test_work_that_should_end_ends_before_the_next_batch(plan: Plan, trainers: tuple[Trainer, Trainer]) -> None:
    def stop() -> None:
        raise Cancelled("enough")

    for trainer in trainers:
        with pytest.raises(Cancelled, match="enough"):
            trainer.train(plan, plan.initial_weights(), digits(50), HOW, stop)


def test_weights_that_do_not_fit_and_another_task_are_refused(
    plan: Plan, trainers: tuple[Trainer, Trainer], plan_of: Callable[[str], Plan]
) -> None:
    name, *_ = plan.initial_weights()
    for trainer in trainers:
        with pytest.raises(TensorError, match="the weights to start from"):
            trainer.train(plan, {**plan.initial_weights(), name: np.zeros(3, np.float32)}, digits(10), HOW, never)
    line = plan_of("line")
    with pytest.raises(TaskError, match="the plan is of task line"):
        trainers[1].train(line, line.initial_weights(), digits(10), HOW, never)
