from pathlib import Path

import numpy as np
import pytest

from umbel.errors import UmbelError
from umbel_sim.data import FunctionFleet
from umbel_sim.example_files import write_examples


def test_each_device_has_its_file_and_none_is_overwritten(tmp_path: Path) -> None:
    fleet = FunctionFleet(lambda device: {"x": np.full((device + 1, 2), device), "y": np.arange(device + 1)}, 3)
    paths = write_examples(fleet, tmp_path / "examples")
    assert [path.name for path in paths] == ["0.npz", "1.npz", "2.npz"]
    for device, path in enumerate(paths):
        with np.load(path) as file:
            assert sorted(file.files) == ["x", "y"]
            np.testing.assert_array_equal(file["x"], np.full((device + 1, 2), device))
    with pytest.raises(UmbelError, match="already holds examples"):
        write_examples(fleet, tmp_path / "examples")
