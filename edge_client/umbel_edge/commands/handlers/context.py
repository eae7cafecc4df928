"""The parts of the device that command handlers use."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from umbel.plan import Plan
from umbel_edge.commands.outgoing import Outgoing
from umbel_edge.commands.plan_cache import PlanCache
from umbel_edge.config import AgentConfig
from umbel_edge.connection.http import ServerHttp
from umbel_edge.connection.resumable_uploads import Uploads
from umbel_edge.connection.server_keys import ServerKeys
from umbel_edge.connection.standing import Standing
from umbel_edge.device.installed_models import Models
from umbel_edge.device.readings import Conditions
from umbel_edge.device.state import AgentState
from umbel_edge.training.example_cache import ExampleCache
from umbel_edge.training.trainers import Trainer


@dataclass(frozen=True)
class HandlerContext:
    """One device's parts, made once by the agent and given to every handler.

    `why_stop(assignment)` is the reason why work on an assignment must end now, empty while it may go on. `now` is the
    server's time in Unix seconds.
    """

    config: AgentConfig
    state: AgentState
    http: ServerHttp
    uploads: Uploads
    keys: ServerKeys
    standing: Standing
    outgoing: Outgoing
    trainer: Trainer
    models: Models
    conditions: Conditions
    plans: PlanCache
    examples: ExampleCache
    count_examples: Callable[[], int]
    why_stop: Callable[[str], str]
    now: Callable[[], float]

    @property
    def downloads(self) -> Path:
        """The folder in which broken downloads wait for their rest."""
        return self.state.folder / "downloads"

    @property
    def progress_path(self) -> Path:
        """The file of the training that is half finished."""
        return self.state.folder / "progress.npz"

    def personal_weights(self, plan: Plan) -> Path:
        """The file of the plan's weights after this device's last training."""
        return self.state.folder / "personal" / f"{plan.sha256[:16]}.safetensors"
