"""A base optimizer of one's own: one short file, taken by the engines that are not made for it."""

import dataclasses
import logging

import pytest
import torch
from torch import nn

from sagelr import SageAdamW


@dataclasses.dataclass(frozen=True)
class Lion:
    """The sign of a blend of gradient and average."""

    beta1: float
    beta2: float

    @property
    def state_names(self):
        return ("exp_avg",)

    def memory(self, name):
        return self.beta2

    def direction(self, grad, state, step):
        blend = torch.lerp(state["exp_avg"], grad, 1 - self.beta1)
        return blend.sign(), {"exp_avg": torch.lerp(state["exp_avg"], grad, 1 - self.beta2)}

    def directions(self, grads, state, steps):
        blends = torch._foreach_lerp(state["exp_avg"], list(grads), 1 - self.beta1)
        torch._foreach_lerp_(state["exp_avg"], list(grads), 1 - self.beta2)
        torch._foreach_sign_(blends)
        return list(blends)


class SageLion(SageAdamW):
    base_state_names = ("exp_avg",)

    def _base(self, group):
        return Lion(*group["betas"])


def after_three_steps(**options):
    generator = torch.Generator().manual_seed(0)
    param = nn.Parameter(torch.randn(3, 4, generator=generator))
    optimizer = SageLion([param], lr=1e-2, **options)
    for _ in range(3):
        param.grad = torch.randn(3, 4, generator=generator)
        optimizer.step()
    return param.detach(), optimizer


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}])
def test_every_way_of_asking_takes_the_eager_step(options, caplog):
    expected, _ = after_three_steps(foreach=False)
    with caplog.at_level(logging.WARNING, "sagelr"):
        found, _ = after_three_steps(**options)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    if options.get("fused"):
        assert "it has no Lion" in caplog.text


def test_another_ones_state_is_refused_by_name():
    _, optimizer = after_three_steps()
    other = torch.optim.AdamW([nn.Parameter(torch.ones(3, 4))])
    other.param_groups[0]["params"][0].grad = torch.ones(3, 4)
    other.step()
    with pytest.raises(ValueError, match=r"exp_avg_sq.*not that of SageLion"):
        optimizer.load_state_dict(other.state_dict())
