"""Counting the examples in a file without reading them."""

import time
from pathlib import Path

import numpy as np

from umbel_edge.training.example_count import ExampleCount


def test_examples_are_counted_from_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "examples.npz"
    count = ExampleCount(path)
    assert count() == 0
    np.savez_compressed(path, allow_pickle=False, x=np.zeros((50_000, 300), np.float32), y=np.zeros(50_000, np.int32))
    started = time.perf_counter()
    assert count() == 50_000
    assert time.perf_counter() - started < 0.1
    path.write_bytes(b"no archive")
    assert count() == 0
