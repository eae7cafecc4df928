"""Real `tf.data.Dataset`s as examples."""

import numpy as np
import pytest

from umbel import Task, TensorSpec
from umbel.errors import UmbelError
from umbel.keras_import import import_keras
from umbel_sim.data import tf_data

X, Y = np.arange(12, dtype=np.float32).reshape(6, 2), np.array([0, 1, 2, 0, 1, 2])
TASK = Task("trial", lambda: None, "mse", TensorSpec((2,)), TensorSpec((), "int32"))
import_keras()
tf = pytest.importorskip("tensorflow")


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("names", [False, True])
def test_pairs_and_mappings_single_or_in_batches(batch: int | None, names: bool) -> None:
    source = tf.data.Dataset.from_tensor_slices({"x": X, "y": Y, "key": Y % 2} if names else (X, Y))
    source = source.batch(batch) if batch else source
    data = tf_data(source, source.take(1), TASK)
    assert np.array_equal(data.train["x"], X)
    assert (data.train["y"].dtype, data.labels.tolist()) == (np.int32, Y.tolist())
    assert (len(data.test["x"]), data.owners) == (batch or 1, 2 if names else 0)


def test_without_a_task_elements_are_examples() -> None:
    data = tf_data(tf.data.Dataset.from_tensor_slices(({"x": X}, {"y": Y})))
    assert (data.count, data.train["x"].shape) == (6, (6, 2))


def test_what_never_ends_is_empty_or_does_not_fit_is_refused() -> None:
    source = tf.data.Dataset.from_tensor_slices((X, Y))
    with pytest.raises(UmbelError, match="repeats for ever; use take"):
        tf_data(source.repeat())
    with pytest.raises(UmbelError, match="is empty"):
        tf_data(source.take(0))
    with pytest.raises(UmbelError, match="names and shapes of the first one"):
        tf_data(source.batch(4))
    with pytest.raises(UmbelError, match=r"an element should be \(x, y\) or a mapping"):
        tf_data(tf.data.Dataset.from_tensor_slices(X))
