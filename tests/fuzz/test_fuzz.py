"""The short run: the inputs in the repository, and a few hundred of each kind, the same ones every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.campaign import Campaign, told
from tests.fuzz.fuzzers import FUZZERS

SEED = "7"


@pytest.mark.parametrize("name", FUZZERS)
def test_all_end_well(name: str) -> None:
    campaign = Campaign(FUZZERS[name], Path("fuzz-failures"))
    campaign.again()
    campaign.random(SEED, FUZZERS[name].examples)
    assert not campaign.failures, "\n".join(told(campaign.failures))
