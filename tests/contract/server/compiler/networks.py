"""Random small networks and how to train them: drawn as data, so that a failure prints a recipe that can be built again."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from umbel import Task, TensorSpec
from umbel.keras_import import import_keras

import_keras()
import keras  # noqa: E402
from keras import layers  # noqa: E402

Draw = Callable[[Any], Any]
Shape = tuple[int, ...]
Choice = Callable[[Draw, Shape], "Made"]
VOCABULARY, CLASSES = 9, 3
SHAPES = [((7, 6, 2), False), ((5, 5, 4), False), ((5, 3), False), ((6,), False), ((4,), True)]
_LARGEST = 400
"""Elements of one example between two layers: compilation should take seconds."""


@dataclass(frozen=True)
class Made:
    """A Keras layer by name, its options, and for a wrapper the layer inside."""

    kind: str
    options: dict[str, Any]
    inner: "Made | None" = None

    def build(self) -> Any:
        """A fresh layer."""
        if self.kind in ("MultiHeadAttention", "GroupQueryAttention"):
            return SelfAttention(self.kind, **self.options)
        made = getattr(layers, self.kind)
        return made(self.inner.build(), **self.options) if self.inner else made(**self.options)


class SelfAttention(layers.Layer):  # type: ignore[misc]
    """Attention of a series to itself, beside which the series passes."""

    def __init__(self, kind: str, causal: bool, trainable: bool = True, **options: Any) -> None:
        super().__init__(trainable=trainable)
        self.attention, self.causal, self.supports_masking = getattr(layers, kind)(**options), causal, True

    def build(self, shape: Any) -> None:
        self.attention.build(shape, shape)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape

    def call(self, x: Any) -> Any:
        return x + self.attention(x, x, use_causal_mask=self.causal)


@dataclass(frozen=True)
class Head:
    """What ends a network for a kind of loss: size, activation, target, and the metrics that go with it."""

    size: int
    activation: str
    target: TensorSpec
    metrics: tuple[str, ...]


_NUMBERS = Head(2, "softplus", TensorSpec((2,)), ("MeanAbsoluteError", "MeanSquaredError", "RootMeanSquaredError"))
_RATIO = Head(1, "softplus", TensorSpec((1,)), _NUMBERS.metrics)
_ONE_HOT = Head(CLASSES, "softmax", TensorSpec((CLASSES,)), ("CategoricalAccuracy", "MeanAbsoluteError"))
_SPARSE = Head(CLASSES, "softmax", TensorSpec((), "int32"), ("SparseCategoricalAccuracy",))
_BINARY = Head(1, "sigmoid", TensorSpec((1,), "int32"), ("BinaryAccuracy", "Precision", "Recall", "AUC"))
_NAMES = {
    _SPARSE: "SparseCategoricalCrossentropy",
    _ONE_HOT: "CategoricalCrossentropy CategoricalFocalCrossentropy KLDivergence Poisson CategoricalHinge",
    _BINARY: "BinaryCrossentropy BinaryFocalCrossentropy Hinge SquaredHinge",
    _NUMBERS: "MeanSquaredError MeanAbsoluteError MeanSquaredLogarithmicError Huber LogCosh CosineSimilarity",
    _RATIO: "MeanAbsolutePercentageError",
}
HEADS = {name: head for head, names in _NAMES.items() for name in names.split()}
# These divide by what is often almost nothing: with Keras's own epsilon rounding would decide where weights go.
_EPSILON = {"epsilon": [1e-3]}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": [0.0, 0.9], "nesterov": [False, True]},
    "Adam": {"amsgrad": [False, True], **_EPSILON},
    "AdamW": {"weight_decay": [0.004, 0.1], **_EPSILON},
    "RMSprop": {"centered": [False, True], "momentum": [0.0, 0.5], **_EPSILON},
    "Adagrad": {},
    "Adamax": _EPSILON,
    "Nadam": _EPSILON,
    "Lion": {"weight_decay": [None, 0.01]},
}
MERGES = ("Concatenate", "Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Dot")
ACTIVATIONS = (
    "linear relu relu6 tanh sigmoid elu selu gelu silu softplus softsign leaky_relu hard_sigmoid hard_silu mish softmax "
    "log_softmax celu hard_tanh squareplus"
).split()


@dataclass(frozen=True)
class Network:
    """A stem, branches from it that are merged, a head, and what trains it."""

    shape: Shape
    tokens: bool
    stem: tuple[Made, ...]
    branches: tuple[tuple[Made, ...], ...]
    shared: bool
    merge: str
    loss: str
    loss_options: dict[str, Any]
    metrics: tuple[str, ...]
    optimizer: str
    optimizer_options: dict[str, Any]
    batch_size: int

    def task(self) -> Task:
        """The task that trains it."""
        return Task(
            name="random",
            model=self._model,
            loss=lambda: getattr(keras.losses, self.loss)(**self.loss_options),
            inputs=TensorSpec(self.shape, "int32" if self.tokens else "float32"),
            targets=HEADS[self.loss].target,
            optimizer=lambda: getattr(keras.optimizers, self.optimizer)(**self.optimizer_options),
            metrics=tuple(getattr(keras.metrics, name) for name in self.metrics),
            batch_size=self.batch_size,
        )

    def _model(self) -> Any:
        head = HEADS[self.loss]
        x = keras.Input(self.shape, dtype="int32" if self.tokens else "float32")
        stem = _through([made.build() for made in self.stem], x)
        built = [[made.build() for made in branch] for branch in self.branches]
        ends = [layers.Flatten()(_through(branch, stem)) for branch in built]
        if self.shared:
            ends.append(layers.Flatten()(_through(built[0], layers.Rescaling(0.5, 0.1)(stem))))
        if len(ends) > 1 and self.merge != "Concatenate":
            ends = [layers.Dense(4, activation="tanh")(end) for end in ends]
        if self.merge in ("Subtract", "Dot"):
            ends = ends[:2]
        options = {"axes": 1} if self.merge == "Dot" else {}
        merged = ends[0] if len(ends) == 1 else getattr(layers, self.merge)(**options)(ends)
        activation = "linear" if self.loss_options.get("from_logits") else head.activation
        return keras.Model(x, layers.Dense(head.size, activation=activation)(merged))


@st.composite
def networks(draw: Draw) -> Network:
    """A network of the layers, losses, metrics and optimizers that the compiler supports."""
    shape, tokens = draw(st.sampled_from(SHAPES))
    stem, after = [], shape
    if tokens:
        stem = [Made("Embedding", {"input_dim": VOCABULARY, "output_dim": 4, "mask_zero": draw(st.booleans())})]
        after = (*shape, 4)
    more, after = _stack(draw, after, 2)
    branches = tuple(_stack(draw, after, 3)[0] for _ in range(draw(st.integers(1, 3))))
    loss = draw(st.sampled_from(sorted(HEADS)))
    options_of_loss = _loss_options(draw, loss)
    optimizer = draw(st.sampled_from(sorted(OPTIMIZERS)))
    options = {name: draw(st.sampled_from(values)) for name, values in OPTIMIZERS[optimizer].items()}
    clip = draw(st.sampled_from(["", "", "clipnorm", "clipvalue", "global_clipnorm"]))
    return Network(
        shape,
        tokens,
        (*stem, *more),
        branches,
        draw(st.booleans()),
        draw(st.sampled_from(MERGES)),
        loss,
        options_of_loss,
        _metrics(draw, loss, options_of_loss),
        optimizer,
        {"learning_rate": 0.01, **options, **({clip: 0.1} if clip else {})},
        draw(st.sampled_from([1, 2, 5])),
    )


def _through(stack: list[Any], x: Any) -> Any:
    for layer in stack:
        x = layer(x)
    return x


def _loss_options(draw: Draw, loss: str) -> dict[str, Any]:
    if not loss.endswith("entropy"):
        return {}
    options: dict[str, Any] = {"from_logits": draw(st.booleans())}
    if not loss.startswith("Sparse"):
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.1]))
    return options


def _metrics(draw: Draw, loss: str, options: dict[str, Any]) -> tuple[str, ...]:
    # Keras's AUC takes probabilities, and counts logits below 0 and over 1 as it comes.
    known = [name for name in HEADS[loss].metrics if name != "AUC" or not options.get("from_logits")]
    return tuple(sorted(draw(st.sets(st.sampled_from(known)))))


def _stack(draw: Draw, shape: Shape, most: int) -> tuple[tuple[Made, ...], Shape]:
    stack: list[Made] = []
    for _ in range(draw(st.integers(0, most))):
        made = draw(st.sampled_from(CHOICES[min(len(shape), 3)] + CHOICES[0]))(draw, shape)
        after = _shape_after(made, shape)
        if after is not None:
            stack.append(made)
            shape = after
    return tuple(stack), shape


def _shape_after(made: Made, shape: Shape) -> Shape | None:
    """The shape that the layer makes of `shape`, None when it does not take it or makes too much of it."""
    state = random.getstate()  # Keras draws seeds, and hypothesis wants to be the only one who draws
    try:
        after = made.build()(keras.KerasTensor((2, *shape))).shape[1:]
    except ValueError:
        return None
    finally:
        random.setstate(state)
    return tuple(after) if 0 < math.prod(after) <= _LARGEST else None


def _conv(draw: Draw, shape: Shape) -> Made:
    rank = len(shape) - 1
    paddings = ["same", "valid", "causal"] if rank == 1 else ["same", "valid"]
    groups = draw(st.sampled_from([n for n in (1, 2) if shape[-1] % n == 0]))
    options = {
        "filters": groups * draw(st.integers(1, 3)),
        "kernel_size": tuple(draw(st.integers(1, 3)) for _ in range(rank)),
        "padding": draw(st.sampled_from(paddings)),
        "groups": groups,
        **_pace(draw),
        **_common(draw),
    }
    return Made(f"Conv{rank}D", options)


def _pace(draw: Draw) -> dict[str, int]:
    """Strides or dilation: Keras takes one of the two."""
    return draw(st.sampled_from([{}, {"strides": 2}, {"strides": 3}, {"dilation_rate": 2}]))


def _common(draw: Draw) -> dict[str, Any]:
    return {
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "use_bias": draw(st.booleans()),
        "trainable": draw(st.sampled_from([True, True, True, False])),
    } | draw(st.sampled_from([{}, {"bias_regularizer": "l1"}, {"activity_regularizer": "l2"}]))


def _depthwise(draw: Draw, shape: Shape) -> Made:
    kind, rank = draw(st.sampled_from(["DepthwiseConv", "SeparableConv"])), len(shape) - 1
    options = {
        "kernel_size": draw(st.integers(1, 3)),
        "padding": draw(st.sampled_from(["same", "valid"])),
        "depth_multiplier": draw(st.integers(1, 2)),
        "depthwise_regularizer": draw(st.sampled_from([None, "l2"])),
        **_pace(draw),
        **_common(draw),
    }
    return Made(f"{kind}{rank}D", options | ({"filters": draw(st.integers(1, 4))} if kind == "SeparableConv" else {}))


def _transposed(draw: Draw, shape: Shape) -> Made:
    options = {
        "filters": draw(st.integers(1, 3)),
        "kernel_size": draw(st.integers(1, 3)),
        "strides": draw(st.integers(1, 2)),
        "padding": draw(st.sampled_from(["same", "valid"])),
        **_common(draw),
    }
    return Made(f"Conv{len(shape) - 1}DTranspose", options)


def _pool(draw: Draw, shape: Shape) -> Made:
    kind = draw(st.sampled_from(["Max", "Average", "GlobalMax", "GlobalAverage"]))
    if kind.startswith("Global"):
        return Made(f"{kind}Pooling{len(shape) - 1}D", {"keepdims": draw(st.booleans())})
    options = {
        "pool_size": draw(st.integers(1, 3)),
        "strides": draw(st.sampled_from([None, 1, 2])),
        "padding": draw(st.sampled_from(["same", "valid"])),
    }
    return Made(f"{kind}Pooling{len(shape) - 1}D", options)


def _margins(draw: Draw, shape: Shape) -> Made:
    kind, rank = draw(st.sampled_from(["ZeroPadding", "Cropping", "UpSampling"])), len(shape) - 1
    sides = st.tuples(st.integers(0, 1), st.integers(0, 2))
    if kind == "UpSampling":
        options = {"interpolation": draw(st.sampled_from(["nearest", "bilinear"]))} if rank == 2 else {}
        return Made(f"{kind}{rank}D", {"size": draw(st.integers(1, 2)), **options})
    amount = draw(sides) if rank == 1 else (draw(sides), draw(sides))
    return Made(f"{kind}{rank}D", {"padding" if kind == "ZeroPadding" else "cropping": amount})


def _recurrent(draw: Draw, _shape: Shape) -> Made:
    kind = draw(st.sampled_from(["LSTM", "GRU", "SimpleRNN"]))
    options: dict[str, Any] = {
        "units": draw(st.integers(1, 4)),
        "return_sequences": draw(st.booleans()),
        "go_backwards": draw(st.booleans()),
        "recurrent_dropout": draw(st.sampled_from([0.0, 0.2])),
        "dropout": draw(st.sampled_from([0.0, 0.2])),
        "kernel_regularizer": draw(st.sampled_from([None, "l2"])),
    }
    if kind == "GRU":
        options["reset_after"] = draw(st.booleans())
    inner = Made(kind, options)
    if draw(st.booleans()):
        return Made("Bidirectional", {"merge_mode": draw(st.sampled_from(["sum", "mul", "ave", "concat"]))}, inner)
    return inner


def _attention(draw: Draw, _shape: Shape) -> Made:
    causal, trainable = draw(st.booleans()), draw(st.sampled_from([True, True, False]))
    if draw(st.booleans()):
        return Made("MultiHeadAttention", {"num_heads": 2, "key_dim": 2, "causal": causal, "trainable": trainable})
    options = {"num_query_heads": 4, "num_key_value_heads": 2, "head_dim": 2}
    return Made("GroupQueryAttention", {**options, "causal": causal, "trainable": trainable})


def _by_step(draw: Draw, shape: Shape) -> Made:
    return Made("TimeDistributed", {}, _dense(draw, shape))


def _rearranged(draw: Draw, shape: Shape) -> Made:
    kind = draw(st.sampled_from(["Permute", "Reshape", "Flatten"]))
    if kind == "Permute":
        return Made(kind, {"dims": tuple(draw(st.permutations(range(1, len(shape) + 1))))})
    return Made(kind, {} if kind == "Flatten" else {"target_shape": (math.prod(shape[:-1]) or 1, shape[-1])})


def _dense(draw: Draw, _shape: Shape) -> Made:
    regularizer = draw(st.sampled_from([None, None, "l1", "l2", "l1_l2", "orthogonal_regularizer"]))
    return Made("Dense", {"units": draw(st.integers(1, 6)), "kernel_regularizer": regularizer, **_common(draw)})


def _repeat(draw: Draw, _shape: Shape) -> Made:
    return Made("RepeatVector", {"n": draw(st.integers(1, 3))})


def _norm(draw: Draw, shape: Shape) -> Made:
    kind = draw(st.sampled_from(["Batch", "Layer", "Group", "RMS", "Unit"]))
    options: dict[str, Any] = {}
    if kind in ("Batch", "Layer"):
        options = {"scale": draw(st.booleans()), "center": draw(st.booleans())}
    if kind == "Layer":
        options["axis"] = draw(st.sampled_from([-1, tuple(range(1, len(shape) + 1))]))
    if kind == "Batch":
        options |= {"momentum": draw(st.sampled_from([0.9, 0.99])), "axis": draw(st.integers(1, len(shape)))}
    if kind == "Group":
        options["groups"] = draw(st.sampled_from([n for n in (1, 2, -1) if shape[-1] % n == 0]))
    if kind != "Unit":
        options["trainable"] = draw(st.sampled_from([True, True, False]))
    return Made(f"{kind}Normalization", options)


def _elementwise(draw: Draw, shape: Shape) -> Made:
    kinds: list[tuple[str, dict[str, Any]]] = [
        *(("Activation", {"activation": name}) for name in ACTIVATIONS),
        ("PReLU", {}),
        ("LeakyReLU", {"negative_slope": 0.2}),
        ("ReLU", {"max_value": 0.7, "negative_slope": 0.1, "threshold": 0.1}),
        ("Rescaling", {"scale": 2.0, "offset": -0.5}),
        ("Dropout", {"rate": 0.3}),
        ("GaussianNoise", {"stddev": 0.2}),
        *([(f"SpatialDropout{len(shape) - 1}D", {"rate": 0.3})] if len(shape) > 1 else []),
    ]
    return Made(*draw(st.sampled_from(kinds)))


CHOICES: dict[int, list[Choice]] = {
    0: [_dense, _norm, _elementwise, _rearranged],
    1: [_repeat],
    2: [_conv, _depthwise, _transposed, _pool, _margins, _recurrent, _attention, _by_step],
    3: [_conv, _depthwise, _transposed, _pool, _margins],
}
