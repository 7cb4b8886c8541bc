"""What tests share: the recorded data, how Hypothesis runs, and the record of integrations."""

import importlib.metadata
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile(
    "sagelr", deadline=None, max_examples=50, derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("sagelr")

# Workers of pytest-xdist share the cores. With as many threads as cores in each of them, OpenMP's
# waiting threads take the time of the working ones, and the tests take four times as long.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recorded data; a test that asks for it is skipped where there is none."""
    named = os.environ.get("SAGELR_DATA")
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(named) if named else beside
    if not folder.is_dir():
        pytest.skip(f"no recorded data: {folder} does not exist; SAGELR_DATA names the folder")
    return folder


# -- which library was tested, for docs/integrations.md ------------------------------------------
# A test module that holds LIBRARY = "peft" tests sagelr with peft. With SAGELR_MATRIX=FILE.json in
# the environment, what passed is added to that file, from which docs/make_integrations.py makes the
# page. A case of a test that did not pass stands beside it, under its own name.


@pytest.fixture(autouse=True)
def _library(request: pytest.FixtureRequest) -> None:
    library = getattr(request.module, "LIBRARY", None)
    if library is not None:
        request.node.user_properties.append(("library", library))


_seen: dict[str, dict[str, str]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    library = dict(report.user_properties).get("library")
    over = report.when == "call" or (report.when == "setup" and report.skipped)
    if library is None or not (over or report.failed):
        return
    case = report.nodeid.rpartition("::")[2]
    name = case.partition("[")[0]
    outcome = report.outcome
    if report.skipped and isinstance(report.longrepr, tuple):
        outcome = f"skipped: {report.longrepr[2].removeprefix('Skipped: ')}"
    _seen.setdefault(library, {})[name if outcome == "passed" else case] = outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = os.environ.get("SAGELR_MATRIX")
    if not target or hasattr(session.config, "workerinput"):
        return
    path = Path(target)
    known = json.loads(path.read_text()) if path.exists() else {}
    for library, tests in _seen.items():
        try:
            version = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            version = None
        entry = known.setdefault(library, {"tests": {}})
        entry["version"] = version
        entry["date"] = datetime.now(UTC).date().isoformat()
        entry["tests"].update(tests)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
