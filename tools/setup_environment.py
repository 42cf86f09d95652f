#!/usr/bin/env python3
"""
Create or complete the environment of `make demo` and `make test`.

Run by make with the interpreter that the environment is to be based on. Each step finds out what
is there already, so a set-up that was interrupted is continued, and an existing environment (a
cluster's, a conda one) is completed: a working torch is never replaced.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MINIMAL_TORCH = (2, 4)
GIB = 1 << 30
INSTALLED, DOWNLOADED = 6 * GIB, 3 * GIB
"""Bytes of an environment with torch's CUDA libraries, and of the wheels, which pip removes."""


class SetupError(RuntimeError):
    """A failure whose message says what to do."""


def run(command: list[str]) -> None:
    """Run a command in the repository, showing it; raise SetupError when it fails."""
    print("+", shlex.join(command), flush=True)
    status = subprocess.run(command, cwd=ROOT).returncode
    if status != 0:
        raise SetupError(f"exit status {status} from: {shlex.join(command)}")


def succeeds(command: list[str]) -> bool:
    """Whether a command can be run and ends well; it shows nothing."""
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def torch_version(python: str) -> str | None:
    """
    The version of the torch that `python` imports together with torchvision.

    None where one of them is missing, does not load or is too old.
    """
    probe = "import json, torch, torchvision; print(); print(json.dumps(torch.__version__))"
    result = subprocess.run([python, "-c", probe], capture_output=True, text=True)
    if result.returncode != 0:
        return None
    version = json.loads(result.stdout.splitlines()[-1])
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    return version if numbers >= MINIMAL_TORCH else None


def want_of_space(venv: Path) -> str:
    """A hint for what failed, if the disk has no room for torch in an environment at `venv`."""
    existing = next(folder for folder in (venv, *venv.parents) if folder.is_dir())
    temporary = Path(tempfile.gettempdir())
    needed = {existing: INSTALLED}
    if existing.stat().st_dev == temporary.stat().st_dev:
        needed[existing] += DOWNLOADED
    else:
        needed[temporary] = DOWNLOADED
    for folder, size in needed.items():
        free = shutil.disk_usage(folder).free
        if free < size:
            return (
                f"\nThe disk of {folder} may be full: torch with its CUDA libraries takes "
                f"{size / GIB:.0f} GiB, and {free / GIB:.1f} are free. Free some, name another "
                "place (VENV=... for the environment, TMPDIR for what pip downloads), or a smaller "
                "build of torch (TORCH_ARGS)."
            )
    return ""


def create(venv: Path, python: Path) -> None:
    """Make sure that `venv` has a Python with pip."""
    if succeeds([str(python), "-m", "pip", "--version"]):
        print(f"Using the environment {venv}", flush=True)
        return
    options = []
    if torch_version(sys.executable) is not None:
        print(f"{sys.executable} has torch: {venv} will use it", flush=True)
        options = ["--system-site-packages"]
    try:
        run([sys.executable, "-m", "venv", *options, str(venv)])
    except SetupError as error:
        raise SetupError(
            f"{error}\nThis Python cannot create virtual environments. On Debian and Ubuntu: "
            "`apt install python3-venv`. Without root: name another Python (make test "
            "PYTHON=...) or an environment that you have (make test VENV=$CONDA_PREFIX)."
        ) from None


def install_torch(python: Path, torch_args: list[str]) -> None:
    """Install the pinned torch and torchvision, unless a pair that works is there."""
    version = torch_version(str(python))
    if version is not None:
        print(f"Keeping torch {version}", flush=True)
        return
    print("Installing torch: about 3 GB with its CUDA libraries, this takes a while", flush=True)
    files = ["--requirement", "requirements-torch.txt", "--constraint", "requirements.txt"]
    try:
        pip_install(python, *files, *torch_args)
    except SetupError as error:
        raise SetupError(f"{error}{want_of_space(python.parent)}") from None


def pip_install(python: Path, *arguments: str) -> None:
    """Run pip install in the environment."""
    run([str(python), "-m", "pip", "--disable-pip-version-check", "install", *arguments])


def pinned(*names: str) -> list[str]:
    """The lines of requirements.txt that pin these packages, or all."""
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    return [line for line in lines if not names or line.split("==")[0] in names]


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--venv", type=Path, required=True, help="folder of the environment")
    parser.add_argument("--torch-args", default="", help="more arguments of pip for torch")
    options = parser.parse_args()
    venv = options.venv.absolute()
    python = venv / "bin" / "python"
    try:
        create(venv, python)
        # Three dependencies come as source. Built by the pinned setuptools, without a build
        # environment of their own, they do not depend on what its newest version still supports.
        pip_install(python, "--quiet", *pinned("setuptools", "wheel"))
        install_torch(python, shlex.split(options.torch_args))
        # requirements.txt is complete; resolving it again would add the desktop OpenCV that lvis
        # declares, which does not load on a server.
        exactly = ["--quiet", "--no-deps", "--no-build-isolation"]
        print("Installing the other packages, about 200 MB", flush=True)
        pip_install(python, *exactly, "--requirement", "requirements.txt")
        run([str(python), "tools/install_detectron2.py"])
        pip_install(python, *exactly, "--editable", str(ROOT))
        run([str(python), "-m", "lt_detectron2", "doctor", "--environment"])
    except (SetupError, KeyboardInterrupt) as error:
        reason = str(error) or "interrupted"
        print(f"\nThe set-up did not finish: {reason}", file=sys.stderr)
        print(
            "What is done so far is kept and the same command continues. Should it fail again, "
            f"remove {venv} first if it is not an environment of yours.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
