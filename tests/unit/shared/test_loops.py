"""A loop in a thread of its own goes on after an error, and says so."""

import logging
import threading

import pytest

from tests.waiting import eventually
from umbel import loops
from umbel.loops import Loop

log = logging.getLogger("umbel.test")


def test_a_loop_that_raises_is_called_again_and_each_error_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loops, "FIRST_PAUSE", 0.01)
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        if len(calls) < 4:
            raise OSError(28, "no space" if len(calls) < 3 else "no luck")

    loop = Loop("worker", work, threading.Event(), log)
    loop.start()
    loop.join(10)
    assert not loop.is_alive()
    assert len(calls) == 4
    said = [record for record in caplog.records if "the thread 'worker' failed" in record.message]
    assert [bool(record.exc_info) for record in said] == [True, False, True]  # a repeat comes without its traceback
    assert {record.levelname for record in said} == {"ERROR"}


def test_a_loop_that_raises_ends_when_it_is_to_stop() -> None:
    stopping, raised = threading.Event(), threading.Event()

    def work() -> None:
        raised.set()
        raise RuntimeError("again and again")

    loop = Loop("worker", work, stopping, log)
    loop.start()
    assert raised.wait(5)
    stopping.set()
    eventually(lambda: not loop.is_alive())


def test_an_error_on_the_way_out_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    stopping = threading.Event()

    def work() -> None:
        stopping.set()
        raise RuntimeError("the database is closed")

    Loop("worker", work, stopping, log).run()
    assert not caplog.records
