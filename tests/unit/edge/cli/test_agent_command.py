"""The output of `umbel-agent`."""

import logging
from pathlib import Path

import pytest

from umbel_edge.cli import set_up_logging


def test_a_message_is_one_line_of_the_log_whatever_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.root.level)
    set_up_logging(tmp_path / "log", verbose=False)
    logging.getLogger("umbel.agent").warning("the device was suspended: %s", "\x1b[2J\nERROR all is lost")
    for handler in logging.root.handlers:
        handler.close()
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.endswith(r"umbel.agent: the device was suspended: \x1b[2J\nERROR all is lost")
