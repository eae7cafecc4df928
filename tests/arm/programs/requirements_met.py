"""Print the requirements of umbel-edge that this machine does not meet: `requirements_met.py REQUIREMENT...`."""

import sys
from importlib import metadata

from packaging.requirements import Requirement


def is_met(requirement: Requirement) -> bool:
    """Whether the requirement is not for this machine, or an allowed version is installed."""
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    try:
        return metadata.version(requirement.name) in requirement.specifier
    except metadata.PackageNotFoundError:
        return False


for word in sys.argv[1:]:
    if not is_met(Requirement(word)):
        print(word)
