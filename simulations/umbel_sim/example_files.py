"""The examples of a simulated fleet as files, one a device, for agents and for Flower's simulated nodes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from umbel.errors import UmbelError
from umbel_sim.fleet_data import Fleet


def write_examples(fleet: Fleet, folder: Path) -> Sequence[Path]:
    """Write the examples of device d to `folder`/d.npz, as umbel.examples.load_examples reads them; returns the paths.

    Raises UmbelError when the folder already has such files, because files of a larger fleet would be left over.
    """
    if (folder / "0.npz").exists():
        raise UmbelError(f"{folder} already holds examples; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{device}.npz" for device in range(fleet.devices)]
    for device, path in enumerate(paths):
        np.savez(path, allow_pickle=False, **fleet.examples(device))
    return paths
