"""scikit-learn's digits, as data of a task."""

import numpy as np
import pytest

from umbel import Task, TensorSpec
from umbel.errors import UmbelError
from umbel_sim.data import load
from umbel_sim.digits import load_digits


def task(inputs: TensorSpec) -> Task:
    return Task("trial", lambda: None, "mse", inputs, TensorSpec((), "int32"))


def test_a_fifth_of_the_digits_is_held_out() -> None:
    train, held_out = load_digits(0.2, np.random.default_rng(0))
    assert (len(train.y), len(held_out.y)) == (1438, 359)
    assert train.x.shape[1:] == (8, 8, 1)
    assert (train.x.min(), train.x.max()) == (0.0, 1.0)


def test_digits_come_in_the_shape_that_the_task_wants() -> None:
    digits = load("digits", task(TensorSpec((64,))))
    assert (digits.train["x"].shape, digits.test["x"].shape) == ((1438, 64), (359, 64))
    assert np.array_equal(digits.labels, digits.train["y"])
    assert load("digits").train["x"].shape == (1438, 8, 8, 1)


def test_arrays_have_the_names_of_the_task() -> None:
    named = Task("trial", lambda: None, "mse", {"image": TensorSpec((8, 8))}, {"digit": TensorSpec((), "int64")})
    digits = load("digits", named)
    assert (list(digits.train), digits.targets, digits.train["digit"].dtype) == (
        ["image", "digit"],
        ("digit",),
        np.int64,
    )


def test_what_does_not_fit_the_task_is_refused() -> None:
    with pytest.raises(
        UmbelError, match=r"digits: an example's 'x' has shape \[8, 8, 1\], task trial wants \[28, 28\]"
    ):
        load("digits", task(TensorSpec((28, 28))))
    two = Task("two", lambda: None, "mse", {"a": TensorSpec((8,)), "b": TensorSpec((8,))}, TensorSpec(()))
    with pytest.raises(UmbelError, match="digits has one input and one target, task two wants a, b and y"):
        load("digits", two)
