"""A task that costs nothing to train: 1,000 weights, 4 kB, to measure everything around training."""

import keras

from umbel import Task, TensorSpec


def model() -> keras.Model:
    """One dense layer without a bias."""
    return keras.Sequential([keras.Input((10,)), keras.layers.Dense(100, use_bias=False)])


task = Task(
    name="noop",
    model=model,
    loss="mse",
    optimizer="sgd",
    learning_rate=0.01,
    batch_size=1,
    inputs=TensorSpec((10,)),
    targets=TensorSpec((100,)),
)
