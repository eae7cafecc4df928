"""The parts of the device that command handlers use."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from umbel.messages import Hello
from umbel.plan import Plan
from umbel_edge.commands.pending_updates import PendingUpdates
from umbel_edge.commands.plan_cache import PlanCache
from umbel_edge.config import AgentConfig
from umbel_edge.connection.http import ServerHttp
from umbel_edge.connection.participation import Participation
from umbel_edge.connection.resumable_downloads import Downloads
from umbel_edge.connection.resumable_uploads import Uploads
from umbel_edge.connection.server_keys import ServerKeys
from umbel_edge.device.condition_check import ConditionCheck
from umbel_edge.device.installed_models import InstalledModels
from umbel_edge.device.state import AgentState
from umbel_edge.training.example_cache import ExampleCache
from umbel_edge.training.trainer import Trainer


@dataclass(frozen=True)
class HandlerContext:
    """One device's parts, made once by the agent and given to every handler.

    `now` is the server's time in Unix seconds. `stopping` is set when the agent is to stop.
    """

    config: AgentConfig
    state: AgentState
    http: ServerHttp
    downloads: Downloads
    uploads: Uploads
    keys: ServerKeys
    participation: Participation
    pending_updates: PendingUpdates
    plans: PlanCache
    examples: ExampleCache
    count_examples: Callable[[], int]
    trainer: Trainer
    models: InstalledModels
    conditions: ConditionCheck
    answer_hello: Callable[[str, Hello], None]
    now: Callable[[], float]
    stopping: threading.Event

    def why_stop(self, assignment: str) -> str:
        """The reason why work on an assignment must end now; empty while it may continue."""
        if self.stopping.is_set():
            return "the agent is stopping"
        if self.participation.reason:
            return self.participation.reason
        return "cancelled by the server" if assignment in self.state.cancellations else ""

    @property
    def download_folder(self) -> Path:
        """The folder of downloads that broke off."""
        return self.state.folder / "downloads"

    @property
    def progress_path(self) -> Path:
        """The file of a half-finished training."""
        return self.state.folder / "progress.npz"

    def personal_weights(self, plan: Plan) -> Path:
        """The file of the plan's weights after this device's last training."""
        return self.state.folder / "personal" / f"{plan.sha256[:16]}.safetensors"
