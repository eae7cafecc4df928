"""Devices whose work is rejected too often get no more, until an administrator readmits them."""

import logging

from sqlalchemy.orm import Session

from umbel_server.database import Assignment, Device, Run
from umbel_server.devices import ACTIVE
from umbel_server.rounds.policy import RoundPolicy

log = logging.getLogger("umbel.devices")


def count_rejection(session: Session, rejected: Assignment) -> None:
    """Count one more rejection of the assignment's device, within the caller's transaction, and quarantine it if its run
    says that these are too many.
    """
    settings = session.get_one(Run, rejected.run).settings
    most = settings.get("policy", {}).get("max_rejections", RoundPolicy().max_rejections)
    device = session.get_one(Device, (rejected.population, rejected.device))
    if device.state != ACTIVE:
        return  # an administrator refused its work, whatever that was worth
    device.rejections += 1
    if most and device.rejections >= most:
        device.quarantined = f"{device.rejections} updates were rejected, the last because {rejected.reason}"
        log.warning("device %s/%s is quarantined: %s", device.population, device.id, device.quarantined)
