"""What an engine that writes memory by itself owes torch: versions, and layouts to rely on."""

import pytest
import torch
from torch import nn


def test_autograd_sees_that_a_parameter_changed(cls, engine):
    param = nn.Parameter(torch.ones(8))
    loss = (param * param).sum()
    param.grad = torch.ones(8)
    cls([param], lr=0.1, **engine.options).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_state_of_another_layout_goes_on_as_it_should(cls, engine, draw):
    """Saved from a channels_last model, loaded into a contiguous one."""
    start, grads = draw(2, 3, 4, 5, dtype=torch.float32), draw(2, 2, 3, 4, 5, dtype=torch.float32)
    options = {"lr": 0.05, **engine.options}
    last = nn.Parameter(start.clone(memory_format=torch.channels_last))
    first = cls([last], **options)
    last.grad = grads[0].contiguous(memory_format=torch.channels_last)
    first.step()
    plain = nn.Parameter(last.detach().clone(memory_format=torch.contiguous_format))
    second = cls([plain], **options)
    second.load_state_dict(first.state_dict())
    last.grad, plain.grad = grads[1].contiguous(memory_format=torch.channels_last), grads[1]
    first.step()
    second.step()
    torch.testing.assert_close(plain, last, rtol=1e-6, atol=1e-6)
