"""The distributions of Umbel: `umbel` has all of it, `umbel-edge` a device's part of it."""

from importlib import metadata

from umbel.errors import UmbelError

WHOLE, DEVICE_PART = "umbel", "umbel-edge"


def check_distributions() -> None:
    """Raise UmbelError when both distributions are installed: they own the same files, which may be of two versions."""
    found = {}
    for name in (WHOLE, DEVICE_PART):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            return
    raise UmbelError(
        f"{WHOLE} {found[WHOLE]} and {DEVICE_PART} {found[DEVICE_PART]} are both installed, and own the same files: "
        f"pip uninstall {WHOLE} {DEVICE_PART}; then install one of them, 'umbel[edge]' or 'umbel-edge'"
    )
