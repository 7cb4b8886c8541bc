"""The engines and optimizers that every test of the core goes through."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from sagelr import SageAdamax, SageAdamW, SageSGD
from sagelr.engines import cpu, eager, foreach


class Engine(NamedTuple):
    """How an optimizer is made to use an engine, and what that engine can take."""

    name: str
    options: dict[str, Any]
    module: ModuleType
    takes: Callable[[torch.dtype], bool]


# A new engine joins every test by one line.
ENGINES = [
    Engine("eager", {"foreach": False}, eager, lambda dtype: True),
    Engine("foreach", {"foreach": True}, foreach, lambda dtype: True),
    Engine("fused", {"fused": True}, cpu, lambda dtype: dtype in cpu.PARAM),
]
CLASSES = [SageAdamW, SageAdamax, SageSGD]


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.name, scope="session")
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param.name == "fused" and not cpu.compiler():
        pytest.skip("the fused CPU step needs a C++ compiler")
    return request.param


@pytest.fixture(params=CLASSES, ids=lambda cls: cls.__name__, scope="session")
def cls(request: pytest.FixtureRequest) -> type:
    return request.param


@pytest.fixture
def draw() -> Callable[..., torch.Tensor]:
    """Random numbers that are the same in every run."""
    generator = torch.Generator().manual_seed(20220207)

    def normal(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return normal
