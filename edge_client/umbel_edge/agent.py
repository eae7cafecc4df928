"""The agent: commands come in over MQTT, are executed one at a time, and are answered."""

import logging
import threading
import time
from collections.abc import Callable

from umbel.enrolment import EnrolmentReply
from umbel_edge.commands.answers import Answers
from umbel_edge.commands.execution import Execution, Jobs
from umbel_edge.commands.handlers.context import HandlerContext
from umbel_edge.commands.handlers.table import HANDLERS, Handlers
from umbel_edge.commands.intake import Intake
from umbel_edge.commands.pending_updates import PendingUpdates
from umbel_edge.commands.plan_cache import PlanCache
from umbel_edge.config import AgentConfig
from umbel_edge.connection.broker_link import BrokerLink
from umbel_edge.connection.device_messages import DeviceMessages
from umbel_edge.connection.enrolment import connect
from umbel_edge.connection.http import ServerHttp
from umbel_edge.connection.participation import Participation
from umbel_edge.connection.presence import Presence
from umbel_edge.connection.resumable_downloads import Downloads
from umbel_edge.connection.resumable_uploads import Uploads
from umbel_edge.connection.server_keys import ServerKeys
from umbel_edge.connection.server_time import ServerTime
from umbel_edge.connection.upkeep import Upkeep
from umbel_edge.device.condition_check import ConditionCheck
from umbel_edge.device.installed_models import InstalledModels
from umbel_edge.device.state import AgentState
from umbel_edge.identity.keys import store_of
from umbel_edge.training.example_cache import ExampleCache
from umbel_edge.training.example_count import ExampleCount
from umbel_edge.training.litert_trainer import LiteRTTrainer
from umbel_edge.training.trainer import Trainer
from umbel_edge.waiting import Stopped

log = logging.getLogger("umbel.agent")


def trainer_of(config: AgentConfig) -> Trainer:
    """The trainer that is configured; imports TensorFlow when it is the Keras trainer."""
    if config.trainer == "keras" and config.task is not None:
        from umbel_edge.training.keras_trainer import KerasTrainer

        return KerasTrainer(config.device, config.task)
    return LiteRTTrainer(config.device, config.threads)


class Agent:
    """One device: `run` until `stop`. Raises UmbelError when it cannot start.

    `state` is what the device remembers, `messages` signs what it says, and `participation` is whether the server works
    with it. `clock` is the device's own clock, in Unix seconds. `handlers` execute commands. `make_trainer` returns the
    trainer for a configuration.
    """

    def __init__(
        self,
        config: AgentConfig,
        clock: Callable[[], float] = time.time,
        handlers: Handlers = HANDLERS,
        make_trainer: Callable[[AgentConfig], Trainer] = trainer_of,
    ) -> None:
        self._config, self._clock, self._handlers, self._make_trainer = config, clock, handlers, make_trainer
        self._stopping = threading.Event()
        self._jobs = Jobs()
        self.state = AgentState(config.state, store_of(config.key, config.state, self._stopping))
        self._time = ServerTime(clock)
        self.messages = DeviceMessages(config, self.state, self._time, clock)
        self._link = BrokerLink(config)
        self._models = InstalledModels(config.state / "models", config.threads, config.population)
        self._count_examples = ExampleCount(config.examples)
        self._conditions = ConditionCheck(config.state, self._count_examples, config.readings, now=clock)
        self._presence = Presence(
            config,
            self.state,
            self.messages,
            self._link,
            self._time,
            self._models,
            self._conditions,
            self._count_examples,
            self._stopping,
        )
        self.participation = Participation(self._stopping, lambda: self._jobs.put(None))

    def run(self) -> None:
        """Enrol, connect, and work until `stop` is called; raises UmbelError when the device is revoked."""
        try:
            trainer = self._make_trainer(self._config)
            http = ServerHttp(self._config, self.state.key, self._stopping, self._clock)
            enrolment = connect(http, self._config, self.state, self.participation)
            self._time.hear(enrolment.at)
            self.state.forget_old(self._time())
            http.on_barred = self.participation.refused
            self._work(http, enrolment, trainer)
        except Stopped:
            log.info("stopped")
        finally:
            self.state.close()

    def stop(self) -> None:
        """End `run` soon, from any thread or a signal handler; the work at hand is left within one batch."""
        self._stopping.set()
        self._jobs.put(None)

    def _work(self, http: ServerHttp, enrolment: EnrolmentReply, trainer: Trainer) -> None:
        keys = ServerKeys(self.state, http, self._time)
        context = self._make_context(http, keys, trainer)
        answers = Answers(self.state, self.messages, self._link)
        intake = Intake(context, self._handlers, answers, self.messages, self._time, self._jobs)
        execution = Execution(context, self._handlers, answers, self._jobs, self._presence.say_hello)
        upkeep = Upkeep(self.state, http, self._time, self._clock, self._stopping)
        execution.resume()
        broker = self._config.mqtt
        self._link.open(
            broker.host if broker is not None else enrolment.broker_host,
            broker.port if broker is not None else enrolment.broker_port,
            intake.receive,
            on_up=self._presence.say_hello,
            will=self._presence.will,
            tls=upkeep.keep_certificate() if enrolment.broker_tls else None,
        )
        self._presence.start()
        keys.start()
        upkeep.start_days()
        try:
            execution.run()
        finally:
            self._stopping.set()
            keys.stop()
            self._link.close(self._presence.last_word())

    def _make_context(self, http: ServerHttp, keys: ServerKeys, trainer: Trainer) -> HandlerContext:
        folder, records = self._config.state, self.state.uploads
        downloads, uploads = Downloads(http), Uploads(http, records)
        return HandlerContext(
            config=self._config,
            state=self.state,
            http=http,
            downloads=downloads,
            uploads=uploads,
            keys=keys,
            participation=self.participation,
            pending_updates=PendingUpdates(folder / "outgoing", records, uploads),
            plans=PlanCache(folder / "plans", downloads, keys),
            examples=ExampleCache(self._config.examples),
            count_examples=self._count_examples,
            trainer=trainer,
            models=self._models,
            conditions=self._conditions,
            answer_hello=self._presence.answer,
            now=self._time,
            stopping=self._stopping,
        )
