"""Programs that a fault test starts, kills, starts again - and proves to be gone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent.parent
STOP_SECONDS = 15.0


class Programs:
    """Started programs by name, each the leader of a session of its own, logging to `<folder>/<name>.log`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._sessions: set[int] = set()

    def start(self, name: str, *command: str, **environment: str) -> None:
        """Start a program whose standard input stays open until it is stopped."""
        assert name not in self._running, f"{name} runs already"
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
                start_new_session=True,
            )
        self._running[name] = process
        self._sessions.add(process.pid)

    def log(self, name: str) -> Path:
        """Where a program's output goes."""
        return self._folder / f"{name}.log"

    def pid(self, name: str) -> int:
        """The process id of a running program."""
        return self._running[name].pid

    def runs(self, name: str) -> bool:
        """Whether it was started and has not ended."""
        return name in self._running and self._running[name].poll() is None

    def tell(self, name: str, line: str) -> None:
        """Write a line to its standard input."""
        pipe = self._running[name].stdin
        assert pipe is not None
        pipe.write(f"{line}\n".encode())
        pipe.flush()

    def kill(self, name: str) -> None:
        """SIGKILL."""
        process = self._running.pop(name)
        process.kill()
        self._wait(process)

    def kill_session(self, name: str) -> None:
        """SIGKILL it and everything it started."""
        process = self._running.pop(name)
        for member in self._members({process.pid}):
            member.kill()
        self._wait(process)

    def stop(self) -> list[str]:
        """Ask every program to end as a person would; returns those that did not, or did it with an error."""
        running, self._running = self._running, {}
        for process in running.values():
            assert process.stdin is not None
            process.stdin.close()
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        wrong = []
        for name, process in running.items():
            try:
                code = process.wait(STOP_SECONDS)
                if code not in (0, -signal.SIGTERM):
                    wrong.append(f"{name} ended with exit code {code}")
            except subprocess.TimeoutExpired:
                wrong.append(f"{name} did not end within {STOP_SECONDS:.0f} s of SIGTERM")
                process.kill()
                process.wait()
        return wrong

    def left_over(self) -> list[str]:
        """Everything of the started sessions that still runs; it is killed."""
        found = []
        for member in self._members(self._sessions):
            found.append(f"process {member.pid} is left: {' '.join(member.cmdline())[:100]}")
            member.kill()
        return found

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin is not None:
            process.stdin.close()
        process.wait()

    def _members(self, sessions: set[int]) -> list[psutil.Process]:
        members = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                    members.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return members


def script(name: str) -> str:
    """The console script `name` of this Python environment."""
    return str(Path(sys.executable).with_name(name))
