"""The two distributions, umbel and umbel-edge, say the same where they hold the same."""

import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from umbel import __version__
from umbel.errors import UmbelError
from umbel.installed import check_distributions
from umbel_server.cli import without_extras

ROOT = Path(__file__).parents[2]
WHOLE: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEVICE_PART: dict[str, Any] = tomllib.loads((ROOT / "edge_client/pyproject.toml").read_text())["project"]


def test_umbel_edge_needs_what_the_extra_edge_needs() -> None:
    extras = WHOLE["optional-dependencies"]
    assert DEVICE_PART["dependencies"] == sorted(WHOLE["dependencies"] + extras["edge"])
    assert DEVICE_PART["optional-dependencies"]["pkcs11"] == extras["pkcs11"]
    for key in ("requires-python", "license", "authors"):
        assert DEVICE_PART[key] == WHOLE[key]
    assert DEVICE_PART["scripts"].items() <= WHOLE["scripts"].items()


def test_umbel_edge_has_the_license() -> None:
    assert (ROOT / "edge_client/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("package", ["umbel", "umbel_server", "umbel_edge", "umbel_sim"])
def test_a_package_says_that_it_is_typed(package: str) -> None:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).with_name("py.typed").is_file()


def test_both_distributions_on_one_machine_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_distributions()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, version in (("umbel", "0.3.0"), ("umbel-edge", "0.2.0")):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    with pytest.raises(UmbelError, match=r"umbel 0\.3\.0 and umbel-edge 0\.2\.0 are both installed"):
        check_distributions()


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        (["--help"], 0, "pip install 'umbel[server]'", ""),
        (["runs", "--help"], 0, "pip install 'umbel[sim]'", ""),
        ([], 2, "pip install umbel-edge", ""),
        (["--version"], 0, f"umbel {__version__}\n", ""),
        (["serve"], 1, "", "umbel: typer is not installed; the commands need: pip install 'umbel[server]'\n"),
    ],
)
def test_without_extras_the_command_says_what_to_install(
    words: list[str], code: int, out: str, err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert without_extras.answer(words, "typer") == code
    shown = capsys.readouterr()
    assert out in shown.out
    assert shown.err == err
