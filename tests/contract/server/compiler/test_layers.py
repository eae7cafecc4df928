"""Every supported layer: ten steps in the plan and in Keras, by family."""

from pathlib import Path
from typing import Any

import keras
import pytest
from keras import layers

from tests.contract.server.compiler.tasks import Layers, head, task_of
from tests.sampling import sample
from umbel import Task, TensorSpec
from umbel_server.compiler import compile_task

IMAGES: dict[str, Layers] = {
    "conv": lambda: [
        layers.Conv2D(3, 3, strides=2, padding="same", activation="relu"),
        layers.Conv2D(4, 2, activation="tanh"),
        layers.Conv2D(2, 1, dilation_rate=2, padding="same"),
    ],
    "conv dilated": lambda: [
        layers.Conv2D(3, 2, dilation_rate=2),
        layers.Conv2D(2, 2, dilation_rate=2, padding="same"),
    ],
    "conv groups": lambda: [layers.Conv2D(4, 3, groups=2, activation="relu"), layers.Conv2D(4, 2, groups=4)],
    "depthwise": lambda: [
        layers.DepthwiseConv2D(3, depth_multiplier=2),
        layers.DepthwiseConv2D(2, padding="same", strides=2),
    ],
    "depthwise dilated": lambda: [layers.Conv2D(3, 1), layers.DepthwiseConv2D(2, dilation_rate=2, padding="same")],
    "separable": lambda: [layers.SeparableConv2D(3, 3), layers.SeparableConv2D(4, 2, padding="same")],
    "transposed": lambda: [
        layers.Conv2DTranspose(3, 3, strides=2, padding="same"),
        layers.Conv2DTranspose(2, 2),
        layers.Conv2DTranspose(2, 3, dilation_rate=2, padding="same"),
    ],
    "max pooling": lambda: [
        layers.Conv2D(4, 3, padding="same", activation="relu6"),
        layers.MaxPooling2D(3, strides=2, padding="same"),
        layers.MaxPooling2D(2, strides=1),
    ],
    "max pooling that leaves a margin": lambda: [layers.Conv2D(3, 2, activation="relu"), layers.MaxPooling2D(2)],
    "average pooling": lambda: [
        layers.Conv2D(3, 1),
        layers.AveragePooling2D(2),
        layers.AveragePooling2D(2, strides=1, padding="same"),
    ],
    "global pooling": lambda: [layers.Conv2D(4, 1), layers.GlobalAveragePooling2D()],
    "global max pooling": lambda: [layers.Conv2D(4, 1), layers.GlobalMaxPooling2D(keepdims=True)],
    "shapes": lambda: [
        layers.Conv2D(3, 1),
        layers.Permute((2, 1, 3)),
        layers.Reshape((6, 18)),
        layers.ZeroPadding1D(1),
        layers.Cropping1D(2),
    ],
    "padding, cropping, upsampling": lambda: [
        layers.Conv2D(3, 1),
        layers.ZeroPadding2D(((1, 0), (2, 1))),
        layers.Cropping2D(1),
        layers.UpSampling2D(2),
        layers.UpSampling2D(2, interpolation="bilinear"),
    ],
    "batch norm": lambda: [
        layers.Conv2D(3, 3),
        layers.BatchNormalization(),
        layers.Activation("relu"),
        layers.BatchNormalization(axis=1, scale=False),
    ],
    "norms": lambda: [
        layers.Conv2D(4, 3),
        layers.LayerNormalization(),
        layers.GroupNormalization(2),
        layers.RMSNormalization(),
        layers.LayerNormalization(axis=(1, 2, 3)),
        layers.UnitNormalization(),
    ],
    "scaling": lambda: [layers.Rescaling(0.5, 1.0), layers.Normalization(mean=[0.5, 0.4], variance=[1.0, 2.0])],
    "random": lambda: [
        layers.Dropout(0.3),
        layers.Conv2D(4, 3),
        layers.SpatialDropout2D(0.4),
        layers.GaussianNoise(0.2),
        layers.GaussianDropout(0.2),
    ],
    "advanced activations": lambda: [
        layers.Conv2D(3, 1),
        layers.PReLU(),
        layers.ReLU(max_value=2.0, negative_slope=0.1, threshold=0.1),
        layers.LeakyReLU(),
        layers.ELU(),
        layers.Softmax(),
    ],
    "regularised": lambda: [
        layers.Conv2D(3, 2, kernel_regularizer="l2", bias_regularizer="l1"),
        layers.Flatten(),
        layers.Dense(
            4,
            activity_regularizer="l2",
            kernel_regularizer=keras.regularizers.OrthogonalRegularizer(),
            kernel_constraint="max_norm",
        ),
    ],
    "frozen": lambda: [
        layers.Conv2D(3, 2, trainable=False),
        layers.BatchNormalization(trainable=False),
        layers.Conv2D(2, 2),
    ],
}
SERIES: dict[str, Layers] = {
    "conv 1d": lambda: [
        layers.Conv1D(4, 3, padding="causal", dilation_rate=2),
        layers.Conv1D(4, 3, strides=2, padding="same", groups=2),
        layers.Conv1DTranspose(3, 2, strides=2),
    ],
    "depthwise 1d": lambda: [layers.DepthwiseConv1D(3), layers.SeparableConv1D(3, 2, padding="same")],
    "pooling 1d": lambda: [
        layers.Conv1D(3, 1),
        layers.MaxPooling1D(2),
        layers.AveragePooling1D(2, strides=1, padding="same"),
        layers.UpSampling1D(3),
        layers.GlobalMaxPooling1D(),
    ],
    "repeated": lambda: [layers.GlobalAveragePooling1D(), layers.RepeatVector(3), layers.Dense(2)],
    "lstm": lambda: [layers.LSTM(5, return_sequences=True), layers.LSTM(4, dropout=0.2, recurrent_dropout=0.2)],
    "gru": lambda: [layers.GRU(5, return_sequences=True), layers.GRU(4, reset_after=False)],
    "simple rnn": lambda: [layers.SimpleRNN(5, return_sequences=True, go_backwards=True), layers.SimpleRNN(4)],
    "both ways, masked": lambda: [
        layers.Masking(),
        layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
        layers.Bidirectional(layers.GRU(3), merge_mode="sum"),
    ],
    "a length of zero": lambda: [layers.Conv1D(1, 3, activation="log_softmax"), layers.UnitNormalization()],
    "rolled, and products with open axes": lambda: [
        layers.Dense(4),
        layers.Lambda(lambda x: keras.ops.roll(x, 2, axis=1)),
        layers.Lambda(lambda x: keras.ops.einsum("...ij,...kj->...ik", x, x)),
    ],
    "spectral": lambda: [layers.SpectralNormalization(layers.Dense(4))],
    "random when it infers, too": lambda: [layers.Lambda(lambda x: x + keras.random.normal(keras.ops.shape(x)))],
    "time distributed": lambda: [layers.TimeDistributed(layers.Dense(4, activation="relu"))],
}


@pytest.mark.parametrize("name", sample(IMAGES, "conv", "batch norm"))
def test_layers_on_images(name: str, tmp_path: Path) -> None:
    check(task_of(lambda: [*IMAGES[name](), *head()]), tmp_path)


@pytest.mark.parametrize("name", sample(SERIES, "simple rnn"))
def test_layers_on_series(name: str, tmp_path: Path) -> None:
    check(task_of(lambda: [*SERIES[name](), *head()], (6, 3)), tmp_path)


@pytest.mark.parametrize("activation", sample(["relu", "relu6", "hard_tanh", "mish", "selu", "gelu"], "relu"))
def test_an_activation_right_after_a_product(activation: str, tmp_path: Path) -> None:
    """The converter used to lose it: it fused it into a fully connected layer whose weights are no constant."""

    def stack() -> list[Any]:
        steps = layers.EinsumDense("btf,fo->bto", (4, 5), activation=activation)
        return [steps, layers.Dense(6, activation=activation, use_bias=False), *head()]

    check(task_of(stack, (4, 3), optimizer=lambda: keras.optimizers.SGD(clipvalue=1.0)), tmp_path)


@pytest.mark.long
def test_a_shared_layers_weights_lie_where_each_use_reads_them(tmp_path: Path) -> None:
    def model() -> Any:
        x = keras.Input((5, 3))
        shared = layers.MultiHeadAttention(2, 2)
        ends = [layers.Flatten()(shared(y, y)) for y in (x, layers.Rescaling(0.5)(x))]
        return keras.Model(x, layers.Dense(3, activation="softmax")(layers.Concatenate()(ends)))

    check(task_of(list, (5, 3), model=model), tmp_path)


@pytest.mark.long
def test_a_vector_added_along_the_second_axis(tmp_path: Path) -> None:
    class Added(layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            self.vector = self.add_weight(shape=(shape[1], 1), name="vector")

        def call(self, x: Any) -> Any:
            return x + self.vector

    check(task_of(lambda: [Added(), *head()], (4, 3)), tmp_path)


@pytest.mark.long
def test_every_activation(tmp_path: Path) -> None:
    names = (
        "celu elu exponential gelu hard_shrink hard_sigmoid hard_silu hard_tanh leaky_relu linear log_sigmoid log_softmax "
        "mish relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign sparse_plus sparse_sigmoid squareplus tanh "
        "tanh_shrink"
    ).split()

    def model() -> Any:
        x = keras.Input((5,))
        exact = [
            lambda y: keras.activations.gelu(y, approximate=False),
            lambda y: keras.activations.threshold(y, 0.1, 0.0),
        ]
        branches = [layers.Activation(activation)(layers.Dense(4)(x)) for activation in (*names, *exact)]
        branches.append(layers.Lambda(keras.activations.glu, output_shape=(2,))(layers.Dense(4)(x)))
        return keras.Model(x, layers.Dense(3, activation="softmax")(layers.Concatenate()(branches)))

    check(task_of(list, (5,), model=model), tmp_path)


@pytest.mark.long
def test_merging_and_shared_layers(tmp_path: Path) -> None:
    def model() -> Any:
        x = keras.Input((8,))
        shared = layers.Dense(6, activation="tanh")
        a, b = shared(x), shared(layers.Dense(8)(x))
        pairs = [
            layers.Add(),
            layers.Subtract(),
            layers.Multiply(),
            layers.Average(),
            layers.Maximum(),
            layers.Minimum(),
        ]
        merged = [layer([a, b]) for layer in pairs]
        merged += [layers.Dot(1)([a, b]), layers.Dot(1, normalize=True)([a, b])]
        return keras.Model(x, layers.Dense(3, activation="softmax")(layers.Concatenate()(merged)))

    check(task_of(list, (8,), model=model), tmp_path)


def test_attention(tmp_path: Path) -> None:
    def model() -> Any:
        x = keras.Input((6, 8))
        y = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4, dropout=0.1)(x, x, use_causal_mask=True))
        y = layers.GlobalAveragePooling1D()(layers.GroupQueryAttention(4, 4, 2)(y, y))
        return keras.Model(x, layers.Dense(3, activation="softmax")(y))

    check(task_of(list, (6, 8), model=model), tmp_path)


@pytest.mark.parametrize(
    "optimizer", sample("sgd adam adamw rmsprop adagrad adamax nadam lion adadelta ftrl".split(), "adam")
)
def test_embeddings_train_their_batchs_rows(optimizer: str, tmp_path: Path) -> None:
    check(task_of(lambda: [layers.Embedding(11, 4), *head()], (5,), "int32", optimizer=optimizer), tmp_path)


@pytest.mark.long
def test_a_backward_recurrence_of_masked_time_steps(tmp_path: Path) -> None:
    def stack() -> list[Any]:
        both = layers.Bidirectional(layers.GRU(3, return_sequences=True))
        return [layers.Embedding(9, 4, mask_zero=True), both, layers.GRU(3), *head()]

    check(task_of(stack, (6,), "int32"), tmp_path)


@pytest.mark.long
def test_masked_time_steps_do_not_count(tmp_path: Path) -> None:
    def stack() -> list[Any]:
        recurrent = layers.LSTM(4, return_sequences=True)
        return [layers.Embedding(11, 4, mask_zero=True), recurrent, layers.Dense(3, activation="softmax")]

    plan = check(task_of(stack, (5,), "int32", targets=TensorSpec((5,), "int32")), tmp_path)
    assert plan.manifest.metrics[0].kind == "ratio"


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.long
def test_batch_norms_of_masked_time_steps(axis: int, tmp_path: Path) -> None:
    def stack() -> list[Any]:
        return [layers.Embedding(11, 4, mask_zero=True), layers.BatchNormalization(axis=axis), *head()]

    check(task_of(stack, (5,), "int32"), tmp_path)


def test_adapters_alone_train(tmp_path: Path) -> None:
    def model() -> Any:
        adapted = keras.Sequential(
            [
                keras.Input((5,), dtype="int32"),
                layers.Embedding(11, 4),
                layers.Flatten(),
                layers.Dense(6, activation="relu"),
                layers.Dense(3, activation="softmax"),
            ]
        )
        adapted.layers[0].enable_lora(2)
        adapted.layers[2].enable_lora(2)
        return adapted

    plan = check(task_of(list, (5,), "int32", model=model), tmp_path)
    assert {name.rpartition("/")[2] for name in plan.frozen_weights()} == {"embeddings", "kernel"}
    travelling = {w.name.rpartition("/")[2] for w in plan.manifest.weights}
    assert travelling == {"lora_embeddings_a", "lora_embeddings_b", "lora_kernel_a", "lora_kernel_b", "bias"} | {
        "kernel"
    }
    assert plan.initial_weights().keys() == {w.name for w in plan.manifest.weights}


@pytest.mark.long
def test_what_is_frozen_stays_on_the_device_and_moving_statistics_travel(tmp_path: Path) -> None:
    def stack() -> list[Any]:
        return [
            layers.Normalization(mean=[0.5, 0.4], variance=[1.0, 2.0]),
            layers.Conv2D(3, 2, trainable=False),
            layers.BatchNormalization(trainable=False, name="still"),
            layers.Conv2D(3, 2, name="conv"),
            layers.BatchNormalization(trainable=False, name="still_too"),
            layers.Activation("tanh"),
            layers.BatchNormalization(name="moving"),
            layers.Flatten(),
            layers.Dense(3, activation="softmax", name="head"),
        ]

    plan = check(task_of(stack), tmp_path)
    assert {w.name.rpartition("/")[0].rpartition("/")[2] for w in plan.manifest.weights} == {"conv", "moving", "head"}
    assert sum(not w.trainable for w in plan.manifest.weights) == 2
    assert len(plan.frozen_weights()) == 10
    assert {p.weight for maps in plan.manifest.weight_maps.values() for p in maps} == {
        w.name for w in plan.manifest.weights
    }


class Subclassed(keras.Model):  # type: ignore[misc]
    """Tied weights: the embedding is also the output's matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = layers.Embedding(7, 6)
        self.dense = layers.Dense(6, activation="tanh")

    def call(self, x: Any) -> Any:
        hidden = self.dense(self.embedding(x)) + keras.ops.sin(keras.ops.cast(x, "float32"))[..., None]
        return keras.ops.softmax(keras.ops.matmul(hidden, keras.ops.transpose(self.embedding.embeddings)))


@pytest.mark.long
def test_a_subclassed_model_with_tied_weights(tmp_path: Path) -> None:
    check(task_of(list, (4,), "int32", model=Subclassed, targets=TensorSpec((4,), "int32")), tmp_path)


def check(task: Task, folder: Path) -> Any:
    plan = compile_task(task, folder / "case.plan")
    assert set(plan.manifest.parity) - {"updates"} == {"loss", "metrics", "weights", "slots", "evaluate", "infer"}
    assert max(plan.manifest.parity[name] for name in ("loss", "weights", "evaluate", "infer")) <= 1e-4
    return plan
