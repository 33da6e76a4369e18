"""What counts as kept by a server after a group of attacks."""

from dataclasses import replace

import pytest

from tests.qa.footprint import DESCRIPTORS_KEPT, LOG_A_REQUEST, LOG_KEPT, MEMORY_KEPT, Footprint

BEFORE = Footprint(memory=100_000_000, descriptors=10, processes=0, temporary=3, log=1000, requests=5)


def test_what_is_allowed_to_stay_is_nothing_too_much():
    after = replace(
        BEFORE,
        memory=BEFORE.memory + MEMORY_KEPT,
        descriptors=BEFORE.descriptors + DESCRIPTORS_KEPT,
        log=BEFORE.log + LOG_KEPT + 10 * LOG_A_REQUEST,
        requests=BEFORE.requests + 10,
    )
    assert after.too_much(BEFORE) == ""
    assert replace(BEFORE, memory=50_000_000, temporary=0).too_much(BEFORE) == ""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"memory": BEFORE.memory + MEMORY_KEPT + 7}, "7 bytes of memory too many"),
        ({"descriptors": BEFORE.descriptors + DESCRIPTORS_KEPT + 1}, "1 descriptors too many"),
        ({"processes": 1}, "1 processes too many"),
        ({"temporary": 4}, "1 temporary files too many"),
        ({"log": BEFORE.log + LOG_KEPT + 2}, "2 bytes of log too many"),
    ],
)
def test_what_is_not_given_back_is_named(more, said):
    assert replace(BEFORE, **more).too_much(BEFORE) == said
