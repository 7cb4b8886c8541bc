"""The wheel: what it holds, what it asks for, and that each extra installs and imports alone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
# Extra → a line of Python that has to work with it and nothing else.
IMPORTS = {
    "train": "import sagelr.train, sagelr.study.run, sagelr.audit; from sagelr.cli import main",
    "report": "import sagelr.report",
    "optax": "import sagelr.integrations.optax",
    "postgres": "import psycopg",
}


def run(*command: object) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT)
    [built] = folder.glob("sagelr-*.whl")
    return built


@pytest.fixture(scope="module")
def with_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with torch alone."""
    folder = tmp_path_factory.mktemp("torch") / "env"
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin" / "python", "-m", "pip", "install", "-q", "-c", CONSTRAINTS, "torch")
    return folder


def copy_of(environment: Path, folder: Path) -> Path:
    """The python of a copy; linked files, since pip replaces them and never writes into them."""
    shutil.copytree(environment, folder, copy_function=os.link, symlinks=True)
    return folder / "bin" / "python"


def installed(python: Path) -> set[str]:
    listed = run(python, "-m", "pip", "list", "--format=freeze")
    return {line.partition("==")[0].partition(" @")[0].lower() for line in listed.splitlines()}


@pytest.mark.processes
def test_the_wheel_holds_the_package_and_its_files(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        "py.typed",
        "engines/cpu_kernel.cpp",
        "engines/cpu_state.h",
        "engines/cpu_lanes.h",
        "recipes/digits-vit.toml",
    }
    assert {f"sagelr/{name}" for name in wanted} <= names
    assert any(name.startswith("sagelr/report/templates/") for name in names)
    assert not any(name.startswith(("tests", "examples", "evidence")) for name in names)


@pytest.mark.processes
def test_alone_it_brings_torch_and_nothing_else(wheel, with_torch, tmp_path):
    python = copy_of(with_torch, tmp_path / "env")
    before = installed(python)
    run(python, "-m", "pip", "install", "-q", "-c", CONSTRAINTS, wheel)
    assert installed(python) - before == {"sagelr"}
    run(python, "-c", "import sagelr; sagelr.SageAdamW")
    command = [python, "-m", "sagelr", "recipes"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'sagelr[train]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.processes
@pytest.mark.parametrize("extra", IMPORTS)
def test_each_extra_installs_and_imports_alone(extra, wheel, with_torch, tmp_path):
    python = copy_of(with_torch, tmp_path / "env")
    run(python, "-m", "pip", "install", "-q", "-c", CONSTRAINTS, f"{wheel}[{extra}]")
    run(python, "-c", IMPORTS[extra])


def test_importing_loads_torch_and_nothing_of_the_extras():
    """In a process of its own, since the others of this run have loaded everything."""
    extras = "transformers pydantic typer rich optuna scipy sklearn numpy.testing jinja2 plotly jax"
    found = run(
        sys.executable,
        "-c",
        "import torch, sys; before = set(sys.modules); import sagelr; "
        f"print([m for m in {extras.split()!r} if m in set(sys.modules) - before])",
    )
    assert found.strip() == "[]"
