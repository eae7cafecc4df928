from collections.abc import Mapping
from pathlib import Path

import pytest
from flwr.app import UserConfigValue

from tests.bare_plan import bare_plan
from tests.memory_grid import MemoryGrid, Node, learner, weights
from tests.memory_journal import MemoryJournal
from umbel import UmbelError
from umbel.tensors import load
from umbel_server.flower import messages as flower_messages
from umbel_server.rounds.events import End
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.runs.flower_config import policy_of, settings_of
from umbel_server.runs.grid_port import GridPort
from umbel_server.runs.run_inputs import RunGrid, RunInputs
from umbel_server.runs.server_app import app, inputs_of, train_on
from umbel_server.runs.settings import RunSettings


@pytest.fixture
def plan(tmp_path: Path) -> str:
    return str(bare_plan(tmp_path / "bare.plan").path)


def train(grid: MemoryGrid, **config: UserConfigValue) -> None:
    app(grid, flower_messages.context(1, {name.replace("_", "-"): value for name, value in config.items()}))


def test_a_grid_without_a_journal_gets_a_folder(plan: str, tmp_path: Path) -> None:
    grid = MemoryGrid({1: learner(1), 2: learner(2)})
    train(grid, plan=plan, rounds=2, output=str(tmp_path / "out"), epochs=4, max_steps=5, seed=9, quorum=2, deadline=5)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "round-001.safetensors",
        "round-002.safetensors",
        "rounds.json",
    ]
    assert load((tmp_path / "out" / "round-002.safetensors").read_bytes()).keys() == weights().keys()
    assert grid.configs[0] == {"learning-rate": 0.25, "epochs": 4, "max-steps": 5, "seed": 10, "server-round": 1}


class OwnGrid(MemoryGrid, RunGrid):
    """A grid of ours: it carries its inputs."""

    def __init__(self, nodes: Mapping[int, Node], journal: MemoryJournal, settings: RunSettings) -> None:
        super().__init__(nodes)
        self._inputs = RunInputs(settings, GridPort(self, journal), learning_rate=0.5)

    @property
    def inputs(self) -> RunInputs:
        return self._inputs


def test_a_grid_of_ours_carries_what_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = MemoryJournal(weights(), evaluate=lambda commit: {"accuracy": 1.0})
    grid = OwnGrid({1: learner(1)}, journal, RunSettings(rounds=5, epochs=7, until="accuracy", at_least=0.9))
    assert train_on(grid) == End("finished", "accuracy is 1, the goal of 0.9 is reached")
    assert [commit.number for commit in journal.commits] == [1]
    assert (grid.configs[0]["epochs"], grid.configs[0]["learning-rate"]) == (7, 0.5)
    assert list(tmp_path.iterdir()) == []


def test_a_grid_of_ours_is_not_asked_for_strings(tmp_path: Path) -> None:
    grid = OwnGrid({1: learner(1)}, MemoryJournal(weights()), RunSettings(rounds=1))
    assert inputs_of(grid, {"plan": "nowhere", "rounds": "many"}) is grid.inputs


def test_a_run_that_pauses_on_a_grid_of_ours_says_so() -> None:
    policy = RoundPolicy(deadline=0.1, attempts=1)
    end = train_on(OwnGrid({}, MemoryJournal(weights()), RunSettings(policy=policy)))
    assert end is not None
    assert end.state == "paused"


def test_a_run_that_pauses_on_a_strange_grid_is_an_error(plan: str, tmp_path: Path) -> None:
    with pytest.raises(UmbelError, match=r"1 device is needed and 0 can train.*start the run again"):
        train(MemoryGrid({}), plan=plan, output=str(tmp_path / "out"), deadline=0.1, attempts=1)


def test_the_policy_is_read_from_its_fields_and_as_json() -> None:
    config: dict[str, UserConfigValue] = {"policy": '{"quorum": 2, "labels": {"site": "a"}}', "over-selection": 2.0}
    assert policy_of({**config, "deadline": 7}) == RoundPolicy(
        quorum=2, labels={"site": "a"}, over_selection=2.0, deadline=7.0
    )


def test_a_configuration_that_names_nothing_has_the_settings_defaults() -> None:
    assert settings_of({"plan": "line.plan"}) == RunSettings()


def test_options_and_a_learning_rate_reach_the_strategy(plan: str, tmp_path: Path) -> None:
    grid = MemoryGrid({1: learner(1)})
    config: dict[str, UserConfigValue] = {"plan": plan, "rounds": 1, "output": str(tmp_path / "out")}
    config |= {"strategy": "fedprox", "strategy.proximal_mu": 0.75, "learning-rate": 0.5}
    app(grid, flower_messages.context(1, config))
    assert grid.configs[0]["proximal-mu"] == 0.75
    assert grid.configs[0]["learning-rate"] == 0.5


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"strategy": "sgd"}, "no strategy 'sgd'"),
        ({"rounds": 0}, "the run's rounds should be at least 1, got 0"),
        ({"quorum": 0}, "the run's round policy cannot be used: quorum should be at least 1, got 0"),
        ({"select": "luck"}, "the run's round policy cannot be used: Invalid enum value 'luck'"),
        ({"rounds": 10**30}, r"the run's rounds should be at most 1,000,000,000, got 10\^30"),
        ({"budget-bytes": 10**400}, r"the run's budget-bytes should be at most .*, got 10\^400"),
        ({"at-least": float("inf")}, "the run's at-least should be at most"),
        ({"seed": -1}, "the run's seed should be at least 0, got -1"),
        ({"epochs": "many"}, "the run's epochs should be a number, got 'many'"),
        ({"deadline": float("nan")}, "deadline should be over 0, got nan"),
    ],
)
def test_a_run_that_makes_no_sense_is_refused(
    plan: str, tmp_path: Path, config: dict[str, UserConfigValue], sentence: str
) -> None:
    with pytest.raises(UmbelError, match=sentence):
        train(MemoryGrid({1: learner(1)}), plan=plan, output=str(tmp_path / "out"), **config)


def test_a_missing_plan_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UmbelError, match=r"missing.plan: expected a plan made by 'umbel compile'"):
        train(MemoryGrid({}), plan=str(tmp_path / "missing.plan"))
