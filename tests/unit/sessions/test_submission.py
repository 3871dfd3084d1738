"""Submission: each choice goes on with ids and hashes of its own."""

from array import array

from sessions.hashing import HashChain
from sessions.keeping import keeping_of
from sessions.submission import EnginePrompt, engine_requests
from sessions.types import BlockHash, CacheOptions, ChatRequest, Message


def test_no_choice_sees_what_another_says() -> None:
    prompts = []
    for first in (1, 5):
        chain = HashChain(BlockHash(bytes(16)), 2)
        chain.extend([first, 2, 3])
        prompts.append(EnginePrompt(array("I", [first, 2, 3]), chain, keeping_of(CacheOptions(), ())))
    requests = engine_requests(
        "id",
        ChatRequest((Message("user", "Hi?"),), n=3),
        prompts,
        seeds=[0, 0],
        eos_token_ids=frozenset(),
        max_model_len=100,
        is_returning=False,
    )
    for number, request in enumerate(requests):
        request.append(100 + number)
    for number, request in enumerate(requests):
        prompt = [1 if number < 3 else 5, 2, 3]
        chain = HashChain(request.chain.root, 2)
        chain.extend([*prompt, 100 + number])
        assert list(request.token_ids) == [*prompt, 100 + number] and request.num_prompt_tokens == 3
        assert request.chain.hashes == chain.hashes
