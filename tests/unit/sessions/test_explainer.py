"""How many leading tokens two prompts share, by comparing memory: as many as one by one."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from sessions.engine.block import common_prefix_length
from sessions.explainer import _num_shared

tokens = st.lists(st.sampled_from([0, 1, 256, 2**32 - 1]), max_size=20)


@given(same=tokens, ours=tokens, theirs=tokens)
def test_as_many_as_one_by_one(same: list[int], ours: list[int], theirs: list[int]) -> None:
    left, right = array("I", same + ours), array("I", same + theirs)
    assert _num_shared(left, right) == common_prefix_length(left, right) >= len(same)
