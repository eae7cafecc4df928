"""Quarantine: a device whose updates are rejected too often gets no work until an administrator readmits it."""

import logging

from sqlalchemy.orm import Session

from umbel_server.devices.register import ACTIVE
from umbel_server.rounds.policy import RoundPolicy
from umbel_server.storage.database import Device, Run

log = logging.getLogger("umbel.devices")


def count_rejection(session: Session, run: str, population: str, device: str, reason: str) -> None:
    """Count one more rejection of a device's work, within the caller's transaction, and quarantine it if the run says that
    these are too many.
    """
    settings = session.get_one(Run, run).settings
    most = settings.get("policy", {}).get("max_rejections", RoundPolicy().max_rejections)
    row = session.get_one(Device, (population, device))
    if row.state != ACTIVE:
        return  # an administrator refused its work, whatever that was worth
    row.rejections += 1
    if most and row.rejections >= most:
        row.quarantined = f"{row.rejections} updates were rejected, the last because {reason}"
        log.warning("device %s/%s is quarantined: %s", population, device, row.quarantined)
