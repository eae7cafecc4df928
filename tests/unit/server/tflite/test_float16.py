import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from umbel_server.tflite.float16 import half

values = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(arrays.arrays(np.float32, st.integers(0, 20), elements=values))
def test_values_are_rounded_to_the_nearest_and_stay_finite(weights: np.ndarray) -> None:
    rounded = np.frombuffer(half(np.frombuffer(weights.tobytes(), np.uint8)).tobytes(), np.float16)
    assert rounded.shape == weights.shape
    assert np.isfinite(rounded).all()
    inside = np.abs(weights) <= 65504
    # Half a step of float16: 2^-11 of the value, or 2^-25 near 0.
    assert np.all(
        np.abs(rounded[inside].astype(np.float64) - weights[inside]) <= np.abs(weights[inside]) / 2048 + 2**-25
    )
    assert np.array_equal(np.sign(rounded[~inside]), np.sign(weights[~inside]))
