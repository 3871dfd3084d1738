"""Scores on their way out of the engine: each token's once, whatever is preempted, chunked, cached, guessed or cut."""

from sessions.engine.request import Request, RequestOutput, TokenScore
from sessions.types import SamplingParams
from tests.fakes import fake_logprob
from tests.unit.engine.bench import Bench, expected

ASKING = SamplingParams(temperature=0, num_logprobs=2)


class ScoringBench(Bench):
    """Keeps every output."""

    def __init__(self, **config: int) -> None:
        super().__init__(**config)
        self.outputs: dict[str, list[RequestOutput]] = {}

    def ask(self, prompt: list[int], max_tokens: int = 4, prediction: tuple[int, ...] = ()) -> Request:
        request = self.add(prompt, max_tokens, params=ASKING, prediction=prediction)
        request.wants_prompt_scores, request.read_points = True, ()
        return request

    def step(self) -> None:
        schedule = self.scheduler.schedule()
        for output in self.scheduler.commit(schedule, self.runner.execute(schedule)):
            self.outputs.setdefault(output.request_id, []).append(output)
        self.scheduler.check_integrity()

    def first_prompt_scores(self, request: Request) -> list[int]:
        return [score.token_id for score in self.outputs[request.id][0].prompt_scores]

    def output_scores(self, request: Request) -> list[TokenScore]:
        return [score for output in self.outputs[request.id] for score in output.scores]


def assert_whole(bench: ScoringBench, request: Request) -> None:
    output_ids = list(request.token_ids[request.num_prompt_tokens :])
    assert request.token_ids == expected(request)
    assert bench.first_prompt_scores(request) == list(request.token_ids[1 : request.num_prompt_tokens])
    assert [score.token_id for score in bench.output_scores(request)] == output_ids
    assert [score.logprob for score in bench.output_scores(request)] == list(map(fake_logprob, output_ids))


def test_chunked_and_cached() -> None:
    bench = ScoringBench(max_num_batched_tokens=8)
    for _ in range(2):
        request = bench.ask(list(range(1, 24)))
        bench.run()
        assert_whole(bench, request)
        assert request.num_cached_tokens == 0
    reader = bench.add([*range(1, 24), 30])
    bench.run()
    assert reader.num_cached_tokens == 23, "what a scored prompt computed is for others"


def test_preempted() -> None:
    bench = ScoringBench(num_blocks=10)
    requests = [bench.ask([index] * 6, max_tokens=20) for index in range(3)]
    bench.run()
    assert bench.scheduler.num_preemptions > 0
    for request in requests:
        assert_whole(bench, request)


def test_preempted_inside_a_prompt() -> None:
    bench = ScoringBench(num_blocks=10, max_num_batched_tokens=2, max_num_seqs=2, max_num_draft_tokens=0)
    bench.add([1] * 6, max_tokens=30)
    bench.step()
    request = bench.ask(list(range(20)))
    while not bench.scheduler.num_preemptions:
        bench.step()
    assert 0 < len(request.prompt_scores) < 19
    bench.run()
    assert_whole(bench, request)


def test_guessed() -> None:
    plain = ScoringBench(max_num_draft_tokens=0)
    known = plain.ask(list(range(10)), max_tokens=8)
    plain.run()
    bench = ScoringBench(max_num_draft_tokens=3)
    request = bench.ask(list(range(10)), 8, tuple(known.token_ids[10:14]))
    bench.run()
    assert bench.scheduler.drafter.num_accepted_tokens > 0
    assert_whole(bench, request)


def test_cut_by_an_end_inside_right_guesses() -> None:
    """Tokens after the one that ends a request are dropped, and their scores."""
    plain = ScoringBench(max_num_draft_tokens=0)
    known = plain.ask(list(range(10)), max_tokens=8)
    plain.run()
    said = list(known.token_ids[10:])
    bench = ScoringBench(max_num_draft_tokens=3)
    request = bench.add(list(range(10)), 8, eos=[said[1]], params=ASKING, prediction=said)
    bench.run()
    assert [score.token_id for score in bench.output_scores(request)] == said[:2]


def test_nobody_else_gets_any() -> None:
    bench = ScoringBench()
    asking, plain = bench.ask([1, 2, 3]), bench.add([4, 5, 6])
    bench.run()
    assert_whole(bench, asking)
    assert bench.first_prompt_scores(plain) == [] and bench.output_scores(plain) == []


def test_nothing_is_said_but_the_prompt_is_scored() -> None:
    bench = ScoringBench()
    request = bench.ask(list(range(40)), max_tokens=0)
    bench.run()
    (output,) = bench.outputs[request.id]
    assert (output.token_ids, output.scores, output.finish_reason) == ((), (), "length")
    assert bench.first_prompt_scores(request) == list(range(1, 40))
