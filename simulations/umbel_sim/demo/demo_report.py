"""The report of a demo: its phases, its release, and a row for each device."""

import msgspec


class DeviceReport(msgspec.Struct):
    """What the demo measured of one device; memory in MB (10^6 bytes)."""

    id: str
    kind: str
    trainer: str
    examples: int = 0
    rounds: int = 0
    rss_mb: float = 0.0
    imports: list[str] = []
    installed: str = ""
    answers_right: int = 0
    answers_total: int = 0
    personal_accuracy: float = 0.0


class Report(msgspec.Struct):
    """The demo's outcome, as `--json` writes it; times in seconds."""

    ok: bool = False
    wall_s: float = 0.0
    phases: dict[str, float] = {}
    accuracy: list[float] = []
    keras_accuracy: float = 0.0
    release: dict[str, dict[str, float]] = {}
    devices: list[DeviceReport] = []
