"""Without QEMU the tests of ARM machines are skipped, and say why; in CI they fail."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.arm.conftest import opened
from tests.arm.roots import ARMV7, MACHINES, Machine


def raised(made: Callable[[], object], expected: type[BaseException]) -> str:
    with pytest.raises(expected) as caught:
        made()
    return str(caught.value)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_a_machine_without_qemu_skips_here_and_fails_in_ci(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = f"the {machine.name} root cannot be built: {machine.emulators[0]} is not installed; install Debian's package"
    monkeypatch.delenv("CI", raising=False)
    assert said in raised(lambda: opened(machine), pytest.skip.Exception)
    monkeypatch.setenv("CI", "true")
    assert said in raised(lambda: opened(machine), pytest.fail.Exception)


def test_where_qemu_is_installed_anything_else_that_lacks_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tests.arm.roots.CACHE", tmp_path / "cache")
    (tmp_path / ARMV7.emulators[0]).write_text("#!/bin/sh\n")
    (tmp_path / ARMV7.emulators[0]).chmod(0o755)
    assert "apt-get is not installed" in raised(lambda: opened(ARMV7), pytest.fail.Exception)
