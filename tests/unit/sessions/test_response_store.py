"""ResponseStore: what is read back is what was written, of one kind and tenant; and what is not ours is not there."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import msgpack
import pytest

from sessions.documents import Document, Keeping, LocalDocuments
from sessions.errors import InvalidRequest, NotStored, StoreUnavailable
from sessions.response_store import ResponseStore, StoredConversation, StoredResponse, appended, new_id
from sessions.types import Tenant

ALICE, BOB = Tenant("alice"), Tenant("bob")


class CountingDocuments(LocalDocuments):
    """Local ones that count who asks."""

    def __init__(self) -> None:
        super().__init__(Keeping())
        self.asked: list[tuple[str, ...]] = []
        self.shelves: set[str] = set()

    async def fetch(self, shelf: str, names: Sequence[str]) -> list[Document | None]:
        self.asked.append(tuple(names))
        self.shelves.add(shelf)
        return await super().fetch(shelf, names)


@pytest.fixture
def documents() -> CountingDocuments:
    return CountingDocuments()


@pytest.fixture
def store(documents: CountingDocuments) -> ResponseStore:
    return ResponseStore(documents, b"s" * 32, max_bytes=10_000)


def response(*path: str, body: bytes = b"{}") -> StoredResponse:
    return StoredResponse(new_id("resp_"), body, b"[1]", path, new_id("conv_"), 3, 2)


async def test_a_response_comes_back_whole(store: ResponseStore) -> None:
    kept = response(new_id("resp_"))
    assert await store.keep(ALICE, kept)
    assert await store.response(ALICE, kept.id) == kept
    with pytest.raises(NotStored):
        await store.response(BOB, kept.id)


async def test_a_long_path_is_fetched_a_few_at_a_time(store: ResponseStore, documents: CountingDocuments) -> None:
    kept = [response() for _ in range(70)]
    for one in kept:
        await store.keep(ALICE, one)
    ids = [one.id for one in kept]
    assert await store.responses(ALICE, ids) == kept
    assert [len(names) for names in documents.asked] == [32, 32, 6]
    await store.delete_response(ALICE, ids[40])
    with pytest.raises(NotStored, match=ids[40]):
        await store.responses(ALICE, ids)


async def test_more_than_a_prompt_can_be_is_not_fetched(documents: CountingDocuments) -> None:
    store = ResponseStore(documents, b"s" * 32, max_bytes=2 << 20)
    kept = [response(body=bytes(1 << 20)) for _ in range(40)]
    for one in kept:
        assert await store.keep(ALICE, one)
    ids = [one.id for one in kept]
    assert len(await store.responses(ALICE, ids[:15])) == 15
    with pytest.raises(InvalidRequest) as refused:
        await store.responses(ALICE, ids, "previous_response_id")
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "previous_response_id")
    assert documents.asked[-1] == tuple(ids[:32]), "the rest is not asked for"


@pytest.mark.parametrize("name", ["", "resp_1", "used", "resp_" + "0" * 47 + "\ud800", "conv_" + "g" * 48, "x" * 10**6])
async def test_nobody_is_asked_for_what_is_no_id(store: ResponseStore, documents: CountingDocuments, name: str) -> None:
    with pytest.raises(NotStored):
        await store.response(ALICE, name)
    with pytest.raises(NotStored):
        await store.delete_response(ALICE, name)
    assert documents.asked == []


async def test_a_response_is_no_conversation(store: ResponseStore) -> None:
    kept, conversation = response(), StoredConversation(new_id("conv_"), 1, b"{}")
    await store.keep(ALICE, kept)
    await store.create_conversation(ALICE, conversation)
    for attempt in (
        store.conversation(ALICE, kept.id),
        store.response(ALICE, conversation.id),
        store.delete_response(ALICE, conversation.id),
        store.delete_conversation(ALICE, kept.id),
    ):
        with pytest.raises(NotStored):
            await attempt
    assert await store.conversation(ALICE, conversation.id) == conversation


@pytest.mark.parametrize("content", [b"", b"\xc1", msgpack.packb([9, "response"]), msgpack.packb({"a": 1}), b"\x93"])
async def test_what_is_not_ours_is_not_there(
    documents: CountingDocuments, store: ResponseStore, content: bytes
) -> None:
    kept = response()
    await store.keep(ALICE, kept)
    await store.response(ALICE, kept.id)
    [shelf] = documents.shelves
    await documents.put(shelf, kept.id, Document.new(content))
    with pytest.raises(NotStored):
        await store.response(ALICE, kept.id)


async def test_what_is_too_large_is_not_kept(store: ResponseStore) -> None:
    assert not await store.keep(ALICE, response(body=bytes(10_000)))
    conversation = StoredConversation(new_id("conv_"), 1, b"{}", (bytes(9_000),))
    await store.create_conversation(ALICE, conversation)
    with pytest.raises(InvalidRequest) as refused:
        await store.change_conversation(ALICE, conversation.id, lambda found: appended(found, [bytes(2_000)]))
    assert refused.value.code == "conversation_too_large"
    assert await store.conversation(ALICE, conversation.id) == conversation


async def test_changes_at_once_are_all_made(store: ResponseStore) -> None:
    conversation = StoredConversation(new_id("conv_"), 1, b"{}")
    await store.create_conversation(ALICE, conversation)
    items = [str(number).encode() for number in range(6)]
    await asyncio.gather(
        *(
            store.change_conversation(ALICE, conversation.id, lambda found, item=item: appended(found, [item]))  # type: ignore[misc]
            for item in items
        )
    )
    assert sorted((await store.conversation(ALICE, conversation.id)).items) == items


class Overtaken(CountingDocuments):
    """Somebody else is always faster."""

    async def put(
        self, shelf: str, name: str, document: Document, *, version: bytes = b"", renew: Sequence[str] = ()
    ) -> bool:
        return not version and await super().put(shelf, name, document, renew=renew)


async def test_a_conversation_that_always_changes_is_unavailable() -> None:
    store = ResponseStore(Overtaken(), b"s" * 32, max_bytes=10_000)
    conversation = StoredConversation(new_id("conv_"), 1, b"{}")
    await store.create_conversation(ALICE, conversation)
    with pytest.raises(StoreUnavailable):
        await store.change_conversation(ALICE, conversation.id, lambda found: replace(found, metadata=b"[]"))


async def test_a_store_that_is_off_has_nothing_and_keeps_nothing() -> None:
    store = ResponseStore(None, b"s" * 32, max_bytes=10_000)
    assert not store.is_on and not await store.keep(ALICE, response())
    with pytest.raises(NotStored):
        await store.response(ALICE, new_id("resp_"))
    with pytest.raises(InvalidRequest):
        await store.create_conversation(ALICE, StoredConversation(new_id("conv_"), 1, b"{}"))
