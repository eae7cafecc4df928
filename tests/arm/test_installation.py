"""What the agent's distribution asks for is what the machines have."""

from pathlib import Path

import pytest

from tests.arm.roots import AARCH64, ARMV7, UNUSED, Root, agent_dependencies

PROGRAM = Path(__file__).parent / "programs" / "requirements_met.py"

pytestmark = [pytest.mark.arm, pytest.mark.long, pytest.mark.timeout(300)]


def test_every_requirement_of_the_agent_is_met(root: Root) -> None:
    wanted = agent_dependencies()
    assert root.run(PROGRAM, *wanted).split("\n") == [""]
    assert root.run(PROGRAM, "numpy>=1000", "nothing-of-this-name").split() == ["numpy>=1000", "nothing-of-this-name"]


def test_each_machine_has_its_own_runtime_and_no_psutil(root: Root) -> None:
    names = ("ai_edge_litert", "tflite_runtime", "psutil", *UNUSED)
    code = f"import importlib.util as u; print(*(n for n in {names} if u.find_spec(n) is not None))"
    runtime = {AARCH64.name: "ai_edge_litert", ARMV7.name: "tflite_runtime"}[root.machine.name]
    assert root.run("-c", code).split() == [runtime]
