"""How the compiler's check measures a difference."""

import numpy as np
import pytest

from umbel.keras_import import import_keras

import_keras()

from umbel_server.compiler.parity import relative_error  # noqa: E402


def test_a_difference_is_relative_to_the_largest_value() -> None:
    assert relative_error(np.float32([1.0, 3.0]), np.float32([1.0, 4.0])) == pytest.approx(0.25)
    assert relative_error(np.float32([0.0]), np.float32([1e-6])) == pytest.approx(1e-3)
    assert relative_error(np.zeros(0), np.zeros(0)) == 0.0


def test_what_is_not_finite_has_to_be_so_in_both() -> None:
    nan, inf = float("nan"), float("inf")
    assert relative_error(np.float32([1.0, nan, inf]), np.float32([1.0, inf, nan])) == 0.0
    assert relative_error(np.float32([1.0, nan]), np.float32([1.0, 2.0])) == inf
    assert relative_error(np.float32([1.0, 2.0]), np.float32([1.0, nan])) == inf
    assert relative_error(np.float32([1.0]), np.float32([1.0, 2.0])) == inf
