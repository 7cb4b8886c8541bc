"""The engines and optimizers that every test of the core goes through."""

import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from sagelr import SageAdamax, SageAdamW, SageSGD, engines
from sagelr.engines import cpu, eager, foreach, triton


class Engine(NamedTuple):
    """How an optimizer is made to use an engine, and what that engine can take."""

    name: str
    options: dict[str, Any]
    module: ModuleType
    takes: Callable[[torch.dtype], bool]


# Set in the process that test_triton.py starts: Triton's interpreter stands in for a GPU there.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# A new engine joins every test by one line.
ENGINES = [
    Engine("eager", {"foreach": False}, eager, lambda dtype: True),
    Engine("foreach", {"foreach": True}, foreach, lambda dtype: True),
    Engine("fused", {"fused": True}, cpu, lambda dtype: dtype in cpu.PARAM),
]
if INTERPRETED:
    ENGINES = [Engine("triton", {"fused": True}, triton, lambda dtype: dtype in triton.PARAM)]
CLASSES = [SageAdamW, SageAdamax, SageSGD]


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.name, scope="session")
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param.name == "fused" and not cpu.compiler():
        pytest.skip("the fused CPU step needs a C++ compiler")
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            patch.setattr(engines, "_fused", lambda device: triton)
            # Interpreting a tile takes as long whatever its size.
            patch.setattr(triton, "TILE", 1 << 14)
        yield request.param


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
