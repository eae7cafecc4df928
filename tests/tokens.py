"""Real PKCS#11 tokens for tests: SoftHSM's, and those of a software TPM."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.waiting import eventually
from umbel_edge.config import KeyConfig

PIN = "12345678"
_SO_PIN = "87654321"
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/local/lib")


def _module(*names: str) -> Path | None:
    places = (Path(folder) / name for folder in _LIBRARIES for name in names)
    return next((path for path in places if path.exists()), None)


SOFTHSM = _module("softhsm/libsofthsm2.so", "libsofthsm2.so")
TPM = _module("libtpm2_pkcs11.so.1", "pkcs11/libtpm2_pkcs11.so")
_NEEDED_BY_TPM = ("swtpm", "pkcs11-tool", "tpm2_flushcontext")

# Where CI is set what a test needs is installed, and a test that finds it missing fails.
needs_softhsm = pytest.mark.skipif(SOFTHSM is None and "CI" not in os.environ, reason="SoftHSM is not installed")
needs_tpm = pytest.mark.skipif(
    (TPM is None or not all(map(shutil.which, _NEEDED_BY_TPM))) and "CI" not in os.environ,
    reason="a software TPM is not installed (swtpm, libtpm2-pkcs11-1, opensc, tpm2-tools)",
)


class SoftHsm:
    """A token of SoftHSM in `folder`, which `take_out` and `put_in` remove and return, as if it were pulled.

    SoftHSM reads its configuration once a process: every token is in the one folder of the process.
    """

    def __init__(self, folder: Path, label: str) -> None:
        assert SOFTHSM is not None, "SoftHSM is not installed"
        self.label, self._pin_file = label, folder / f"{label}.pin"
        configuration = os.environ.get("SOFTHSM2_CONF")
        if configuration is None:
            place = folder / "softhsm"
            (place / "tokens").mkdir(parents=True)
            path = place / "softhsm2.conf"
            path.write_text(
                f"directories.tokendir = {place / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
            )
            configuration = os.environ["SOFTHSM2_CONF"] = str(path)
        self._tokens = Path(configuration).parent / "tokens"
        before = set(self._tokens.iterdir())
        _run("softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", _SO_PIN)
        (self._token,) = set(self._tokens.iterdir()) - before
        self.write_pin(PIN)

    def write_pin(self, pin: str) -> None:
        self._pin_file.touch(mode=0o600)
        self._pin_file.write_text(pin + "\n")

    def config(self, **other: object) -> KeyConfig:
        return KeyConfig("pkcs11", SOFTHSM, self.label, pin_file=self._pin_file, **other)  # type: ignore[arg-type]

    def take_out(self) -> None:
        self._token.rename(self._away)

    def put_in(self) -> None:
        self._away.rename(self._token)

    @property
    def _away(self) -> Path:
        return self._tokens.parent / f"{self._token.name}.away"


class SoftTpm:
    """A TPM 2.0 in a process, with one token of tpm2-pkcs11; `flush` does what a resource manager does."""

    def __init__(self, label: str) -> None:
        assert TPM is not None, "tpm2-pkcs11 is not installed"
        self.label = label
        self._folder = folder = Path(tempfile.mkdtemp(prefix="umbel-tpm-"))  # the name of a socket is short
        (folder / "store").mkdir()
        socket = folder / "tpm"
        self.environment = {
            "TPM2TOOLS_TCTI": f"swtpm:path={socket}",
            "TPM2_PKCS11_TCTI": f"swtpm:path={socket}",
            "TPM2_PKCS11_STORE": str(folder / "store"),
        }
        server = ("--server", f"type=unixio,path={socket}", "--ctrl", f"type=unixio,path={folder / 'tpm.ctrl'}")
        flags = ("--flags", "not-need-init,startup-clear")
        self._process = subprocess.Popen(["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}", *server, *flags])
        try:
            eventually(socket.exists)
            self._tool("--init-token", "--slot-index", "0", "--label", label, "--so-pin", _SO_PIN)
            self._tool("--init-pin", "--token-label", label, "--so-pin", _SO_PIN, "--pin", PIN)
            self.flush()
        except BaseException:
            self.stop()
            raise

    def _tool(self, *words: str) -> None:
        _run("pkcs11-tool", "--module", str(TPM), *words, **self.environment)

    def flush(self) -> None:
        """Let the TPM forget what processes that have ended had loaded."""
        _run("tpm2_flushcontext", "--transient-object", **self.environment)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder)


def _run(*words: str, **environment: str) -> None:
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
