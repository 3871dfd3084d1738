"""What a request is sent as, in a scope: with a salt where salts keep prompts apart, else with words of its own."""

import pytest

from benchmarks.client import Client, Messages
from benchmarks.subject import Sample, Subject, Traits, new_scope

MESSAGES: Messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}]


def subject(*, takes_salt: bool) -> Subject:
    return Subject("server", Client("http://127.0.0.1:9/v1", "none", {}), Traits(takes_salt=takes_salt))


def test_with_salts_the_words_are_the_same_in_every_scope() -> None:
    salted = subject(takes_salt=True)
    assert salted.scoped(MESSAGES, "one") == MESSAGES
    assert salted.salt("one") == {"cache_salt": "one"}


def test_without_salts_a_scope_is_the_first_words() -> None:
    plain = subject(takes_salt=False)
    one, again, other = (plain.scoped(MESSAGES, scope) for scope in ("one", "one", "other"))
    assert plain.salt("one") == {}
    assert one == again
    assert one != other
    assert [len(str(messages[0]["content"]).split()) for messages in (one, other)] == [8, 8], (
        "six, and the message's own"
    )
    assert str(one[0]["content"]).endswith(". Be brief.")
    assert one[1:] == MESSAGES[1:]
    assert MESSAGES[0]["content"] == "Be brief.", "what was given is as it was"


def test_no_scope_comes_twice() -> None:
    assert len({new_scope() for _ in range(100)}) == 100


def test_a_reply_of_one_token_has_no_speed() -> None:
    def sample(num_tokens: int, total_s: float) -> Sample:
        return Sample(0.5, total_s, 10, None, num_tokens, (), "", {})

    assert sample(1, 0.5).tokens_per_s is None
    assert sample(11, 2.5).tokens_per_s == pytest.approx(5.0)
    assert sample(11, 2.5).cached_tokens == 0, "what a server does not tell counts as nothing"


@pytest.mark.parametrize(("told", "shown"), [("/models/a/b.gguf", "b.gguf"), ("org/name", "org/name"), ("m", "m")])
def test_a_path_is_named_by_its_last_part(told: str, shown: str) -> None:
    server = subject(takes_salt=True)
    server.client.model = told
    assert server.model == shown
