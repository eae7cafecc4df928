"""Reference models for the compiler, as tasks: models of papers and benchmarks, and a small one of every kind."""

from collections.abc import Callable
from typing import Any

from umbel import Task, TensorSpec


def _mlp() -> Any:
    """784-200-200-10 (McMahan et al., arXiv 1602.05629)."""
    import keras
    from keras import layers

    hidden = [layers.Dense(200, activation="relu"), layers.Dense(200, activation="relu")]
    return keras.Sequential([keras.Input((784,)), *hidden, layers.Dense(10, activation="softmax")])


def _mnist_cnn() -> Any:
    """5x5 conv 32, 5x5 conv 64, dense 512: 1,663,370 weights (McMahan et al., arXiv 1602.05629)."""
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(512, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )


def _cifar_cnn() -> Any:
    """pfl-research's CIFAR-10 network: conv 32, conv 64, pool, dense 128 (arXiv 2404.06430)."""
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Dropout(0.25),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )


def _character_lstm() -> Any:
    """Embedding 8 and two LSTM 256 over 80 characters (LEAF's Shakespeare, arXiv 1812.01097)."""
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((80,), dtype="int32"),
            layers.Embedding(90, 8),
            layers.LSTM(256, return_sequences=True),
            layers.LSTM(256),
            layers.Dense(90, activation="softmax"),
        ]
    )


def _motion_gru() -> Any:
    """Convolutions and a GRU over windows of 128 readings of 6 motion sensors."""
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((128, 6)),
            layers.Conv1D(32, 5, strides=2, activation="relu"),
            layers.Conv1D(32, 5, strides=2, activation="relu"),
            layers.GRU(32),
            layers.Dense(6, activation="softmax"),
        ]
    )


def _vision_transformer() -> Any:
    """Two encoder blocks over 64 patches of a 32x32 image (arXiv 2010.11929, small)."""
    import keras
    from keras import layers

    image = keras.Input((32, 32, 3))
    x = layers.Reshape((64, 48))(layers.Conv2D(48, 4, strides=4)(image))
    x = x + layers.Embedding(64, 48)(keras.ops.arange(64))
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(3, 16)(y, y)
        y = layers.Dense(96, activation="gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(48)(y)
    pooled = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(image, layers.Dense(10, activation="softmax")(pooled))


def _text_encoder() -> Any:
    """Two transformer encoder blocks over 40 tokens, padding masked (arXiv 1706.03762, small)."""
    import keras
    from keras import layers

    tokens = keras.Input((40,), dtype="int32")
    x = layers.Embedding(500, 32, mask_zero=True)(tokens)
    for _ in range(2):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 16, dropout=0.1)(x, x))
        y = layers.Dense(32)(layers.Dense(64, activation="relu")(x))
        x = layers.LayerNormalization()(x + layers.Dropout(0.1)(y))
    return keras.Model(tokens, layers.Dense(4, activation="softmax")(layers.GlobalAveragePooling1D()(x)))


def _application(name: str, size: int, **options: Any) -> Callable[[], Any]:
    def model() -> Any:
        import keras
        from keras import layers

        make = getattr(keras.applications, name)
        body = make(input_shape=(size, size, 3), include_top=False, weights=None, pooling="avg", **options)
        return keras.Sequential([keras.Input((size, size, 3)), body, layers.Dense(10, activation="softmax")])

    return model


def _task(name: str, model: Callable[[], Any], inputs: TensorSpec, learning_rate: float = 0.01) -> Task:
    return Task(
        name=name,
        model=model,
        loss="sparse_categorical_crossentropy",
        metrics=("accuracy",),
        inputs=inputs,
        targets=TensorSpec((), "int32"),
        learning_rate=learning_rate,
        batch_size=10,
    )


REFERENCE_MODELS: dict[str, Task] = {
    task.name: task
    for task in (
        _task("mlp", _mlp, TensorSpec((784,))),
        _task("mnist-cnn", _mnist_cnn, TensorSpec((28, 28, 1))),
        _task("cifar-cnn", _cifar_cnn, TensorSpec((32, 32, 3))),
        _task("character-lstm", _character_lstm, TensorSpec((80,), "int32")),
        _task("motion-gru", _motion_gru, TensorSpec((128, 6))),
        _task("vision-transformer", _vision_transformer, TensorSpec((32, 32, 3))),
        _task("text-encoder", _text_encoder, TensorSpec((40,), "int32")),
        _task("mobilenet-v2", _application("MobileNetV2", 96, alpha=0.35), TensorSpec((96, 96, 3)), 0.001),
        _task("mobilenet-v3-small", _application("MobileNetV3Small", 96), TensorSpec((96, 96, 3)), 0.001),
        _task("efficientnet-b0", _application("EfficientNetB0", 64), TensorSpec((64, 64, 3)), 0.001),
        _task("resnet50", _application("ResNet50", 64), TensorSpec((64, 64, 3)), 0.001),
    )
}
"""Batches of 10 rows, by name; the larger ones take minutes to compile."""
