"""A kind of command that the agent does not know, added with a struct, a handler and a row, and executed."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from umbel import messages, signing
from umbel.conditions import Violation
from umbel.enrolment import Trust
from umbel.errors import UmbelError
from umbel.messages import Ack, Command, Outcome, Reported, Result, UnknownKind
from umbel.signing import Keys
from umbel_edge.commands.answers import Answers
from umbel_edge.commands.execution import Execution, Jobs
from umbel_edge.commands.handlers.context import HandlerContext
from umbel_edge.commands.handlers.table import HANDLERS, Handlers, Immediate, Queued
from umbel_edge.commands.intake import Intake
from umbel_edge.commands.pending_updates import PendingUpdates
from umbel_edge.commands.plan_cache import PlanCache
from umbel_edge.config import AgentConfig
from umbel_edge.connection.broker_link import BrokerLink
from umbel_edge.connection.device_messages import DeviceMessages
from umbel_edge.connection.http import ServerHttp
from umbel_edge.connection.participation import Participation
from umbel_edge.connection.resumable_downloads import Downloads
from umbel_edge.connection.resumable_uploads import Uploads
from umbel_edge.connection.server_keys import ServerKeys
from umbel_edge.connection.server_time import ServerTime
from umbel_edge.device.condition_check import ConditionCheck
from umbel_edge.device.installed_models import InstalledModels
from umbel_edge.device.state import AgentState
from umbel_edge.training.example_cache import ExampleCache
from umbel_edge.training.litert_trainer import LiteRTTrainer


class Blink(msgspec.Struct, frozen=True, tag="blink"):
    """The new kind: blink a light so many times."""

    times: int


class Lamp:
    """A light on the device; `fault` makes it fail, `dark` is the rule that does not hold."""

    def __init__(self) -> None:
        self.blinks: list[int] = []
        self.cleaned: list[str] = []
        self.fault: Exception | None = None
        self.dark: tuple[Violation, ...] = ()

    def blink(self, context: HandlerContext, command: str, body: Blink) -> Outcome:
        if self.fault is not None:
            raise self.fault
        self.blinks.append(body.times)
        return Reported("lamp", "", "", "", body.times, context.state.rounds, 1.0, [])

    def may_blink(self, context: HandlerContext, command: str, body: Blink) -> tuple[Violation, ...]:
        return self.dark

    def clean(self, context: HandlerContext, command: str) -> None:
        self.cleaned.append(command)

    def blink_at_once(self, context: HandlerContext, body: Blink, done: Callable[[], None]) -> None:
        self.blinks.append(-body.times)
        done()


def decode(token: bytes, keys: Keys) -> Command:
    """As messages.decode_command of an agent that knows Blink."""
    try:
        return messages.decode_command(token, keys)
    except UnknownKind as error:
        body = msgspec.json.decode(error.head.body, type=Blink)
        return Command(**{**msgspec.structs.asdict(error.head), "body": body})


class Device:
    """The device half of a connection, without a broker: tokens go in, and the inbox has the answers."""

    def __init__(self, folder: Path, server: signing.ECKey, handlers: Handlers) -> None:
        self._server, self._handlers, self.stopping = server, handlers, threading.Event()
        examples = folder / "x.npz"
        config = AgentConfig("phone", "home", "phone", "http://127.0.0.1:1", examples, folder / "state")
        self.state = AgentState(config.state)
        self.state.pin(Trust(signing.public_key(server)))
        clock = ServerTime(time.time)
        http = ServerHttp(config, self.state.key, self.stopping)
        keys, downloads = ServerKeys(self.state, http, clock), Downloads(http)
        uploads = Uploads(http, self.state.uploads)
        own, link = DeviceMessages(config, self.state, clock, time.time), BrokerLink(config)
        self.jobs = Jobs()
        context = HandlerContext(
            config,
            self.state,
            http,
            downloads,
            uploads,
            keys,
            Participation(self.stopping, lambda: None),
            PendingUpdates(config.state / "outgoing", self.state.uploads, uploads),
            PlanCache(config.state / "plans", downloads, keys),
            ExampleCache(examples),
            lambda: 0,
            LiteRTTrainer("phone"),
            InstalledModels(config.state / "models", 1, "home"),
            ConditionCheck(config.state, lambda: 0),
            lambda command, hello: None,
            clock,
            self.stopping,
        )
        answers = Answers(self.state, own, link)
        self._intake = Intake(context, handlers, answers, own, clock, self.jobs, decode)
        self.execution = Execution(context, handlers, answers, self.jobs, lambda: None, decode)

    def receive(self, times: int) -> str:
        """Take in a command to blink; returns its id."""
        now = time.time()
        command = Command(secrets.token_hex(4), "home", "phone", now, now + 60, Blink(times), sequence=int(now * 1e6))  # type: ignore[arg-type]
        self._intake.receive(messages.encode(command, self._server))
        return command.id

    def work(self) -> None:
        """Execute what is queued."""
        thread = threading.Thread(target=self.execution.run)
        thread.start()
        while not self.jobs.empty():
            time.sleep(0.01)
        self.stopping.set()
        self.jobs.put(None)
        thread.join(10)
        self.stopping.clear()

    def answer(self, command: str) -> Ack | Result:
        """The final answer."""
        answer = self.state.inbox.answer_of(command)
        assert answer is not None
        return messages.decode(answer.token, Ack if answer.channel == "ack" else Result, self.state.key)


@pytest.fixture
def lamp() -> Lamp:
    return Lamp()


@pytest.fixture
def device(tmp_path: Path, lamp: Lamp) -> Iterator[Device]:
    row = Queued(Blink, lamp.blink, lamp.may_blink, resumed=True, is_round=True, clean=lamp.clean)
    made = Device(tmp_path, signing.generate_key(), {**HANDLERS, Blink: row})
    yield made
    made.state.close()


def test_an_added_kind_is_queued_executed_counted_and_cleaned_after(device: Device, lamp: Lamp) -> None:
    id = device.receive(3)
    assert lamp.blinks == []
    device.work()
    answer = device.answer(id)
    assert isinstance(answer, Result)
    assert answer.outcome == Reported("lamp", "", "", "", 3, 0, 1.0, [])
    assert (lamp.blinks, lamp.cleaned, device.state.rounds) == ([3], [id], 1)


@pytest.mark.parametrize(
    ("fault", "state"),
    [(UmbelError("no power"), "failed"), (KeyError("bulb"), "failed")],
)
def test_an_added_kind_that_fails_is_answered_with_the_reason_and_cleaned_after(
    device: Device, lamp: Lamp, fault: Exception, state: str
) -> None:
    lamp.fault = fault
    id = device.receive(3)
    device.work()
    answer = device.answer(id)
    assert isinstance(answer, Ack)
    assert (answer.state, str(fault) in answer.reason) == (state, True)
    assert (lamp.cleaned, device.state.rounds) == ([id], 0)


def test_an_added_kind_is_declined_while_its_rules_do_not_hold(device: Device, lamp: Lamp) -> None:
    lamp.dark = (Violation("light", "bright", "it is bright"),)
    id = device.receive(3)
    device.work()
    answer = device.answer(id)
    assert isinstance(answer, Ack)
    assert (answer.state, answer.reason, lamp.blinks) == ("declined", "it is bright", [])


@pytest.mark.parametrize("resumed", [True, False])
def test_an_added_kind_goes_on_after_a_restart_if_its_row_says_so(tmp_path: Path, lamp: Lamp, resumed: bool) -> None:
    handlers: Handlers = {**HANDLERS, Blink: Queued(Blink, lamp.blink, resumed=resumed)}
    server = signing.generate_key()
    before = Device(tmp_path, server, handlers)
    id = before.receive(2)
    before.state.close()
    after = Device(tmp_path, server, handlers)
    after.execution.resume()
    after.work()
    assert (lamp.blinks, id in after.state.inbox.unanswered()) == ([2] if resumed else [], False)
    assert (after.state.inbox.answer_of(id) is not None) is resumed
    after.state.close()


def test_a_kind_may_be_handled_at_once(tmp_path: Path, lamp: Lamp) -> None:
    device = Device(tmp_path, signing.generate_key(), {**HANDLERS, Blink: Immediate(Blink, lamp.blink_at_once)})
    id = device.receive(4)
    answer = device.answer(id)
    assert isinstance(answer, Ack)
    assert (answer.state, lamp.blinks, device.jobs.empty()) == ("done", [-4], True)
    device.state.close()
