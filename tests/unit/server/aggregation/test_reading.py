"""Updates read once: memory that is used again, sums of squares on the way, and blobs that are not what they should be."""

import gc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.errors import TensorError
from umbel.tensors import Tensors, WeightSpec, dump
from umbel.updates import Pipeline
from umbel_server.aggregation import Buffers, Update, from_blob
from umbel_server.storage import blobs as blobs_module
from umbel_server.storage.blobs import BlobError, Blobs, MissingBlob

PIPELINE = Pipeline([WeightSpec("a/kernel", (1000, 3)), WeightSpec("b/none", (0, 2))])


@pytest.fixture(params=["folder", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return Blobs(tmp_path.as_uri() if request.param == "folder" else "memory:///")


def tensors(seed: int, size: int = 1000, dtype: str = "float32") -> Tensors:
    rng = np.random.default_rng(seed)
    return {"a/kernel": rng.normal(size=(size, 3)).astype(dtype), "b/none": np.zeros((0, 2), dtype)}


def read(blobs: Blobs, delta: Tensors, buffers: Buffers) -> Update:
    specs = [WeightSpec(name, tensor.shape, tensor.dtype.name) for name, tensor in delta.items()]
    return from_blob(Pipeline(specs), blobs, blobs.put(dump(delta)), buffers)


def same(one: Tensors, other: Tensors) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("piece", [1 << 10, 1001, 1 << 12, 1 << 19])  # a bucket sends pieces of any length
def test_squares_are_summed_while_an_update_is_read(blobs: Blobs, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(blobs_module, "PIECE", piece)
    delta = tensors(1, 5000)
    update = read(blobs, delta, Buffers())
    assert same(update.delta, delta)
    assert update.squares == pytest.approx(float((delta["a/kernel"].astype(np.float64) ** 2).sum()), rel=1e-6)


def test_squares_of_what_is_not_all_float32_are_left_to_vetting(blobs: Blobs) -> None:
    assert read(blobs, tensors(1, dtype="float64"), Buffers()).squares is None
    assert read(blobs, {**tensors(1), "c": np.zeros(3, np.float16)}, Buffers()).squares is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_squares_are_not_finite_when_a_number_is_not(blobs: Blobs, value: float) -> None:
    delta = tensors(1)
    delta["a/kernel"][777, 1] = value
    squares = read(blobs, delta, Buffers()).squares
    assert squares is not None
    assert not np.isfinite(squares)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 400)), min_size=1, max_size=40))
def test_memory_is_never_used_again_while_something_refers_to_it(steps: list[tuple[int, int]]) -> None:
    store, buffers = Blobs("memory:///"), Buffers(5000)
    held: dict[int, tuple[Update, Tensors]] = {}
    for number, (slot, size) in enumerate(steps):
        delta = tensors(number, size)
        held[slot] = read(store, delta, buffers), delta
        assert all(same(update.delta, wanted) for update, wanted in held.values())
    view = held[slot][0].delta["a/kernel"][1:]
    held.clear()
    for number in range(5):
        read(store, tensors(1000 + number, size), buffers)
    assert np.array_equal(view, delta["a/kernel"][1:])


def test_memory_of_updates_that_are_gone_is_used_again_up_to_a_bound() -> None:
    buffers = Buffers(3000)
    first = buffers.take(2000)
    where = first.ctypes.data
    del first
    gc.collect()
    assert buffers.take(1500).ctypes.data == where
    large = buffers.take(4000)
    where = large.ctypes.data
    del large
    kept = np.ones(5000, np.uint8)  # takes the place of what is freed
    assert buffers.take(100).ctypes.data != where
    assert kept.all()


def test_a_blob_that_is_gone_or_was_changed_is_said_to_be(tmp_path: Path) -> None:
    store = Blobs(tmp_path.as_uri())
    blob = store.put(dump(tensors(1)))
    path = tmp_path / blob.sha256[:2] / blob.sha256
    whole = path.read_bytes()
    for changed in (whole[:-1] + b"x", whole[:-8], b"", b"{}" + whole):
        path.write_bytes(changed)
        with pytest.raises(BlobError, match=r"was changed on the server's disk"):
            from_blob(PIPELINE, store, blob, Buffers())
    path.unlink()
    with pytest.raises(MissingBlob, match="is not on this server"):
        from_blob(PIPELINE, store, blob, Buffers())


@pytest.mark.parametrize("data", [b"", b"abc", b"\xff" * 64, (8).to_bytes(8, "little") + b"{}}}}}}}", bytes(3_000_000)])
def test_what_is_no_safetensors_is_refused(blobs: Blobs, data: bytes) -> None:
    with pytest.raises(TensorError, match="expected safetensors bytes"):
        from_blob(PIPELINE, blobs, blobs.put(data), Buffers())


def test_an_update_has_no_more_header_than_its_weights_need(blobs: Blobs) -> None:
    """A header is parsed into objects, which take twenty times its bytes: of an update as large as a model it must not be most."""
    pipeline = Pipeline([WeightSpec("w", (100_000,))])
    bomb = b'{"w":[' + b",".join([b"[]"] * 100_000) + b"]}"
    blob = blobs.put(len(bomb).to_bytes(8, "little") + bomb)
    with pytest.raises(TensorError, match=r"a header of at most 66566 bytes, got 300007"):
        from_blob(pipeline, blobs, blob, Buffers())
    blob = blobs.put(dump({"w": np.ones(100_000, np.float32)}))
    assert from_blob(pipeline, blobs, blob, Buffers()).squares == pytest.approx(100_000)


@pytest.mark.parametrize(
    "header",
    [
        b'{"NAME":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}',
        b'{"a":{"dtype":"NAME","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[SHAPE],"data_offsets":[0,4]}}',
    ],
)
def test_what_a_device_wrote_does_not_fill_the_log(header: bytes, blobs: Blobs) -> None:
    header = header.replace(b"NAME", b"x" * 50_000).replace(b"SHAPE", b"1000000000000000000" + b",1" * 31)
    data = len(header).to_bytes(8, "little") + header + bytes(5)
    with pytest.raises(TensorError) as error:
        from_blob(PIPELINE, blobs, blobs.put(data), Buffers())
    assert len(str(error.value)) < 400
