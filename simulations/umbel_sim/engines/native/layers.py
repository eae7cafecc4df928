"""What the compiled engine trains: a chain of stock Keras layers, softmax and cross entropy, plain SGD."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from umbel.errors import UmbelError
from umbel.task import Task

DENSE, CONVOLUTION, MAX_POOLING, AVERAGE_POOLING, RESHAPE = range(5)
ACTIVATIONS = {"linear": 0, "relu": 1, "sigmoid": 2, "tanh": 3}

_ACCURACY = ("accuracy", "acc", "sparse_categorical_accuracy")
_CROSS_ENTROPY = "sparse_categorical_crossentropy"
_CROSS_ENTROPIES = ("SparseCategoricalCrossentropy", "LossFunctionWrapper")
_STOCK = "keras.src."
_RESHAPING = ("Flatten", "Reshape")


class Unsupported(UmbelError):
    """A task that is not of the kind that this engine trains; the message says why."""


@dataclass(frozen=True)
class Layer:
    """One layer: sizes are of one example, images are [height, width, channels] and vectors are images of one pixel.

    `pad` is what is added above and to the left. `kernel` and `bias` are the paths of its weights, "" where it has none.
    """

    kind: int
    inputs: tuple[int, int, int]
    outputs: tuple[int, int, int]
    activation: int = 0
    window: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    kernel: str = ""
    bias: str = ""

    @property
    def numbers(self) -> tuple[int, ...]:
        """The layer as the numbers of the C struct `Shape` in net.c, in the order of its fields."""
        sizes = (*self.inputs, *self.outputs, *self.window, *self.strides, *self.pad)
        return (self.kind, self.activation, *sizes, int(bool(self.bias)))


@dataclass(frozen=True)
class Chain:
    """Layers from the input `x` to the logits of the classes `y`; `accuracy` is the metric's name, "" for none."""

    layers: tuple[Layer, ...]
    x: str
    y: str
    accuracy: str


def chain_of(task: Task) -> Chain:
    """The task as a chain; raises Unsupported when it is another kind of task, and TaskError when it is none."""
    from umbel_server.compiler.keras_model import keras_parts

    (x, given), (y, classes) = _only(task.input_specs.items(), "inputs"), _only(task.target_specs.items(), "targets")
    if given.dtype != "float32":
        _refuse(f"inputs of {given.dtype}")
    if classes.shape not in ((), (1,)) or not classes.dtype.startswith(("int", "uint")):
        _refuse(f"targets {list(classes.shape)} of {classes.dtype}: one class an example")
    parts = keras_parts(task, 0)
    _check_optimizer(parts.optimizer)
    loss, factor = _only(parts.losses.values(), "outputs")
    if type(loss).__name__ not in _CROSS_ENTROPIES or not _is_stock(loss) or factor != 1.0:
        _refuse(f"the loss {loss.name}")
    if loss.fn.__name__ != _CROSS_ENTROPY or not loss.fn.__module__.startswith(_STOCK):
        _refuse(f"the loss {loss.fn.__name__}")
    options = {"ignore_class": None, "axis": -1} | loss._fn_kwargs
    logits = bool(options.pop("from_logits", False))
    if options != {"ignore_class": None, "axis": -1}:
        _refuse(f"{_CROSS_ENTROPY} with {', '.join(sorted(options))}")
    layers, last = _layers(parts.model, given.shape)
    if last != ("linear" if logits else "softmax"):
        _refuse(f"an output that is {last} and loss from_logits={logits}")
    if sum(bool(layer.kernel) + bool(layer.bias) for layer in layers) != len(parts.model.weights):
        _refuse("weights that its layers do not name")
    return Chain(layers, x, y, _accuracy(task))


def _only(values: Iterable[Any], what: str) -> Any:
    found = tuple(values)
    if len(found) != 1:
        _refuse(f"{len(found)} {what}")
    return found[0]


def _refuse(what: str) -> NoReturn:
    raise Unsupported(f"the native engine does not train {what}; use --engine auto, or litert")


def _accuracy(task: Task) -> str:
    metrics = task.metrics
    if not isinstance(metrics, tuple):
        _refuse("metrics by output")
    if not metrics:
        return ""
    if len(metrics) > 1 or metrics[0] not in _ACCURACY:
        _refuse(f"metrics other than {_ACCURACY[0]}")
    return str(metrics[0])


def _check_optimizer(optimizer: Any) -> None:
    asked = {name: getattr(optimizer, name, None) for name in ("momentum", "nesterov", "weight_decay")}
    asked |= {name: getattr(optimizer, name, None) for name in ("clipnorm", "clipvalue", "global_clipnorm")}
    asked["loss_scale_factor"] = optimizer.loss_scale_factor
    wanted = [name for name, value in asked.items() if value]
    if type(optimizer).__name__ != "SGD" or not _is_stock(optimizer) or wanted:
        _refuse(f"{type(optimizer).__name__}{' with ' + ', '.join(wanted) if wanted else ''}: plain SGD only")


def _is_stock(thing: Any) -> bool:
    return type(thing).__module__.startswith(_STOCK)


def _layers(model: Any, shape: tuple[int, ...]) -> tuple[tuple[Layer, ...], str]:
    """The chain of a model's layers, and the last one's activation by name."""
    if type(model).__name__ not in ("Sequential", "Functional") or not _is_stock(model):
        _refuse(f"a model of the class {type(model).__name__}")
    chain: list[Layer] = []
    last, pending = "linear", False
    tensor = model.inputs[0]
    for layer in model.layers:
        kind = type(layer).__name__
        if kind == "InputLayer":
            continue
        if not _is_stock(layer):
            _refuse(f"layers of its own such as {layer.name}")
        if len(layer._inbound_nodes) > 2 or layer.input is not tensor:  # Sequential calls its layers twice
            _refuse(f"models that are no chain of layers ({layer.name})")
        if getattr(layer, "activity_regularizer", None) is not None:
            _refuse(f"{layer.name}, which has an activity_regularizer")
        tensor = layer.output
        before, shape = shape, tuple(int(size) for size in layer.compute_output_shape((1, *shape))[1:])
        if pending:
            _refuse(f"{last} before the end")
        if kind in ("Activation", "ReLU", "Softmax"):
            if last != "linear" or not chain or not chain[-1].kernel:
                _refuse(f"{kind} ({layer.name}) that does not follow a layer with weights")
            last = _activation(layer, kind)
            chain[-1] = _with_activation(chain[-1], last)
        else:
            made, last = _layer(layer, kind, before, shape)
            chain.append(made)
        pending = last == "softmax"
    if not chain or not chain[-1].kernel or chain[-1].kind != DENSE or tensor is not model.outputs[0]:
        _refuse("models that do not end in a Dense layer")
    if shape[-1] < 2:
        _refuse("models of a single class")
    return tuple(chain), last


def _activation(layer: Any, kind: str) -> str:
    if kind == "Activation":
        return _name(layer.activation, layer)
    if kind == "ReLU":
        if layer.max_value is not None or layer.negative_slope or layer.threshold:
            _refuse(f"ReLU with options ({layer.name})")
        return "relu"
    if layer.axis != -1:
        _refuse(f"Softmax over another axis ({layer.name})")
    return "softmax"


def _name(function: Any, layer: Any) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    if (name not in ACTIVATIONS and name != "softmax") or not getattr(function, "__module__", "").startswith(_STOCK):
        _refuse(f"the activation {name} ({layer.name})")
    return str(name)


def _with_activation(layer: Layer, name: str) -> Layer:
    return replace(layer, activation=ACTIVATIONS.get(name, 0))


def _layer(layer: Any, kind: str, before: tuple[int, ...], after: tuple[int, ...]) -> tuple[Layer, str]:
    if kind in _RESHAPING:
        if kind == "Flatten" or len(after) in (1, 2, 3):
            return Layer(RESHAPE, _image(before, layer), _image(after, layer)), "linear"
        _refuse(f"a Reshape to {list(after)} ({layer.name})")
    if kind == "Dense":
        if len(before) != 1:
            _refuse(f"Dense over images ({layer.name})")
        name = _name(layer.activation, layer)
        kernel, bias = _weights(layer)
        own = Layer(
            DENSE, _image(before, layer), _image(after, layer), ACTIVATIONS.get(name, 0), kernel=kernel, bias=bias
        )
        return own, name
    if kind == "Conv2D":
        if layer.groups != 1 or tuple(layer.dilation_rate) != (1, 1):
            _refuse(f"Conv2D with groups or dilation ({layer.name})")
        name = _name(layer.activation, layer)
        kernel, bias = _weights(layer)
        window, strides = _pair(layer.kernel_size), _pair(layer.strides)
        pad = _pad(layer, before, after, window, strides)
        activation = ACTIVATIONS.get(name, 0)
        return Layer(
            CONVOLUTION, _image(before, layer), _image(after, layer), activation, window, strides, pad, kernel, bias
        ), name
    if kind in ("MaxPooling2D", "AveragePooling2D"):
        window, strides = _pair(layer.pool_size), _pair(layer.strides)
        pad = _pad(layer, before, after, window, strides)
        pooling = MAX_POOLING if kind == "MaxPooling2D" else AVERAGE_POOLING
        return Layer(pooling, _image(before, layer), _image(after, layer), 0, window, strides, pad), "linear"
    if kind == "GlobalAveragePooling2D" and not layer.keepdims:
        return Layer(AVERAGE_POOLING, _image(before, layer), (1, 1, after[-1]), 0, _pair(before), (1, 1)), "linear"
    _refuse(f"{kind} layers ({layer.name})")


def _image(shape: tuple[int, ...], layer: Any) -> tuple[int, int, int]:
    if not 1 <= len(shape) <= 3:
        _refuse(f"shapes such as {list(shape)} ({layer.name})")
    padded = (1,) * (3 - len(shape)) + shape
    return padded[0], padded[1], padded[2]


def _pair(sizes: Any) -> tuple[int, int]:
    return int(sizes[0]), int(sizes[1])


def _pad(
    layer: Any, before: tuple[int, ...], after: tuple[int, ...], window: tuple[int, int], strides: tuple[int, int]
) -> tuple[int, int]:
    """What TensorFlow adds above and to the left: half of what is missing, rounded down."""
    if layer.padding == "valid":
        return 0, 0
    missing = [max((after[i] - 1) * strides[i] + window[i] - before[i], 0) // 2 for i in range(2)]
    return missing[0], missing[1]


def _weights(layer: Any) -> tuple[str, str]:
    rules = ("kernel_regularizer", "bias_regularizer", "kernel_constraint", "bias_constraint")
    asked = [rule for rule in rules if getattr(layer, rule, None) is not None]
    if asked or not layer.trainable or getattr(layer, "lora_enabled", False) or layer.quantization_mode:
        _refuse(f"{layer.name}, which {'has a ' + asked[0] if asked else 'is frozen, or is no plain layer'}")
    if str(layer.compute_dtype) != "float32":
        _refuse(f"{layer.name}, which computes in {layer.compute_dtype}")
    return str(layer.kernel.path), str(layer.bias.path) if layer.use_bias else ""
