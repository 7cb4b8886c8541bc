"""The fused CPU step: numbers of any size, and machines on which it cannot be built."""

import functools
import logging
import platform
import tempfile

import pytest
import torch
from torch import nn

from sagelr import SageAdamax, SageAdamW, SageSGD, engines
from sagelr.engines import cpu

CLASSES = [SageAdamW, SageAdamax, SageSGD]
KNOBS = [{}, {"sage_eps": 1e-20}, {"eps": 0.0}]


@pytest.fixture
def compiled() -> None:
    if not cpu.compiler():
        pytest.skip("the fused CPU step needs a C++ compiler")


def after(cls: type, size: float, fused: bool, **options: float) -> torch.Tensor:
    param = nn.Parameter(torch.tensor([1.0, -1e-3, 1e3, 0.0]).repeat(8))
    optimizer = cls([param], lr=1e-3, fused=fused, **options)
    for factor in (1.0, 3.0, 0.5, -1.0):
        param.grad = torch.full_like(param, size * factor)
        optimizer.step()
    return param.detach()


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("options", KNOBS, ids=str)
@pytest.mark.parametrize("cls", CLASSES)
def test_gradients_of_any_size_give_the_step_of_the_definition(cls, options):
    """One division serves for two ratios, whose product must neither overflow nor vanish."""
    if cls is SageSGD:
        options = {key: value for key, value in options.items() if key != "eps"}
    # From 1e18 on the second moment is beyond fp32, down from 1e-22 it is zero.
    for size in (1e-19, 1e-14, 1e-8, 1.0, 1e8, 1e12, 1e14, 1e16):
        torch.testing.assert_close(
            after(cls, size, True, **options), after(cls, size, False, **options), rtol=2e-5, atol=0
        )


@pytest.mark.usefixtures("compiled")
def test_what_overflows_is_where_the_definition_has_it():
    for size in (0.0, 1e20, 1e30, float("inf"), float("nan")):
        found = [after(SageAdamW, size, fused) for fused in (True, False)]
        torch.testing.assert_close(*found, rtol=2e-5, atol=0, equal_nan=True)


@pytest.fixture
def fresh(monkeypatch, caplog) -> pytest.LogCaptureFixture:
    """As in a new process, which has looked for no compiler yet."""
    for name in ("compiler", "_missing", "_kernel", "_version"):
        monkeypatch.setattr(cpu, name, functools.cache(getattr(cpu, name).__wrapped__))
    monkeypatch.setattr(engines, "_say_once", functools.cache(engines._say_once.__wrapped__))
    caplog.set_level(logging.INFO, "sagelr")
    return caplog


def many(state_format: str, fused: bool, dtype: torch.dtype) -> list[torch.Tensor]:
    """Weights and state after steps on tensors of more and of fewer elements than a register's."""
    draw = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(*shape, generator=draw).to(dtype))
              for shape in ((3,), (5, 7), (70, 67))]  # fmt: skip
    optimizer = SageAdamW(params, lr=1e-3, fused=fused, state_format=state_format)
    for _ in range(4):
        for param in params:
            param.grad = torch.randn(param.shape, generator=draw).to(dtype) * 1e-2
        optimizer.step()
    decoded = [optimizer.sensitivity(param) for param in params]
    return [*(param.detach() for param in params), *decoded]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86-64")
@pytest.mark.parametrize("flags", [(), ("-mavx2", "-mfma")], ids=["sse2", "avx2"])
@pytest.mark.usefixtures("compiled", "fresh")
def test_narrower_registers_take_the_same_step(flags, monkeypatch, tmp_path):
    monkeypatch.setenv("SAGELR_CACHE", str(tmp_path))
    plain = [flag for flag in cpu.FLAGS if flag != "-march=native"]
    monkeypatch.setattr(cpu, "FLAGS", (*plain, *flags))
    for state_format in ("float32", "bfloat16", "8bit"):
        for dtype in (torch.float32, torch.bfloat16):
            found = [many(state_format, fused, dtype) for fused in (True, False)]
            tolerance = 1e-5 if dtype == torch.float32 else 1e-2
            for ours, theirs in zip(*found, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=1e-6)
    assert len(list(tmp_path.glob("*.so"))) == 6  # 8-bit keeps small tensors in fp32


def steps(fused: bool | None = None) -> None:
    """Two steps, held to those of the definition."""
    params = [nn.Parameter(torch.arange(6.0)) for _ in range(2)]
    for own, param in zip((fused, False), params, strict=True):
        optimizer = SageAdamW([param], fused=own)
        for _ in range(2):
            param.grad = torch.ones(6)
            optimizer.step()
    torch.testing.assert_close(*params)


@pytest.mark.parametrize(("fused", "told"), [(None, True), (True, True), (False, False)])
def test_without_a_compiler_the_step_is_taken_all_the_same(
    fused, told, fresh, monkeypatch, tmp_path
):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setenv("SAGELR_CACHE", str(tmp_path))
    steps(fused)
    said = [
        (record.levelname, "there is no C++ compiler" in record.msg) for record in fresh.records
    ]
    assert said == ([("WARNING", True)] if told else [])
    assert not list(tmp_path.iterdir())


def test_a_compiler_that_fails_is_told_once_and_the_step_is_taken(fresh, monkeypatch, tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho no OpenMP here >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("SAGELR_CACHE", str(tmp_path / "cache"))
    steps()
    (warning,) = [record for record in fresh.records if record.levelname == "WARNING"]
    assert "no OpenMP here" in warning.getMessage()
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.usefixtures("compiled")
def test_a_compiler_may_have_arguments(fresh, monkeypatch, tmp_path):
    """As in CXX="ccache g++"."""
    monkeypatch.setenv("CXX", f"env SEEN=1 {' '.join(cpu.compiler())}")
    monkeypatch.setenv("SAGELR_CACHE", str(tmp_path))
    cpu.compiler.cache_clear()
    steps()
    assert [record for record in fresh.records if record.levelname == "WARNING"] == []
    assert len(list(tmp_path.glob("*.so"))) == 1


def test_a_build_is_kept_and_used_again(fresh, monkeypatch, tmp_path):
    monkeypatch.setenv("SAGELR_CACHE", str(tmp_path))
    steps()
    assert "compiling" in fresh.text
    (built,) = tmp_path.iterdir()
    fresh.clear()
    cpu._missing.cache_clear()
    cpu._kernel.cache_clear()
    steps()
    assert "compiling" not in fresh.text
    assert list(tmp_path.iterdir()) == [built]


@pytest.mark.usefixtures("compiled")
def test_a_folder_that_cannot_be_written_is_told_and_another_taken(fresh, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("SAGELR_CACHE", str(blocked / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    steps()
    (warning,) = [record for record in fresh.records if record.levelname == "WARNING"]
    assert "cannot keep step-" in warning.getMessage()
