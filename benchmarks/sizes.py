"""How much the studies ask for: the full run, the quick one. Tokens unless a name says otherwise."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Sizes:
    """rounds: times that everything is done, for medians and quartiles.

    weather, ordering   shared: what prompts have in common. questions: requests that share it
    scaling             base, multiples: a prompt is repeated so often. lengths: of random prompts
    use_cases           case_shared: what a case's prompts have in common. turns, cursors, agent_steps and
                        product_questions: requests of the cases
    memory              prefixes: lengths to reckon with. sharers: requests with a prefix of `sharing_prefix` in common
                        and `sharing_own` of their own
    manager             workload: requests. workload_pool: of the server that they do not fit
    sensitivity         edited: words of the prompt that is changed
    comprehensive       trials of prompts of `trial_prompt`
    load                sessions of `load_turns`, with `load_system` in common. trace_requests: replayed at most
    peers               peer_prompt: of the cold prompt

    reply: of every reply that is measured.
    """

    rounds: int = 7
    shared: int = 1_500
    questions: int = 6
    base: int = 160
    multiples: tuple[int, ...] = (1, 2, 5, 10, 20, 30, 40, 50)
    lengths: tuple[int, ...] = (128, 256, 512, 1_024, 2_048, 4_096, 8_192)
    case_shared: int = 1_500
    product_questions: int = 5
    turns: int = 10
    cursors: int = 8
    agent_steps: int = 8
    reply: int = 64
    prefixes: tuple[int, ...] = (128, 512, 1_024, 2_048, 4_096, 8_192)
    sharers: tuple[int, ...] = (1, 10, 100, 1_000)
    sharing_prefix: int = 1_024
    sharing_own: int = 24
    workload: int = 120
    workload_pool: int = 6_000
    edited: int = 400
    trials: int = 30
    trial_prompt: int = 2_000
    sessions: int = 8
    load_turns: int = 6
    load_system: int = 800
    peer_prompt: int = 1_000
    trace_requests: int = 200


FULL: Final = Sizes()
QUICK: Final = Sizes(
    rounds=3,
    shared=500,
    questions=4,
    base=40,
    multiples=(1, 5, 10, 25, 50),
    lengths=(128, 256, 512, 1_024, 2_048),
    case_shared=320,
    product_questions=3,
    turns=5,
    cursors=4,
    agent_steps=4,
    reply=24,
    workload=30,
    workload_pool=1_200,
    edited=160,
    trials=6,
    trial_prompt=600,
    sessions=4,
    load_turns=3,
    load_system=300,
    peer_prompt=400,
    trace_requests=20,
)
