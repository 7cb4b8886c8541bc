"""Gradients whose memory does not hold what they are: no engine may walk it."""

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from sagelr import SageAdamW, SageSGD


class Held(torch.Tensor):
    """A tensor around another one, as those of torch's functional collectives are."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        bare = tree_map(lambda t: t.inner if isinstance(t, Held) else t, (args, kwargs or {}))
        return func(*bare[0], **bare[1])


def negative(values):
    """Ones that torch keeps as ones with a sign beside them: the imaginary part of a conjugate."""
    return torch.complex(torch.zeros_like(values), -values).conj().imag


MAKES = {
    "a subclass": Held,
    "a sign beside memory": negative,
    "zeros without memory": lambda values: torch._efficientzerotensor(values.shape),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES.keys())
@pytest.mark.parametrize("cls", [SageAdamW, SageSGD])
def test_the_step_is_that_of_what_the_gradient_is(make, cls, engine):
    torch.manual_seed(0)
    start = torch.randn(2, 4, 3)
    found = []
    for lazy in (True, False):
        params = [nn.Parameter(each.clone()) for each in start]
        optimizer = cls(params, lr=0.1, **engine.options)
        for _ in range(3):
            for param in params:
                param.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
            grad = make(params[0].grad)
            params[0].grad = grad if lazy else torch.zeros(4, 3).add(grad)
            optimizer.step()
        found.append(params)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_autograd_makes_such_signs():
    """Of a part of a complex number with one element, from which it takes the conjugate."""
    found = []
    for fused in (None, False):
        part = nn.Parameter(torch.full((1,), 2.0))
        optimizer = SageSGD([part], lr=0.02, sage=False, fused=fused)
        for _ in range(3):
            optimizer.zero_grad()
            number = torch.complex(torch.ones(1), part).conj() * (1 + 2j)
            number.real.square().sum().backward()
            optimizer.step()
        assert part.grad.is_neg()
        found.append(part.detach())
    torch.testing.assert_close(*found)
