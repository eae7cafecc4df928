"""Convolutions by short products against TensorFlow's own, of any image, kernel and padding."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.keras_import import import_keras

import_keras()

import tensorflow as tf  # noqa: E402

from umbel_server.compiler.lowerings import conv_products  # noqa: E402
from umbel_server.compiler.lowerings.short_products import count_of, short_products  # noqa: E402
from umbel_server.compiler.lowerings.windows import Windows  # noqa: E402


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 3))
def test_a_correlation_is_its_short_products(rows: int, taps: int, above: int) -> None:
    above = min(above, rows + taps - 2)
    image = rows + taps - 1 - above
    made = short_products(image, above, rows, taps)
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=image), rng.normal(size=taps)
    padded = np.concatenate([np.zeros(above), x, np.zeros(rows + taps)])
    expected = [padded[i : i + taps] @ w for i in range(rows)]
    np.testing.assert_allclose(made.outer @ ((made.inner @ x) * (made.taps_to @ w)), expected, atol=5e-6)
    assert len(made.inner) == len(made.taps_to) == made.outer.shape[1] == count_of(rows, taps)


@settings(max_examples=30)
@given(
    st.tuples(st.integers(3, 15), st.integers(3, 9)),
    st.tuples(st.integers(1, 5), st.integers(1, 4)),
    st.sampled_from(["SAME", "VALID"]),
    st.integers(1, 3),
)
def test_convolutions_and_their_gradients(
    image: tuple[int, int], size: tuple[int, int], padding: str, batch: int
) -> None:
    size = min(size[0], image[0]), min(size[1], image[1])
    windows = Windows(size, (1, 1), (1, 1), padding, image)
    rng = np.random.default_rng(1)

    def drawn(*shape: int) -> Any:
        return tf.constant(rng.normal(size=shape), tf.float32)

    x, kernel, dy = drawn(batch, *image, 4), drawn(*size, 4, 3), drawn(batch, *windows.count, 3)

    @tf.function  # type: ignore[untyped-decorator,unused-ignore]
    def ours() -> Any:
        return (
            conv_products.convolve(windows, x, kernel),
            conv_products.filter_slope(windows, x, dy),
            conv_products.input_slope(windows, dy, kernel),
        )

    options = {"strides": [1, 1, 1, 1], "padding": padding}
    expected = (
        tf.nn.conv2d(x, kernel, **options),
        tf.raw_ops.Conv2DBackpropFilter(input=x, filter_sizes=kernel.shape, out_backprop=dy, **options),
        tf.raw_ops.Conv2DBackpropInput(input_sizes=x.shape, filter=kernel, out_backprop=dy, **options),
    )
    for found, wanted in zip(ours(), expected, strict=True):
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, atol=1e-5 * float(tf.reduce_max(tf.abs(wanted))) + 1e-6)


@pytest.mark.parametrize(
    ("strides", "dilations", "size"), [((2, 2), (1, 1), 3), ((1, 1), (2, 2), 3), ((1, 1), (1, 1), 2)]
)
def test_others_are_left_to_windows_written_out(
    strides: tuple[int, int], dilations: tuple[int, int], size: int
) -> None:
    assert not conv_products.pays(Windows((size, size), strides, dilations, "SAME", (14, 14)), 32)


def test_a_kernel_that_is_used_seldom_is_left_to_windows_written_out() -> None:
    large = Windows((3, 3), (1, 1), (1, 1), "SAME", (14, 14))
    small = Windows((3, 3), (1, 1), (1, 1), "SAME", (4, 4))
    assert conv_products.pays(large, 10)
    assert not conv_products.pays(small, 10)
