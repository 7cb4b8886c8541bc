"""The program itself: what it prints, how it exits, and what it makes of errors."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from safetensors import SafetensorError

import sagelr
from sagelr.cli import EXTRAS, explain, main
from sagelr.errors import SagelrError, UsageError
from sagelr.recipe import built_in
from sagelr.study.signals import InterruptedStudyError


@pytest.fixture
def program(monkeypatch, capsys):
    """Runs `sagelr` in this process; gives exit status, output and errors."""

    def run(*words: str):
        monkeypatch.setattr(sys, "argv", ["sagelr", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        told = capsys.readouterr()
        return stop.value.code or 0, told.out, told.err

    return run


def test_version(program):
    assert program("--version") == (0, f"sagelr {sagelr.__version__}\n", "")


@pytest.mark.parametrize("command", ["compare", "train", "recipes", "report"])
def test_every_command_has_a_help_page(program, command):
    status, out, _ = program(command, "-h")
    assert status == 0
    assert f"sagelr {command}" in out
    assert command in program("--help")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compre"], "No such command 'compre'"),
        (["compare"], "Missing argument"),
        (["compare", "digits-vit", "--seed", "3"], "No such option: --seed"),
        (["compare", "digits-vit", "--seeds", "few"], "--seeds"),
        (["recipes", "show", "digits"], "There is no recipe 'digits'"),
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_a_request_that_cannot_be_right(program, words, message):
    status, _, err = program(*words)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_recipes_are_listed(program):
    status, out, _ = program("recipes")
    assert status == 0
    assert all(name in out for name in built_in())


def test_a_recipe_is_shown_as_it_can_be_used(program, tmp_path):
    status, out, _ = program("recipes", "show", "digits-vit")
    assert status == 0
    assert out == built_in()["digits-vit"]
    assert tomllib.loads(out)["name"] == "digits-vit"


def test_the_end_of_a_file_is_no_wish_to_stop(program, monkeypatch):
    def cut():
        raise EOFError("Ran out of input")

    monkeypatch.setattr("sagelr.recipe.built_in", cut)
    status, _, err = program("recipes")
    assert status == 1
    assert "Error: RuntimeError: a file ended too early: Ran out of input" in err
    assert "Aborted" not in err


# -- errors in words ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (SagelrError("it broke."), 1, "Error: it broke."),
        (UsageError("it cannot be."), 2, "Error: it cannot be."),
        (InterruptedStudyError("Stopped. All is kept.", 15), 143, "Stopped. All is kept."),
        (KeyboardInterrupt(), 130, "Stopped."),
        (MemoryError(), 1, "Error: out of memory. Use fewer --jobs"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 1, "Error: x: No space left"),
        (OSError(errno.EACCES, "Permission denied", "x"), 1, "and, for --out, write to"),
        (OSError(errno.EIO, "Input/output error"), 1, "Error: Input/output error. Check"),
        (RuntimeError("unexpected pos 9 vs 1"), 1, "Error: no space left on the device. Make room"),
        (
            SafetensorError("I/O error: No space left on device (os error 28)"),
            *(1, "Error: no space left on the device. Make room"),
        ),
        (RuntimeError("at\nodds"), 1, "Error: RuntimeError: at odds\nThis should not happen."),
        (ModuleNotFoundError(name="no_such"), 1, "This should not happen"),
    ],
)
def test_errors_in_words(error, status, message):
    told, got = explain(error)
    assert got == status
    assert message in told


@pytest.mark.parametrize("module", sorted(EXTRAS))
def test_a_missing_extra_is_named(module):
    told, status = explain(ModuleNotFoundError(name=f"{module}.inner"))
    assert status == 1
    assert told == f"Error: {module} is missing. Install it: pip install 'sagelr[{EXTRAS[module]}]'"
    extras = tomllib.loads(
        (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]["optional-dependencies"]
    assert EXTRAS[module] in extras


def test_a_traceback_can_be_asked_for(program, monkeypatch):
    monkeypatch.setenv("SAGELR_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["sagelr", "recipes", "show", "digits"])
    with pytest.raises(UsageError):
        main()


# -- as a process -------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("recipes",), ("recipes", "show", "digits-vit")])
def test_output_that_has_not_all_characters(words):
    """Of a recipe every one arrives, for it is a file; elsewhere some give way."""
    found = subprocess.run(
        [sys.executable, "-m", "sagelr", *words],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    if len(words) == 3:
        assert found.stdout.decode() == built_in()["digits-vit"]


def test_as_a_module_and_with_a_reader_that_leaves():
    process = subprocess.Popen(
        [sys.executable, "-m", "sagelr", "recipes", "show", "digits-vit"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    told = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) in (0, 1)
    assert "Traceback" not in told
    assert "Error" not in told
