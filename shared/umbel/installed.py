"""Umbel's two distributions: `umbel` holds everything, `umbel-edge` only what a device needs."""

from importlib import metadata

from umbel.errors import UmbelError

WHOLE, DEVICE_PART = "umbel", "umbel-edge"


def check_distributions() -> None:
    """Raise UmbelError when both distributions are installed: they own the same files, perhaps of different versions."""
    found = {}
    for name in (WHOLE, DEVICE_PART):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            return
    raise UmbelError(
        f"{WHOLE} {found[WHOLE]} and {DEVICE_PART} {found[DEVICE_PART]} are both installed and own the same files: "
        f"pip uninstall {WHOLE} {DEVICE_PART}; then install one of them, 'umbel[edge]' or 'umbel-edge'"
    )
