"""The demo's story: a broker, a server and eight agents train, ship and use a model."""

import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tomli_w

from umbel import tensors
from umbel.errors import UmbelError
from umbel.examples import Examples
from umbel.keras_import import import_keras
from umbel.litert import Predictor
from umbel.plan import Plan
from umbel.task import Task, load_task
from umbel_server.answers import Command, Release, RunDetails
from umbel_server.cli.open_client import open_client
from umbel_server.client import Client
from umbel_server.state_folder import Config, Http, Mqtt, State, init_state
from umbel_sim.demo.demo_report import DeviceReport, Report
from umbel_sim.demo.processes import Processes, free_port, program
from umbel_sim.demo.screen import Screen
from umbel_sim.digits import Digits, load_digits
from umbel_sim.partitions.dirichlet import of_labels

TASK = Path(__file__).parent.parent / "tasks" / "digits.py"
POPULATION = "demo"
HELD_OUT, ALPHA, LEAST_EXAMPLES = 0.2, 0.5, 40
GOAL = 0.93
QUESTIONS = 32
START_SECONDS, ROUND_SECONDS, COMMAND_SECONDS = 60.0, 60.0, 60.0


@dataclass(frozen=True)
class Member:
    """One device of the demo's fleet."""

    id: str
    kind: str
    trainer: str


FLEET = (
    *(Member(f"phone-{i}", "phone", "litert") for i in range(1, 6)),
    *(Member(f"vehicle-{i}", "vehicle", "litert") for i in range(1, 3)),
    Member("vehicle-3", "vehicle", "keras"),
)


INVITED_SECONDS, COMMAND_TTL = 600.0, 600.0


@dataclass
class Story:
    """The demo in progress: each method is one phase."""

    folder: Path
    rounds: int
    seed: int
    screen: Screen
    processes: Processes
    report: Report = field(default_factory=Report)

    def tell(self) -> None:
        """Run every phase in order; raises UmbelError when one fails."""
        started = time.monotonic()
        try:
            rng = np.random.default_rng(self.seed)
            train, held_out = load_digits(HELD_OUT, rng)
            with self._phase("start", "a broker, a server and eight agents"):
                state = self._start(train, rng)
                client = open_client(state.folder)
            with self._phase("compile", "the Keras task into a plan"):
                import_keras()
                task, plan_path = load_task(TASK), self.folder / "digits.plan"
                plan = _compile(task, plan_path, self.screen, self.seed)
                self._await_fleet(client)
            with self._phase("train", "federated rounds"):
                run = self._train(client, plan, held_out)
            with self._phase("release", "float32, float16 and int8 TFLite files"):
                weights = tensors.load(client.get_blob(run.checkpoints[-1].weights))
                release = self._release(client, run, task, weights, held_out)
            with self._phase("install", "the release on every device"):
                self._install(client, release.id)
            with self._phase("infer", "real digits on every device"):
                self._infer(client, task, weights, held_out)
            with self._phase("export", "every device's personalised model"):
                self._export(client, run, held_out)
            with self._phase("report", "what each device holds"):
                self._ask(client)
            self._judge()
        finally:
            self.report.wall_s = round(time.monotonic() - started, 3)

    @contextmanager
    def _phase(self, name: str, what: str) -> Iterator[None]:
        started = time.monotonic()
        with self.screen.phase(name, what):
            yield
        self.report.phases[name] = round(time.monotonic() - started, 3)

    def _start(self, train: Digits, rng: np.random.Generator) -> State:
        http_port, mqtt_port = free_port(), free_port()
        config = Config(http=Http(port=http_port), mqtt=Mqtt(port=mqtt_port, embedded=False))
        state = init_state(self.folder / "server", config)
        broker = ("broker", "run", "--port", str(mqtt_port), "--state", str(state.folder))
        self.processes.start("broker", 0, program("umbel"), *broker)
        self.processes.start("server", 1, program("umbel"), "serve", "--state", str(state.folder))
        client = open_client(state.folder)
        self.processes.until(lambda: _answers(client), START_SECONDS, "starting the server", "server")
        tokens = iter(
            [one.token for one in client.invitations.add(POPULATION, len(FLEET), INVITED_SECONDS, {"demo": "digits"})]
        )
        shares = of_labels(train.y, len(FLEET), ALPHA, rng, LEAST_EXAMPLES)
        for device, member in enumerate(FLEET):
            folder = self.folder / member.id
            folder.mkdir()
            shard = train.rows(shares.rows(device))
            np.savez(folder / "examples.npz", allow_pickle=False, x=shard.x, y=shard.y)
            config_path = folder / "agent.toml"
            config_path.write_text(tomli_w.dumps(_agent_config(member, state, next(tokens))))
            self.processes.start(member.id, 2, program("umbel-agent"), str(config_path))
        return state

    def _await_fleet(self, client: Client) -> None:
        def ready() -> bool:
            try:
                online = [row for row in client.devices.list() if row.online]
            except UmbelError:
                return False
            return len(online) == len(FLEET)

        self.processes.until(ready, START_SECONDS, "starting the fleet", "server")

    def _train(self, client: Client, plan: Plan, held_out: Digits) -> RunDetails:
        path = self.folder / "held-out.npz"
        np.savez(path, allow_pickle=False, x=held_out.x, y=held_out.y)
        settings = {
            "strategy": "fedavg",
            "rounds": self.rounds,
            "epochs": 3,
            "seed": self.seed,
            "policy": {"quorum": len(FLEET), "deadline": ROUND_SECONDS},
            "held_out": client.put_blob(path.read_bytes(), POPULATION),
        }
        id = client.runs.start(POPULATION, client.add_plan(plan.path, POPULATION).plan, settings).id

        def ended() -> bool:
            row = client.runs.show(id)
            self.report.accuracy = [round(c.metrics["accuracy"], 4) for c in row.checkpoints if c.round > 0]
            self.screen.round(row.round, self.rounds, self.report.accuracy)
            return row.state != "running"

        self.processes.until(ended, START_SECONDS + ROUND_SECONDS * self.rounds, "training", "server")
        row = client.runs.show(id)
        if row.state != "finished":
            raise UmbelError(f"the run {row.state}: {row.reason}; read {self.processes.log('server')}")
        return row

    def _release(
        self, client: Client, run: RunDetails, task: Task, weights: tensors.Tensors, held_out: Digits
    ) -> Release:
        from umbel_server.compiler.keras_eval import evaluate

        examples = Examples({"x": held_out.x, "y": held_out.y}, len(held_out.y))
        keras = evaluate(task, weights, examples)
        self.report.keras_accuracy = round(keras["accuracy"], 4)
        release = client.releases.export(run.id, keras=keras)
        self.report.release = {
            variant: {
                "bytes": file.size,
                "accuracy": round(file.metrics["accuracy"] or 0.0, 4),
                "difference": file.difference or 0.0,
                "latency_ms": file.latency_ms or 0.0,
            }
            for variant, file in release.files.items()
        }
        return release

    def _install(self, client: Client, release: str) -> None:
        for command in self._command(client, "install", release=release, variant="float32"):
            self._device(command.device).installed = release

    def _infer(self, client: Client, task: Task, weights: tensors.Tensors, held_out: Digits) -> None:
        from umbel_server.compiler.keras_eval import predict

        expected = predict(task, weights, {"x": held_out.x[: QUESTIONS * len(FLEET)]})["output"].argmax(axis=1)
        for number, member in enumerate(FLEET):
            rows = slice(number * QUESTIONS, (number + 1) * QUESTIONS)
            inputs = client.put_blob(tensors.dump({"x": held_out.x[rows]}), POPULATION)
            (command,) = self._command(client, "infer", [member.id], inputs=inputs)
            answers = tensors.load(client.get_blob(_outcome(command)["outputs"]["sha256"]))
            right = next(iter(answers.values())).argmax(axis=1) == expected[rows]
            device = self._device(member.id)
            device.answers_right, device.answers_total = int(right.sum()), len(right)

    def _export(self, client: Client, run: RunDetails, held_out: Digits) -> None:
        for command in self._command(client, "export", plan=run.plan):
            model = client.get_blob(_outcome(command)["model"]["sha256"])
            (self.folder / f"{command.device}.tflite").write_bytes(model)
            outputs = next(iter(Predictor(model)({"x": held_out.x}).values()))
            accuracy = float(np.mean(outputs.argmax(axis=1) == held_out.y))
            self._device(command.device).personal_accuracy = round(accuracy, 4)

    def _ask(self, client: Client) -> None:
        for command in self._command(client, "report"):
            outcome, device = _outcome(command), self._device(command.device)
            device.examples, device.rounds = outcome["examples"], outcome["rounds"]
            device.rss_mb, device.imports = round(outcome["rss_mb"], 1), outcome["imports"]
            if device.installed != outcome.get("installed"):
                raise UmbelError(f"{device.id} reports release {outcome.get('installed') or 'none'} as installed")

    def _command(self, client: Client, kind: str, devices: Sequence[str] = (), **about: str) -> list[Command]:
        sent = client.commands.send(POPULATION, kind, devices, COMMAND_TTL, **about)
        commands = client.commands.settle(sent, COMMAND_SECONDS)
        for command in commands:
            if command.state != "done":
                raise UmbelError(
                    f"{command.device} did not {command.kind} ({command.state}: {command.reason or 'no answer'}); "
                    f"read {self.processes.log(command.device)}"
                )
        return commands

    def _device(self, id: str) -> DeviceReport:
        for device in self.report.devices:
            if device.id == id:
                return device
        member = next(member for member in FLEET if member.id == id)
        self.report.devices.append(DeviceReport(member.id, member.kind, member.trainer))
        return self.report.devices[-1]

    def _judge(self) -> None:
        self.report.devices.sort(key=lambda device: device.id)
        accuracy = max(self.report.accuracy)
        if accuracy < GOAL:
            raise UmbelError(
                f"the model's held-out accuracy is {accuracy:.3f} after {self.rounds} rounds, {GOAL} was expected; "
                f"read {self.processes.log('server')}"
            )
        wrong = [d.id for d in self.report.devices if d.answers_right != d.answers_total or not d.answers_total]
        if wrong:
            raise UmbelError(f"{wrong[0]} answered otherwise than Keras; read {self.processes.log(wrong[0])}")
        self.report.ok = True


def _outcome(command: Command) -> dict[str, Any]:
    return command.outcome or {}


def _answers(client: Client) -> bool:
    try:
        return client.health().broker
    except UmbelError:
        return False


def _agent_config(member: Member, state: State, token: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "device": member.id,
        "population": POPULATION,
        "kind": member.kind,
        "state": "state",
        "server": state.server_url,
        "enrolment_token": token,
        "trainer": member.trainer,
        "examples": "examples.npz",
    }
    if member.trainer == "keras":
        config["task"] = str(TASK)
    return config


def _compile(task: Task, path: Path, screen: Screen, seed: int) -> Plan:
    from umbel_server.compiler import compile_task

    return compile_task(task, path, seed=seed, check=True, progress=lambda stage: screen.news(stage.text))


def run_demo(rounds: int, seed: int, json: Path | None, keep: Path | None) -> Report:
    """Tell the story in a fresh folder; raises UmbelError when a phase fails.

    The folder stays as `keep`, or when a phase fails: it holds the logs. An interrupted demo removes it.
    """

    def terminated(_signal: int, _frame: object) -> None:
        sys.exit(143)

    signal.signal(signal.SIGTERM, terminated)
    if keep is not None:
        if keep.exists() and any(keep.iterdir()):
            raise UmbelError(f"{keep}: expected a new or empty folder to keep the demo in; name another one")
        keep.mkdir(parents=True, exist_ok=True)
    folder = keep or Path(tempfile.mkdtemp(prefix="umbel-demo-"))
    failed = False
    screen = Screen()
    try:
        with Processes(folder) as processes:
            story = Story(folder, rounds, seed, screen, processes)
            try:
                story.tell()
            except Exception:
                failed = True
                raise
            except (KeyboardInterrupt, SystemExit):
                screen.say("stopping the broker, the server and the agents ...")
                raise
            finally:
                if json is not None:
                    json.write_bytes(msgspec.json.format(msgspec.json.encode(story.report), indent=2) + b"\n")
        screen.summary(story.report)
        return story.report
    finally:
        if not failed and keep is None:
            _remove(folder)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
