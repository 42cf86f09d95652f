#!/usr/bin/env python3
"""
Collect every wheel that a machine without internet needs, and print the line that installs them.

The target is a Linux x86-64 machine that has Python and torch with torchvision already, as compute
clusters do; neither is collected. Its Python version may differ from the one that runs this::

    python tools/build_wheelhouse.py --python-version 3.12

Versions are those of requirements.txt. Needs pip and a package index; no torch, no compiler.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# glibc 2.28 (2018) is what current wheels ask for: RHEL 8, Debian 10, Ubuntu 20.04 and newer.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]

# Published as source only; pure Python, so a wheel built here fits everywhere.
SOURCE_ONLY = ("antlr4-python3-runtime", "fvcore", "iopath")
BUILD_TOOLS = ("setuptools", "wheel")

# What lt_detectron2's own wheel is built from.
PACKAGE_SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "lt_detectron2")

INSTALL = "python -m pip install --no-index --find-links {folder} 'lt_detectron2[test]' detectron2"
INSTALL_LVIS = "python -m pip install --no-index --find-links {folder} --no-deps lvis"


class WheelhouseError(RuntimeError):
    """A failure whose message says what to do."""


def requirements_for(text: str, python_version: str) -> list[str]:
    """
    Return the ``name==version`` pins that apply to a Linux machine with this Python.

    pip would judge the conditions of requirements.txt by the Python that runs it, not by the
    target's. Only the kinds of conditions that the file uses are understood: a platform, a version
    of Python, and both joined by "and".

    Raises:
        WheelhouseError: a condition of another kind.
    """
    pins = []
    for line in text.splitlines():
        pin, _, condition = (part.strip() for part in line.partition(";"))
        if not pin or pin.startswith("#"):
            continue
        try:
            if not condition or all(
                holds(term, python_version) for term in condition.split(" and ")
            ):
                pins.append(pin)
        except ValueError as error:
            raise WheelhouseError(
                f"requirements.txt: cannot judge the condition in {line!r}"
            ) from error
    return pins


def holds(term: str, python_version: str) -> bool:
    """Whether one comparison of a condition is true on Linux. ValueError: of another kind."""
    if term == "sys_platform == 'win32'":
        return False
    match = re.fullmatch(r"python_full_version (<|>=|==) '(\d+\.\d+)(?:\.\*)?'", term)
    if match is None:
        raise ValueError(term)
    target, bound = version_numbers(python_version), version_numbers(match[2])
    return {"<": target < bound, ">=": target >= bound, "==": target == bound}[match[1]]


def version_numbers(version: str) -> tuple[int, ...]:
    """The major and minor number of a version such as 3.12."""
    return tuple(int(part) for part in version.split(".")[:2])


def pip(python: str, arguments: Iterable[str]) -> None:
    """Run pip; raise WheelhouseError when it fails (its output has been shown)."""
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    status = subprocess.run(command).returncode
    if status != 0:
        raise WheelhouseError(f"exit status {status} from: {' '.join(command)}")


def build(folder: Path, python_version: str) -> None:
    """
    Fill `folder` with the wheels for one Python version, in the place of those that are there.

    Raises:
        WheelhouseError: pip could not download or build one of them.
    """
    pins = requirements_for((ROOT / "requirements.txt").read_text("utf-8"), python_version)
    binary = [pin for pin in pins if pin.split("==")[0] not in SOURCE_ONLY]
    source = [pin for pin in pins if pin.split("==")[0] in SOURCE_ONLY]
    tools = [pin for pin in pins if pin.split("==")[0] in BUILD_TOOLS]
    with tempfile.TemporaryDirectory() as scratch:
        wheels = Path(scratch) / "wheels"
        print(f"Downloading {len(binary)} wheels for Python {python_version}", flush=True)
        tag = "".join(python_version.split(".")[:2])
        target = ["--python-version", python_version, "--implementation", "cp"]
        target += [f"--abi={abi}" for abi in (f"cp{tag}", "abi3", "none")]
        target += [f"--platform={platform}" for platform in PLATFORMS]
        download = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", *target]
        pip(sys.executable, [*download, "--dest", str(wheels), *binary])

        print("Building the wheels of what comes as source", flush=True)
        venv.create(Path(scratch) / "builder", with_pip=True)
        builder = str(Path(scratch) / "builder" / "bin" / "python")
        pip(builder, ["install", "--quiet", *tools])
        # Built from a copy: an old build folder in the checkout must not leak into the wheel.
        package = Path(scratch) / "package"
        package.mkdir()
        for name in PACKAGE_SOURCES:
            path = ROOT / name
            if path.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(path, package / name, ignore=ignored)
            elif path.exists():
                shutil.copy(path, package)
        wheel = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
        pip(builder, [*wheel, str(wheels), *source, str(package)])

        command = [sys.executable, str(ROOT / "tools" / "install_detectron2.py")]
        command += ["--wheel-only", "--wheel-dir", str(wheels)]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode != 0:
            raise WheelhouseError("the wheel of Detectron2 could not be made, see above")

        unfit = [path.name for path in wheels.iterdir() if path.name.endswith("linux_x86_64.whl")]
        unfit = [name for name in unfit if "manylinux" not in name]
        if unfit:
            raise WheelhouseError(f"built for this machine only: {', '.join(unfit)}")
        replace_wheels(wheels, folder)


def replace_wheels(wheels: Path, folder: Path) -> None:
    """Copy wheels to a folder, in the place of those that are there; other files stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    for wheel in wheels.glob("*.whl"):
        shutil.copy(wheel, folder)


def main() -> int:
    """Command line; returns the exit status."""
    running = ".".join(str(number) for number in sys.version_info[:2])
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--python-version", default=running, help="of the target machine")
    parser.add_argument(
        "--folder", type=Path, default=Path("wheelhouse"), help="new wheels take the place of old"
    )
    options = parser.parse_args()
    if not re.fullmatch(r"3\.\d+", options.python_version):
        parser.error(f"--python-version: expected e.g. 3.12, got {options.python_version}")
    try:
        build(options.folder, options.python_version)
    except (WheelhouseError, OSError) as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return 1
    wheels = sorted(options.folder.glob("*.whl"))
    size = sum(path.stat().st_size for path in wheels) / 2**20
    print(f"{len(wheels)} wheels, {size:.0f} MiB, in {options.folder} for Python "
          f"{options.python_version}.")  # fmt: skip
    print("Copy the folder and this repository to the machine. There, with torch and torchvision:")
    print("  " + INSTALL.format(folder=options.folder))
    print("and, to compare with the official LVIS evaluation in the tests:")
    print("  " + INSTALL_LVIS.format(folder=options.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
