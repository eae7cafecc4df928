"""What a device encodes the server decodes, within the size that it was told beforehand."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.unit.shared.updates.sample_steps import Clip, Int8, Largest, Mask
from umbel.errors import TensorError, UmbelError
from umbel.tensors import Tensors, WeightSpec, digest, dump
from umbel.updates import (
    Decoded,
    Pipeline,
    RefusedUpdate,
    Specs,
    Training,
    difference,
    exact_difference,
    largest_update,
    sum_of_squares,
)

DTYPES = ("float16", "float32", "float64", "int8", "int32", "int64", "uint8")
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="_@*"), min_size=1, max_size=40)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@st.composite
def drawn_specs(draw: st.DrawFn, dtypes: tuple[str, ...] = DTYPES) -> Specs:
    named = draw(st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(dtypes)), max_size=6))
    return tuple(WeightSpec(name, shape, dtype) for name, (shape, dtype) in named.items())


def numbers(specs: Specs, seed: int, scale: float = 1.0) -> Tensors:
    rng = np.random.default_rng(seed)
    return {spec.name: np.asarray(rng.normal(0, 40 * scale, spec.shape)).astype(spec.dtype) for spec in specs}


def any_bits(specs: Specs, seed: int) -> Tensors:
    """Tensors of any bits, NaN and infinities among them."""
    rng = np.random.default_rng(seed)
    return {
        spec.name: np.frombuffer(rng.bytes(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize), spec.dtype).reshape(
            spec.shape
        )
        for spec in specs
    }


def same_bits(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(
        (one[name].dtype, one[name].shape, one[name].tobytes()) == (tensor.dtype, tensor.shape, tensor.tobytes())
        for name, tensor in other.items()
    )


def squares(values: np.ndarray) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def arrived(pipeline: Pipeline, data: bytes, pieces: int = 1) -> Decoded:
    """What is decoded of a file that arrives in so many pieces."""
    file = np.zeros(len(data), np.uint8)

    def ends() -> object:
        for start, stop in pairwise(int(cut) for cut in np.linspace(0, len(data), pieces + 1)):
            file[start:stop] = np.frombuffer(data, np.uint8)[start:stop]
            yield stop

    return pipeline.decode(file, ends(), squares)  # type: ignore[arg-type]


def training(before: Tensors, examples: int = 5, seed: str = "1/phone") -> Training:
    return Training(before, examples, seed)


KNOWN = {
    "conv/kernel": ((3, 3, 2, 4), "float32"),
    "conv/bias": ((4,), "float32"),
    "norm/scale": ((), "float32"),
    "dense/kernel": ((17, 5), "float32"),
    "half/kernel": ((6,), "float16"),
    "none": ((0, 3), "float32"),
}


def known(seed: int) -> Tensors:
    """Numbers from integer arithmetic, the same on every machine."""
    made = {}
    for name, (shape, dtype) in KNOWN.items():
        whole = (np.arange(math.prod(shape), dtype=np.int64) * 7919 + seed * 104729) % 20011 - 10000
        made[name] = (whole.astype(np.float64) / (3000 * (seed + 1))).astype(dtype).reshape(shape)
    return made


def test_the_bytes_of_the_plain_path_are_those_of_the_first_release() -> None:
    before, after = known(1), known(2)
    pipeline = Pipeline([WeightSpec(name, shape, dtype) for name, (shape, dtype) in KNOWN.items()])
    data = pipeline.encode(difference(after, before), training(before))
    assert data == dump({name: after[name] - weight for name, weight in before.items()})
    assert digest(data) == "f769b4a321e8827f4166da3f5440d8c539a61a80b3bc72374c577c05970fa545"


@given(drawn_specs(), st.integers(0, 2**32), st.integers(1, 9))
def test_a_plain_update_is_decoded_to_the_bit_and_is_no_larger_than_was_said(
    specs: Specs, seed: int, pieces: int
) -> None:
    before = any_bits(specs, seed)
    with np.errstate(all="ignore"):
        delta = difference(any_bits(specs, seed + 1), before)
    pipeline = Pipeline(specs)
    data = pipeline.encode(delta, training(before))
    assert len(data) <= pipeline.largest == largest_update(specs)
    assert int.from_bytes(data[:8], "little") <= pipeline.largest_header
    decoded = arrived(pipeline, data, pieces)
    assert same_bits(decoded.delta, delta)
    assert same_bits(pipeline.decode_again(data), delta)
    assert decoded.places.keys() == delta.keys()
    for name, place in decoded.places.items():
        assert data[place.start : place.stop] == delta[name].tobytes()


@given(drawn_specs(("float32",)), st.integers(0, 2**32), st.integers(1, 9))
def test_squares_are_summed_as_the_pieces_of_a_float32_update_arrive(specs: Specs, seed: int, pieces: int) -> None:
    delta = numbers(specs, seed)
    decoded = arrived(Pipeline(specs), dump(delta), pieces)
    expected = sum_of_squares(delta, squares)
    if decoded.squares is not None:  # None when the header was not there whole with the first piece
        assert decoded.squares == pytest.approx(expected)
    assert Pipeline(specs).vet("phone", delta, squares, decoded.squares) == pytest.approx(math.sqrt(expected))


@given(drawn_specs(("float32",)), st.integers(0, 2**32), st.floats(0.01, 100), st.integers(1, 30))
def test_steps_are_undone_in_their_order_and_bound_what_is_sent(
    specs: Specs, seed: int, norm: float, count: int
) -> None:
    before, delta = numbers(specs, seed), numbers(specs, seed + 1)
    pipeline = Pipeline(specs, [Clip(norm), Largest(count), Int8()])
    data = pipeline.encode(delta, training(before))
    assert data == pipeline.encode(delta, training(before)), "the same training gives the same bytes"
    assert len(data) <= pipeline.largest
    decoded = arrived(pipeline, data, 3)
    assert {name: (tensor.shape, tensor.dtype.name) for name, tensor in decoded.delta.items()} == {
        spec.name: (spec.shape, spec.dtype) for spec in specs
    }
    assert (decoded.places, decoded.squares) == ({}, None), "what lies in the file is not the delta"
    assert same_bits(pipeline.decode_again(data), decoded.delta)
    clipped = Clip(norm).encode(delta, training(before))
    for name, tensor in decoded.delta.items():
        wanted = clipped[name].reshape(-1)
        kept = np.argsort(-np.abs(wanted), kind="stable")[:count]
        step = np.abs(wanted).max(initial=0.0) / 127
        np.testing.assert_allclose(tensor.reshape(-1)[kept], wanted[kept], rtol=0, atol=1.001 * step + 1e-30)
        assert np.count_nonzero(tensor) <= count


def test_compression_lowers_the_largest_upload() -> None:
    specs = (WeightSpec("w", (1000, 1000)),)
    assert Pipeline(specs, [Int8()]).largest < 0.3 * largest_update(specs)
    assert Pipeline(specs, [Largest(1000), Int8()]).largest < 0.03 * largest_update(specs)


def test_another_device_and_another_step_draw_other_numbers() -> None:
    def drawn(seed: str, step: str) -> float:
        return training({}, seed=seed).generator(step).random()

    assert drawn("1/a", "noise") == drawn("1/a", "noise")
    assert len({drawn("1/a", "noise"), drawn("1/b", "noise"), drawn("2/a", "noise"), drawn("1/a", "round")}) == 4


SPECS = (WeightSpec("a", (2, 3)), WeightSpec("b", (4,)))


def test_what_a_step_cannot_have_made_is_refused() -> None:
    delta = numbers(SPECS, 1)
    pipeline = Pipeline(SPECS, [Clip(1.0)])
    assert pipeline.vet("phone", arrived(pipeline, pipeline.encode(delta, training({}))).delta, squares) <= 1.001
    with pytest.raises(RefusedUpdate, match="the update of phone: a norm of at most 1 was expected after clipping"):
        pipeline.vet("phone", delta, squares)
    largest = Pipeline(SPECS, [Largest(2)])
    sent = largest.apply(delta, training({}))
    for places in ([-1, 2], [2, 2], [3, 2], [0, 6]):
        with pytest.raises(TensorError, match="places in 'a' should ascend"):
            arrived(largest, dump(sent | {"a@": np.array(places)}))
    with pytest.raises(TensorError, match=r"tensor 'a@' should be int64\[2\], got int32\[2\]"):
        arrived(largest, dump(sent | {"a@": np.zeros(2, np.int32)}))
    with pytest.raises(TensorError, match="tensor 'b' is missing"):
        arrived(largest, dump({name: tensor for name, tensor in sent.items() if name != "b"}))


def test_names_shapes_and_dtypes_are_those_of_the_plan() -> None:
    delta = numbers(SPECS, 1)
    for wrong, sentence in (
        ({"a": delta["a"]}, r"tensor 'b' is missing \(1 of 2 missing\)"),
        (delta | {"c" * 500: delta["b"]}, f"tensor '{'c' * 200}' is not one of the plan's 2 weights"),
        (delta | {"b": np.zeros(4)}, r"tensor 'b' should be float32\[4\], got float64\[4\]"),
        (delta | {"b": np.float32([0, 1, np.inf, 0])}, "tensor 'b' holds NaN or infinity"),
    ):
        with pytest.raises(RefusedUpdate, match=f"the update of phone: {sentence}"):
            Pipeline(SPECS).vet("phone", wrong, squares)


def test_a_delta_is_folded_as_one_vector_in_the_order_of_names() -> None:
    pipeline, added = Pipeline(SPECS[::-1]), list[tuple[list[np.ndarray], list[float]]]()
    delta = numbers(SPECS, 1)
    in_place = arrived(pipeline, dump(delta)).delta
    pipeline.fold([delta, in_place], [2.0, 3.0], lambda vectors, weights: added.append((list(vectors), list(weights))))
    ((copied, viewed), weights) = added[0]
    assert weights == [2.0, 3.0]
    assert copied.tolist() == viewed.tolist() == [*delta["a"].reshape(-1), *delta["b"]]
    assert np.shares_memory(viewed, in_place["a"])
    assert (pipeline.starts["a"], pipeline.starts["b"], pipeline.size) == (0, 6, 10)
    with pytest.raises(TensorError, match=r"tensor 'b' should have shape \[4\], got \[5\]"):
        pipeline.fold([delta | {"b": np.zeros(5)}], [1.0], lambda vectors, weights: None)


def test_masks_cancel_in_a_sum_of_what_no_single_update_shows() -> None:
    masks, examples = [3_000_000_000, -1_234_567_890, 0], [3, 10, 1]
    masks[2] = -sum(masks)
    deltas = [numbers(SPECS, seed, 0.01) for seed in range(3)]
    total = np.zeros(10, np.uint32)

    def add(vectors: list[np.ndarray], weights: list[float]) -> None:
        for vector in vectors:
            np.add(total, vector, out=total)  # modulo 2**32

    for mask, count, delta in zip(masks, examples, deltas, strict=True):
        pipeline = Pipeline(SPECS, [Mask(mask)])
        data = pipeline.encode(delta, training({}, count))
        assert len(data) <= pipeline.largest
        pipeline.fold([arrived(pipeline, data).delta], [1.0], add)  # type: ignore[arg-type]
    for name, start in pipeline.starts.items():
        wanted = sum(count * delta[name].reshape(-1) for count, delta in zip(examples, deltas, strict=True))
        found = Mask(0).opened(total)[start : start + wanted.size]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=3 * 2.0**-16)


def test_on_flowers_grid_whole_weights_travel() -> None:
    before, after = known(1), known(2)
    specs = [WeightSpec(name, weight.shape, weight.dtype.name) for name, weight in before.items()]
    assert Pipeline(specs).whole_weights(after, training(before)) is after
    for name, delta in exact_difference(after, before).items():
        assert delta.dtype == np.float64
        assert (delta == after[name].astype(np.float64) - before[name]).all()
    halved = Pipeline(specs, [Clip(0.5)]).whole_weights(after, training(before))
    moved = exact_difference(halved, before)
    assert math.sqrt(sum_of_squares(moved, squares)) == pytest.approx(0.5, rel=1e-3)
    with pytest.raises(UmbelError, match="Flower's own grid cannot carry"):
        Pipeline(specs, [Int8()]).whole_weights(after, training(before))
