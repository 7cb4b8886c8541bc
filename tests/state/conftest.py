"""What the tests of state share."""

from collections.abc import Callable

import pytest
import torch

from sagelr import SageAdamax, SageAdamW, SageSGD
from sagelr.engines import cpu

ENGINES = [
    ("eager", {"foreach": False}),
    ("foreach", {"foreach": True}),
    ("fused", {"fused": True}),
]
KINDS = [
    *((cls, name) for cls in (SageAdamW, SageAdamax, SageSGD) for name in ("compact", "bfloat16")),
    (SageAdamW, "8bit"),
]


@pytest.fixture
def draw() -> Callable[..., torch.Tensor]:
    """Random numbers that are the same in every run."""
    generator = torch.Generator().manual_seed(20220207)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return normal


@pytest.fixture(params=[name for name, _ in ENGINES])
def engine(request: pytest.FixtureRequest) -> dict[str, bool]:
    """Options that make an optimizer use an engine."""
    if request.param == "fused" and not cpu.compiler():
        pytest.skip("the fused CPU step needs a C++ compiler")
    return dict(ENGINES)[request.param]


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0].__name__}-{kind[1]}")
def kind(request: pytest.FixtureRequest) -> tuple[type, str]:
    """An optimizer and a low format that it has."""
    return request.param
