"""The address of Umbel's Flower ServerApp for `flwr run`: `umbel_server.flower_app:app`."""

from umbel_server.runs.server_app import app

__all__ = ["app"]
