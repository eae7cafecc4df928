"""A task whose update, 400 kB, is too large for a message and travels by HTTP in several pieces."""

import keras

from umbel import Task, TensorSpec


def model() -> keras.Model:
    """About 100,000 weights between one input and one output."""
    return keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(310, activation="tanh"),
            keras.layers.Dense(320, activation="tanh"),
            keras.layers.Dense(1),
        ]
    )


task = Task(
    name="broad",
    model=model,
    loss="mse",
    optimizer="sgd",
    learning_rate=0.05,
    batch_size=2,
    inputs=TensorSpec((1,)),
    targets=TensorSpec((1,)),
)
