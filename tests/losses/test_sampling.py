"""Choosing regions, and drawing for some of them."""

import pytest
import torch
from torch.testing import assert_close

from lt_detectron2.losses.sampling import DrawnRows, choose_regions
from lt_detectron2.ops import one_pass


@pytest.fixture(params=["looking", "not looking"], autouse=True)
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the values may be looked at, as on the CPU."""
    monkeypatch.setattr(one_pass, "looking_is_free", lambda tensor: request.param == "looking")
    return request.param


@pytest.mark.parametrize("num_values", [3, 2**24])
def test_smallest_draws_are_chosen_of_equal_ones_the_first(num_values: int):
    draws = torch.randint(num_values, (50, 6)) / num_values
    candidates = torch.rand(50, 6) < 0.6
    quota = torch.tensor([0.0, 1.0, 7.0, 49.0, 50.0, 1e9])
    chosen = choose_regions(candidates, quota, draws)
    for group in range(6):
        own = [i for i in range(50) if candidates[i, group]]
        in_order = sorted(own, key=lambda i: (draws[i, group], i))
        expected = sorted(in_order[: int(min(quota[group], 50))])
        assert chosen[:, group].nonzero()[:, 0].tolist() == expected


def test_no_region():
    chosen = choose_regions(torch.ones(0, 2, dtype=bool), torch.ones(2), torch.ones(0, 2))
    assert chosen.shape == (0, 2)


@pytest.mark.parametrize("needs", [[True, False, True, False, True], [False] * 2, [True] * 2, []])
def test_each_region_in_need_has_its_row_and_the_others_ones(needs: list[bool], host: str):
    needs = torch.tensor(needs, dtype=torch.bool)
    draws = torch.rand(len(needs), 4)
    rows = DrawnRows.of(needs)
    drawn = draws.clone() if rows.drawn is None else draws[rows.drawn]
    mask = rows.spare_others(drawn)
    assert (rows.place is None) == (host == "not looking" or len(needs) == 0)
    if rows.place is not None:
        assert len(mask) == 1 + needs.sum()
        mask = mask[rows.place]
    assert_close(mask, torch.where(needs[:, None], draws, 1.0))
