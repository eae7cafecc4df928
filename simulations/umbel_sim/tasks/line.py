"""The smallest task: one neuron learns y = 2x - 1."""

import keras

from umbel import Task, TensorSpec


def model() -> keras.Model:
    """One weight and one bias."""
    return keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])


task = Task(
    name="line",
    model=model,
    loss="mse",
    optimizer="sgd",
    learning_rate=0.05,
    batch_size=2,
    inputs=TensorSpec((1,)),
    targets=TensorSpec((1,)),
)
