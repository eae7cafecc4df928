"""Roots of ARM machines: Debian's Python and this project's dependencies, run by QEMU's user emulation.

A root is a folder of unpacked packages. It needs no privileges, no chroot and no container: QEMU looks for every absolute
path in the root first and on this machine after that. `python -m tests.arm.roots` builds the roots of all machines.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CACHE = REPOSITORY / ".cache" / "arm"
CONSTRAINTS = REPOSITORY / "constraints.txt"
DEBIAN = os.environ.get("UMBEL_DEBIAN", "http://deb.debian.org/debian")
"""The mirror that packages come from."""
RELEASE = "bookworm"
"""Its Python is 3.11, the oldest that Umbel supports and the last that tflite-runtime has wheels for."""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SECONDS = 300
"""The most that one step of building may take."""


class NotBuilt(Exception):
    """A root cannot be built here; the message says why and what to do."""


@dataclass(frozen=True)
class Machine:
    """An ARM machine: its name in wheels and in Debian, its emulator and core, and what is installed on it.

    `wheels` are requirements; their dependencies are installed too, unless `alone` is set. `cpuinfo` is what the machine
    says of its core: without a file of its own a library would read that of the machine below.
    """

    name: str
    debian: str
    emulators: tuple[str, ...]
    core: str
    cpuinfo: str
    packages: tuple[str, ...]
    wheels: tuple[str, ...]
    alone: bool
    needs: tuple[str, ...] = ()
    """Further programs that building needs, as in Debian's packages of the same name."""


def _pinned(*names: str) -> tuple[str, ...]:
    """The packages in the versions that this repository is tested with."""
    pins = dict(line.split("==") for line in CONSTRAINTS.read_text().splitlines())
    return tuple(f"{name}=={pins[name]}" for name in names)


def agent_dependencies() -> tuple[str, ...]:
    """The requirements of the distribution umbel-edge."""
    project = tomllib.loads((REPOSITORY / "edge_client" / "pyproject.toml").read_text())["project"]
    return tuple(project["dependencies"])


AARCH64 = Machine(
    name="aarch64",
    debian="arm64",
    emulators=("qemu-aarch64-static", "qemu-aarch64"),
    core="cortex-a72",
    cpuinfo=(
        "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\n"
        "CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd08\nCPU revision\t: 3\n"
    ),
    packages=("python3.11", "libstdc++6"),
    wheels=(*agent_dependencies(), *_pinned("packaging")),
    alone=False,
)
ARMV7 = Machine(
    name="armv7l",
    debian="armhf",
    emulators=("qemu-arm-static", "qemu-arm"),
    core="cortex-a7",
    cpuinfo=(
        "processor\t: 0\nmodel name\t: ARMv7 Processor rev 5 (v7l)\nBogoMIPS\t: 38.40\n"
        "Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm\n"
        "CPU implementer\t: 0x41\nCPU architecture: 7\nCPU variant\t: 0x0\nCPU part\t: 0xc07\nCPU revision\t: 5\n"
    ),
    packages=("python3.11", "python3-numpy", "python3-cffi-backend", "libpython3.11-dev", "libstdc++6"),
    # cryptography 46 and newer want a newer cffi than Debian's. There is no psutil: the agent does without.
    wheels=(
        *("cryptography==45.0.7", "tflite-runtime==2.14.0"),
        *_pinned("joserfc", "packaging", "paho-mqtt", "pycparser", "safetensors", "urllib3"),
    ),
    alone=True,
    needs=("arm-linux-gnueabihf-gcc",),
)
MACHINES = (AARCH64, ARMV7)
UNUSED = ("flatbuffers", "google", "ml_dtypes", "tqdm")
DEBIAN_PACKAGE_OF = {"arm-linux-gnueabihf-gcc": "gcc-arm-linux-gnueabihf"}


@dataclass(frozen=True)
class Root:
    """A built root: runs Python programs of this repository as on the machine."""

    machine: Machine
    folder: Path
    emulator: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line of Python with `arguments`."""
        python = self.folder / "usr" / "bin" / "python3.11"
        return [self.emulator, "-L", str(self.folder), str(python), *map(str, arguments)]

    def run(self, *arguments: str | Path, seconds: float = 120) -> str:
        """What Python printed; raises CalledProcessError, after the program's standard error was shown."""
        done = subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True, timeout=seconds, check=False
        )
        if done.returncode:
            print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
            done.check_returncode()
        return done.stdout


def open_root(machine: Machine) -> Root:
    """The machine's root, built when there is none; raises NotBuilt."""
    emulator = _program(machine.emulators, "qemu-user-static")
    folder = CACHE / f"{machine.name}-{_digest(machine)}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{machine.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            for old in CACHE.glob(f"{machine.name}-*"):
                shutil.rmtree(old)
            _build(machine, folder)
    parts = [
        REPOSITORY / "shared",
        REPOSITORY / "edge_client",
        folder / "site",
        folder / "usr/lib/python3/dist-packages",
    ]
    environment = {
        "PYTHONPATH": os.pathsep.join(map(str, parts)),
        "QEMU_CPU": machine.core,
        "HOME": str(CACHE),
        "LANG": "C.UTF-8",
        "PATH": os.environ["PATH"],
    }
    return Root(machine, folder, emulator, environment)


def _digest(machine: Machine) -> str:
    """Of everything that a root is made of."""
    total = hashlib.sha256(repr((machine, DEBIAN, RELEASE)).encode())
    for path in (Path(__file__), CONSTRAINTS):
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def _build(machine: Machine, folder: Path) -> None:
    for program in ("apt-get", "dpkg-deb", *machine.needs):
        _program((program,), DEBIAN_PACKAGE_OF.get(program, "dpkg"))
    if not KEYRING.exists():
        raise NotBuilt(f"{KEYRING} is missing; install debian-archive-keyring")
    work = folder.with_name(f"building-{machine.name}")
    shutil.rmtree(work, ignore_errors=True)
    root = work / "root"
    (root / "site").mkdir(parents=True)
    (root / "proc").mkdir()
    (root / "proc" / "cpuinfo").write_text(machine.cpuinfo)
    for archive in _debian_packages(machine, work / "apt"):
        _do(["dpkg-deb", "-x", archive, root])
    for wheel in _wheels(machine, work / "wheels"):
        with zipfile.ZipFile(wheel) as archive_of_files:
            archive_of_files.extractall(root / "site")
    for finish in _FINISH[machine.name]:
        finish(root, work)
    shutil.rmtree(root / "usr" / "share", ignore_errors=True)
    root.rename(folder)
    shutil.rmtree(work)


def _debian_packages(machine: Machine, work: Path) -> list[Path]:
    """The machine's packages and what they depend on, downloaded by an apt that knows nothing of this machine's."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        (work / part).mkdir(parents=True)
    (work / "status").touch()
    (work / "sources.list").write_text(f"deb [signed-by={KEYRING}] {DEBIAN} {RELEASE} main\n")
    settings = {
        "APT::Architecture": machine.debian,
        "APT::Architectures": machine.debian,
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "1",
        "Dir::State": work / "state",
        "Dir::State::status": work / "status",
        "Dir::Cache": work / "cache",
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Acquire::Retries": "3",
    }
    apt = ["apt-get", "-qq", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]
    _do([*apt, "update"])
    _do([*apt, "install", "-y", "--download-only", "--no-install-recommends", *machine.packages])
    return sorted((work / "cache" / "archives").glob("*.deb"))


def _wheels(machine: Machine, work: Path) -> list[Path]:
    platforms = [f"manylinux2014_{machine.name}", *(f"manylinux_2_{n}_{machine.name}" for n in range(17, 37))]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", work, "--only-binary=:all:"]
    pip += ["--python-version", "3.11", *(word for name in platforms for word in ("--platform", name))]
    _do([*pip, *(["--no-deps"] if machine.alone else ["-c", CONSTRAINTS]), *machine.wheels])
    return sorted(work.glob("*.whl"))


def _remove_unused(root: Path, work: Path) -> None:
    """What LiteRT's package asks for and its interpreter does not import: a device may leave it out."""
    for name in UNUSED:
        shutil.rmtree(root / "site" / name)


def _link_blas(root: Path, work: Path) -> None:
    """NumPy's libraries under the names that Debian's alternatives give them."""
    libraries = root / "usr" / "lib" / "arm-linux-gnueabihf"
    for name in ("blas", "lapack"):
        (libraries / f"lib{name}.so.3").symlink_to(f"{name}/lib{name}.so.3")


def _compile_msgspec(root: Path, work: Path) -> None:
    """msgspec has no wheel for armv7: its one C file is compiled, as pip does on the machine itself."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", work, "--no-deps", "--no-binary", "msgspec"]
    _do([*pip, "-c", CONSTRAINTS, "msgspec"])
    _do(["tar", "-xzf", *work.glob("msgspec-*.tar.gz"), "-C", work])
    (source,) = (path for path in work.glob("msgspec-*/src/msgspec") if path.is_dir())
    package = root / "site" / "msgspec"
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("*.c", "*.h"))
    include = root / "usr" / "include"
    headers = [f"-I{path}" for path in (include / "python3.11", include, include / "arm-linux-gnueabihf")]
    (metadata,) = work.glob("msgspec-*/PKG-INFO")
    folder = root / "site" / f"{metadata.parent.name}.dist-info"
    folder.mkdir()
    shutil.copy(metadata, folder / "METADATA")
    compiler = ["arm-linux-gnueabihf-gcc", "-O1", "-shared", "-fPIC", f"--sysroot={root}", *headers]
    _do([*compiler, source / "_core.c", "-o", package / "_core.so"])


_FINISH: dict[str, tuple[Callable[[Path, Path], None], ...]] = {
    "aarch64": (_remove_unused,),
    "armv7l": (_link_blas, _compile_msgspec),
}


def _program(names: Sequence[str], package: str) -> str:
    found = next((path for name in names if (path := shutil.which(name)) is not None), None)
    if found is None:
        raise NotBuilt(f"{names[0]} is not installed; install Debian's package {package}")
    return found


def _do(command: Sequence[str | Path]) -> None:
    words = [str(word) for word in command]
    try:
        subprocess.run(words, check=True, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.CalledProcessError as error:
        raise NotBuilt(f"{' '.join(words[:3])} ... failed: {(error.stderr or error.stdout).strip()[-2000:]}") from error
    except subprocess.TimeoutExpired as error:
        raise NotBuilt(f"{' '.join(words[:3])} ... took longer than {SECONDS} s") from error


if __name__ == "__main__":
    for one in MACHINES:
        try:
            print(f"{one.name}: {open_root(one).folder.relative_to(REPOSITORY)}")
        except NotBuilt as failure:
            sys.exit(f"the {one.name} root cannot be built: {failure}")
