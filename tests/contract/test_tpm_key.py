"""A key in a TPM 2.0, through its PKCS#11 module: the agent's own code, a TPM in a process of its own."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pkcs11
import pytest
from tests.contract.test_agent import RunningAgent
from tests.contract.test_fleet_grid import ended, start
from tests.server_harness import RunningServer, config_of
from tests.tokens import PIN, TPM, SoftTpm, needs_tpm

from umbel import signing
from umbel.plan import Plan
from umbel_edge.keys import KeyConfig
from umbel_edge.state import AgentState
from umbel_edge.token_keys import TokenStore
from umbel_sim.demo.processes import free_port

pytestmark = needs_tpm


@pytest.fixture
def tpm() -> Iterator[SoftTpm]:
    made = SoftTpm("umbel")
    before = {name: os.environ.get(name) for name in made.environment}
    os.environ.update(made.environment)  # which its module, in this process, reads when it is begun
    yield made
    pkcs11.lib(str(TPM)).finalize()
    made.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def config(folder: Path) -> KeyConfig:
    pin = folder / "pin"
    pin.touch(mode=0o600)
    pin.write_text(PIN)
    return KeyConfig("pkcs11", TPM, "umbel", pin_file=pin)


def test_a_device_trains_with_its_key_in_a_tpm(tpm: SoftTpm, tmp_path: Path, plan_of: Callable[[str], Plan]) -> None:
    running = RunningServer(tmp_path / "server", free_port(), tls=True)
    phone = msgspec.structs.replace(config_of(running, tmp_path / "phone"), key=config(tmp_path))
    agent = RunningAgent(phone)
    running.wait_online(1)
    plan = running.server.plans.add(plan_of("line").path)
    shown = ended(running, start(running, plan, {"quorum": 1, "deadline": 60.0}))
    assert shown["state"] == "finished", shown
    agent.stop()
    running.stop()
    assert not (phone.state / "key.pem").exists()
    tpm.flush()
    again = AgentState(phone.state, TokenStore(phone.key, threading.Event(), patient=False))
    known = running.server.devices.known("test", "phone").key
    assert signing.verify(signing.sign(b"after a restart", again.key), known) == b"after a restart"
    again.close()
