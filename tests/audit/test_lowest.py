"""The lowest so many, exactly."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sagelr.audit.lowest import Ranking

numbers = st.floats(0, 2.0**120, width=32) | st.sampled_from([0.0, 1.0, 1e-45, 1.0000001])


@given(st.lists(st.lists(numbers, max_size=30), min_size=1, max_size=4), st.data())
def test_exactly_the_lowest_are_taken_and_equals_in_order(rows, data):
    tensors = {str(i): torch.tensor(row, dtype=torch.float32) for i, row in enumerate(rows)}
    ranking = Ranking(list(tensors), tensors.__getitem__)
    count = data.draw(st.integers(0, ranking.count))
    taken = dict(ranking.lowest(count))
    together = torch.cat(list(tensors.values()))
    expected = torch.zeros(len(together), dtype=torch.bool)
    expected[together.argsort(stable=True)[:count]] = True
    assert torch.equal(torch.cat(list(taken.values())), expected)
    assert int(expected.sum()) == count


def test_scores_of_any_shape_and_layout_keep_their_places():
    scores = {"t": torch.arange(12.0).view(3, 4).t(), "scalar": torch.tensor(0.5)}
    taken = dict(Ranking(list(scores), scores.__getitem__).lowest(3))
    assert bool(taken["scalar"])
    assert torch.equal(taken["t"], scores["t"] < 2)
