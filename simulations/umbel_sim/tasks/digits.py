"""Handwritten digits, 8x8 pixels: a small convolutional network."""

import keras

from umbel import Task, TensorSpec


def model() -> keras.Model:
    """About 9,500 weights; the output is one probability a digit."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


task = Task(
    name="digits",
    model=model,
    loss="sparse_categorical_crossentropy",
    metrics=("accuracy",),
    optimizer="sgd",
    learning_rate=0.1,
    batch_size=16,
    inputs=TensorSpec((8, 8, 1)),
    targets=TensorSpec((), "int32"),
)
