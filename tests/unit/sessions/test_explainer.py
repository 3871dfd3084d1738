"""How many leading tokens two prompts share, by ever longer stretches: as many as one by one."""

from hypothesis import given
from hypothesis import strategies as st

from sessions.engine.block import common_prefix_length
from sessions.explainer import _num_shared
from sessions.types import TokenId

tokens = st.lists(st.sampled_from([TokenId(0), TokenId(1), TokenId(256), TokenId(2**32 - 1)]), max_size=20)


@given(same=tokens, times=st.integers(1, 12), ours=tokens, theirs=tokens)
def test_as_many_as_one_by_one(same: list[TokenId], times: int, ours: list[TokenId], theirs: list[TokenId]) -> None:
    left, right = same * times + ours, same * times + theirs
    assert _num_shared(left, right) == common_prefix_length(left, right) >= len(same) * times
