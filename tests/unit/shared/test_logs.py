"""Names that devices choose cannot write lines into a log."""

import io
import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from umbel.logs import LogFormatter, set_up_logging
from umbel_server import serve

CLEARED = "\x1b[2J"


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """The root logger without handlers; afterwards as it was."""
    for name in ("handlers", "level"):
        monkeypatch.setattr(logging.root, name, [] if name == "handlers" else logging.root.level)
    yield logging.root
    for handler in logging.root.handlers:
        handler.close()


def test_a_message_is_one_line_of_the_log() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(LogFormatter())
    log = logging.Logger("umbel.test")
    log.addHandler(handler)
    log.warning("refused a message of %s", f"x\n2026-11-29 00:00:00,000 INFO    umbel.keys: forged{CLEARED}/d")
    assert out.getvalue().count("\n") == 1
    assert CLEARED not in out.getvalue()
    try:
        raise ValueError(f"a\n2026-11-29 00:00:00,000 INFO    umbel.keys: forged{CLEARED}")
    except ValueError:
        log.exception("failed")
    _, said, *trace = out.getvalue().splitlines()
    assert said.endswith("umbel.test: failed")
    assert trace[0] == "  Traceback (most recent call last):"
    assert all(line.startswith("  ") for line in trace)
    assert CLEARED not in out.getvalue()


@pytest.mark.parametrize(("verbose", "levels"), [(False, {"INFO"}), (True, {"INFO", "DEBUG"})])
def test_the_log_goes_to_the_file(root: logging.Logger, tmp_path: Path, verbose: bool, levels: set[str]) -> None:
    set_up_logging(tmp_path / "log", verbose)
    root.info("said")
    root.debug("said")
    assert {line.split()[2] for line in (tmp_path / "log").read_text().splitlines()} == levels


def test_logging_leaves_the_signals_alone(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("httpx", "alembic", "asyncio", "flwr"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.getLogger(name).level)
    monkeypatch.setattr(logging.getLogger("flwr"), "handlers", logging.getLogger("flwr").handlers)
    before = signal.getsignal(signal.SIGTERM)
    serve.set_up_logging(None, False)
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(root.handlers) == 1
