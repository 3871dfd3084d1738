"""What the table of `benchmarks.agent` says: meaning the same costs nothing, and what changes costs what follows it."""

from benchmarks.agent import measure
from tests.fakes import byte_tokenizer


async def test_shares_are_ordered_as_claimed() -> None:
    shares = await measure(byte_tokenizer, num_requests=4, seed=1)
    as_sent, here, stable_first = (
        dict(zip(shares, column, strict=True)) for column in zip(*shares.values(), strict=True)
    )
    steady = here["the same bytes each time"]
    for same in ("tools permuted", "JSON keys shuffled", "both"):
        assert here[same] == stable_first[same] == steady, "it means the same"
        assert as_sent[same] < steady / 4
    before, marked, after = (
        "both, time before the rules",
        "both, time before the rules, a breakpoint after them",
        "both, time after the rules and their breakpoint",
    )
    assert as_sent[before] < here[before] < steady, "the tools are shared, and nothing after the time"
    assert here[marked] == here[before] < stable_first[marked], "a mark moves nothing unless that is asked for"
    assert stable_first[marked] == here[after] < steady
    assert here[after] < here["both, time in the newest message"] < steady
