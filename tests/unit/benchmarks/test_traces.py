"""Traces: both formats, every mistake in them, and what of them can be shared."""

import json
from pathlib import Path

import pytest

from benchmarks.load_run import poisson_starts, trace_texts
from benchmarks.scenarios import Prompts
from benchmarks.traces import TraceError, TraceRequest, parse_trace, read_trace, shared_share
from benchmarks.words import WordSource

MOONCAKE = {"timestamp": 27_500, "input_length": 1_030, "output_length": 52, "hash_ids": [46, 47, 48]}
GUIDELLM = {"timestamp": 27.5, "input_length": 1_030, "output_length": 52}


def line(row: dict[str, object], **changed: object) -> str:
    return json.dumps({name: value for name, value in (row | changed).items() if value is not None})


def test_mooncake_counts_milliseconds_and_guidellm_seconds_from_the_first_request() -> None:
    for row, unit in ((MOONCAKE, 1_000), (GUIDELLM, 1)):
        late, early = line(row), line(row, timestamp=25 * unit)
        assert [request.at_s for request in parse_trace([late, "", early])] == [0.0, 2.5]


def test_a_mooncake_prompt_is_its_blocks_and_the_last_is_what_is_left() -> None:
    [request] = parse_trace([line(MOONCAKE)])
    assert request.blocks() == [(46, 512), (47, 512), (48, 6)]
    assert parse_trace([line(GUIDELLM)])[0].blocks() == []


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "the trace has no requests"),
        (["{"], "line 1 is not JSON"),
        ([line(MOONCAKE), "7"], "line 2 is no JSON object"),
        ([line(GUIDELLM, timestamp=None)], "line 1: 'timestamp' must be a number"),
        ([line(GUIDELLM, input_length=-1)], "line 1: 'input_length' must be a number that is not negative"),
        ([line(GUIDELLM, input_length=0)], "line 1: 'input_length' must be at least 1"),
        ([line(GUIDELLM, output_length=True)], "line 1: 'output_length' must be a number"),
        ([line(MOONCAKE, hash_ids=[1, 2])], "line 1: 1030 tokens are 3 blocks, not 2"),
        ([line(MOONCAKE, hash_ids=[1, 2, -3])], "line 1: 'hash_ids' must be a list of whole numbers"),
        ([line(MOONCAKE), line(GUIDELLM)], "some lines have hash_ids and some have none"),
    ],
)
def test_a_mistake_is_named_with_its_line(lines: list[str], said: str) -> None:
    with pytest.raises(TraceError, match=said):
        parse_trace(lines)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trace").write_bytes(b"\xff\xfe")
    with pytest.raises(TraceError, match="trace is not text in UTF-8"):
        read_trace(tmp_path / "trace")


def test_what_can_be_shared_is_the_leading_blocks_somebody_sent_before() -> None:
    first, second = TraceRequest(0, 1_024, 1, (1, 2)), TraceRequest(1, 1_024, 1, (1, 3))
    assert shared_share([first, second]) == 0.25
    assert shared_share([first, first]) == 0.5
    assert shared_share([TraceRequest(0, 10, 1)]) is None


def test_texts_begin_alike_as_far_as_the_ids_do_and_repeat_by_the_seed() -> None:
    prompts = Prompts(WordSource(3), tokens_per_word=1.0, overhead=0.0)
    requests = [TraceRequest(0, 600, 1, (1, 2)), TraceRequest(1, 600, 1, (1, 3)), TraceRequest(2, 600, 1, (4, 2))]
    one, two, three = (text.split() for text in trace_texts(requests, prompts, seed=9))
    assert {len(one), len(two), len(three)} == {600}
    assert one[:512] == two[:512]
    assert one[512:] != two[512:]
    assert one[512:] == three[512:]
    assert trace_texts(requests, prompts, seed=9)[0].split() == one
    assert trace_texts(requests, prompts, seed=8)[0].split() != one


def test_arrivals_come_at_the_wanted_rate() -> None:
    starts = poisson_starts(2_000, 4.0, seed=1)
    assert starts[0] == 0.0
    assert starts == sorted(starts)
    assert 1_999 / starts[-1] == pytest.approx(4.0, rel=0.1)
    assert poisson_starts(5, 4.0, seed=1) == starts[:5]
