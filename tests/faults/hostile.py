"""Devices that speak the protocol with keys of their own, and mean harm."""

import secrets
import time

import httpx
import msgspec
import numpy as np

from umbel import messages, signing, tensors, topics
from umbel.enrolment import BLOB_PATH, ENROL_PATH, Access, EnrolmentRequest, bearer, make_nonce, sign_request
from umbel.messages import Ack, Blob, Command, Hello, Result, Status, Train, Trained
from umbel.metrics import Sums, sum_shapes
from umbel.mqtt import Link, Will
from umbel.plan import Plan
from umbel.tensors import Tensors
from umbel_server.state_folder import State

BEHAVIOURS = ("nan", "shape", "huge", "stale", "impostor", "silent")
HUGE = 1e6


class HostileDevice:
    """An enrolled device that answers every assignment as its behaviour says, and `attack`s when told to.

    nan, shape, huge: updates that hold NaN, have another shape, or 10^6 times the norm. stale: answers rightly, then
    again and again for what was over. impostor: speaks for other devices and of their commands. silent: accepts, and
    then nothing.
    """

    def __init__(self, state: State, population: str, name: str, behaviour: str, plan: Plan, broker_port: int) -> None:
        self.name, self._behaviour, self._plan = name, behaviour, plan
        self._population, self._server_key = population, state.key
        self._key = signing.generate_key()
        self._rng = np.random.default_rng(list(name.encode()))
        self._done: list[Command] = []
        self._http = httpx.Client(base_url=state.server_url, timeout=10.0, trust_env=False)
        request = EnrolmentRequest(name, "phone", signing.public_key(self._key), state.enrolment_secret, population)
        self._http.post(ENROL_PATH, content=sign_request(request, self._key)).raise_for_status()
        self._epoch = 0
        self._link = Link(
            "127.0.0.1",
            broker_port,
            name,
            (topics.topic(population, name, "command"),),
            self._received,
            on_up=lambda: self._say(self._status(True), "status", retain=True),
            will=self._will,
        )
        self._link.start()

    def attack(self, victims: dict[str, str]) -> None:
        """Do what is worst now; `victims` are other devices' open commands, by device."""
        for done in self._done[-3:]:
            self._answer(done)
        if self._behaviour in ("stale", "impostor"):
            for device, command in list(victims.items())[:5]:
                self._impersonate(device, command)
            made_up = secrets.token_hex(8)
            self._say(self._result(made_up, self._trained(made_up, secrets.token_hex(8), self._update())), "result")

    def stop(self) -> None:
        """Leave."""
        self._link.stop()
        self._http.close()

    def _received(self, _topic: str, token: bytes) -> None:
        command = messages.decode_command(token, self._server_key)
        if isinstance(command.body, Hello):
            self._say(msgspec.structs.replace(self._status(True), answers=command.id), "status", retain=True)
        if not isinstance(command.body, Train):
            return
        self._say(self._ack(command.id, "accepted"), "ack")
        if self._behaviour != "silent":
            self._answer(command)
            self._done.append(command)
        if self._behaviour == "stale":
            for old in self._done[-4:]:
                self._answer(old)

    def _answer(self, command: Command) -> None:
        assert isinstance(command.body, Train)
        self._say(
            self._result(command.id, self._trained(command.id, command.body.assignment, self._update())), "result"
        )

    def _impersonate(self, device: str, command: str) -> None:
        """Claim another's command: in its name on its topic and on ours, and in our own name."""
        outcome = self._trained(command, secrets.token_hex(8), self._update())
        theirs = Result(command, self._population, device, time.time(), outcome)
        self._say(theirs, "result", device)
        self._say(theirs, "result")
        self._say(self._result(command, outcome), "result")
        self._say(Ack(command, self._population, device, "failed", time.time(), "says another"), "ack", device)
        self._say(self._ack(command, "declined"), "ack")

    def _update(self) -> Tensors:
        update = {
            spec.name: self._rng.normal(0, 0.01, spec.shape).astype(np.float32) for spec in self._plan.manifest.weights
        }
        first = next(iter(update))
        if self._behaviour == "nan":
            update[first].flat[0] = np.nan
        elif self._behaviour == "shape":
            update[first] = np.zeros((3, *update[first].shape), np.float32)
        elif self._behaviour == "huge":
            update = {name: tensor * np.float32(HUGE) for name, tensor in update.items()}
        return update

    def _trained(self, command: str, assignment: str, update: Tensors) -> Trained:
        metrics: Sums = {
            name: np.ones(shape).tolist() for name, shape in sum_shapes(self._plan.manifest.metrics).items()
        }
        return Trained(assignment, self._upload(command, tensors.dump(update)), 3, metrics)

    def _upload(self, command: str, data: bytes) -> Blob:
        blob = Blob.of(data)
        if blob.data is None:
            path = BLOB_PATH.format(sha256=blob.sha256)
            access = Access(self._population, self.name, "PUT", path, time.time(), command, nonce=make_nonce())
            try:
                self._http.put(path, content=data, headers={"Authorization": bearer(access, self._key)})
            except httpx.HTTPError:
                return blob  # the server is away; then the result names bytes that it never got
        return blob

    def _result(self, command: str, outcome: Trained) -> Result:
        return Result(command, self._population, self.name, time.time(), outcome)

    def _ack(self, command: str, state: messages.AckState) -> Ack:
        return Ack(command, self._population, self.name, state, time.time())

    def _status(self, online: bool) -> Status:
        return Status(self._population, self.name, self._epoch, online, kind="phone", trainer="hostile")

    def _will(self) -> Will:
        self._epoch += 1
        topic = topics.topic(self._population, self.name, "status")
        return Will(topic, messages.encode(self._status(False), self._key))

    def _say(
        self, message: Status | Ack | Result, channel: topics.Channel, device: str = "", retain: bool = False
    ) -> None:
        topic = topics.topic(self._population, device or self.name, channel)
        lasting = msgspec.structs.replace(message, expires=time.time() + 600)
        self._link.publish(topic, messages.encode(lasting, self._key), retain)
