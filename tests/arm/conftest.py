"""Roots of ARM machines as fixtures. A root that cannot be built fails the tests in CI, and skips them elsewhere."""

import os
import shutil

import pytest

from tests.arm.roots import AARCH64, ARMV7, Machine, NotBuilt, Root, open_root


@pytest.fixture(scope="session")
def aarch64() -> Root:
    """A 64-bit machine with the pinned wheels."""
    return opened(AARCH64)


@pytest.fixture(scope="session")
def armv7() -> Root:
    """A 32-bit machine with tflite-runtime and Debian's NumPy."""
    return opened(ARMV7)


@pytest.fixture(params=["aarch64", "armv7"])
def root(request: pytest.FixtureRequest) -> Root:
    """Each machine."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Root)
    return found


def opened(machine: Machine) -> Root:
    """The machine's root; a test is skipped where QEMU is not installed, but never in CI."""
    try:
        return open_root(machine)
    except NotBuilt as error:
        if os.environ.get("CI") or any(shutil.which(name) for name in machine.emulators):
            pytest.fail(f"the {machine.name} root cannot be built: {error}")
        pytest.skip(f"the {machine.name} root cannot be built: {error}")
