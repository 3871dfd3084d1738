"""Prompting: a chat request into token ids, their hashes, and what remembering its reply will need. Event loop.

    canonical order ▸ what is known of its beginning ▸ template ▸ replies spliced ▸ encode ▸ chain of block hashes

What is known is not looked at again: after its first turn a conversation costs its new messages here, and one run of
the template, which alone can say what it does with them: over those only, where its source shows that it writes each
message by itself (`template_shape`).
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain as chained
from typing import Any, Final, TypeVar

import structlog

from sessions.conversation import Conversation, Turn, TurnKey, canonical, continued, turn_key, turn_keys
from sessions.errors import ContextLengthExceeded, InvalidRequest, ModelRefused
from sessions.hashing import HashChain, SharedContent, chain_hashes
from sessions.long_work import LongWork
from sessions.prompt import Prompt
from sessions.render import SaidTurn, render
from sessions.replies import Replies
from sessions.reports import PromptReport
from sessions.tokenizer import Tokenizer
from sessions.transcripts import Opening, Transcript
from sessions.types import (
    BlockHash,
    Breakpoint,
    ChatRequest,
    CompletionRequest,
    Message,
    SharedPrompt,
    Tenant,
    TokenId,
    Tool,
)
from sessions.whole_replies import Spliced

T = TypeVar("T")
log = structlog.get_logger(__name__)

CHARACTERS_PER_TOKEN: Final = 8
"""More than a token has in any text worth predicting: what is past it could never be reached."""

LONG_PROMPT_CHARACTERS: Final = 20_000
"""Prompts past this are rendered and encoded off the event loop, unless their beginning is known."""

MARKUP_CHARACTERS: Final = 16
"""What a string costs in a prompt besides its own characters: 340,000 empty messages are a long prompt too."""


@dataclass(frozen=True, slots=True)
class Prompted:
    """A request, ready for the engine.

    prediction: ids of what its client expects. breakpoints: how many tokens stand before each, rising.
    prompt, spliced: what `token_ids` were encoded from.
    """

    token_ids: "array[int]"
    chain: HashChain
    prediction: tuple[TokenId, ...]
    opening: Opening
    report: PromptReport
    breakpoints: tuple[tuple[int, Breakpoint], ...]
    prompt: Prompt
    spliced: Mapping[int, Sequence[TokenId]]


class Prompter:
    """One per service."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        replies: Replies,
        root_of: Callable[[str, str | None], BlockHash],
        *,
        block_size: int,
        max_model_len: int,
        stable_first: bool,
        keeps_reasoning: bool = True,
    ) -> None:
        """root_of: a tenant's id and a salt, or none, give the root. keeps_reasoning: in earlier replies."""
        self._tokenizer = tokenizer
        self._replies = replies
        self.root_of = root_of
        self._block_size = block_size
        self._max_model_len = max_model_len
        self._stable_first = stable_first
        self._keeps_reasoning = keeps_reasoning
        self.apart = LongWork()
        self._shared: SharedContent | None = None

    def share(self, root: BlockHash, prompts: Sequence[SharedPrompt]) -> None:
        """From now on what prompts without a salt have in common with these hangs from `root`.

        Raises ModelRefused for one that the model's template or its context does not take.
        """
        chains: list[list[BlockHash]] = []
        for number, declared in enumerate(prompts, 1):
            conversation = self._canonical(declared.messages, declared.tools)
            try:
                prompt = render(conversation, self._tokenizer.template, add_generation_prompt=False)
                token_ids = self._tokenizer.encode(prompt, max_model_len=self._max_model_len)
            except (InvalidRequest, ContextLengthExceeded) as error:
                raise ModelRefused(f"Shared prompt {number} is none for this model: {error}") from error
            chains.append(chain_hashes(root, token_ids, self._block_size))
        self._shared = SharedContent.of(root, chains)
        log.info("content is shared between tenants", prompts=len(prompts), blocks=len(self._shared.parents))

    def new_chain(self, tenant: Tenant, salt: str | None) -> HashChain:
        """For a prompt of the tenant's. A salt is for sharing with nobody: then nothing of it is."""
        return HashChain(self.root_of(tenant.id, salt), self._block_size, None if salt is not None else self._shared)

    def _canonical(
        self,
        messages: tuple[Message, ...],
        tools: tuple[Tool, ...],
        options: Sequence[tuple[str, Any]] = (),
        root: BlockHash | None = None,
    ) -> Conversation:
        """Options that the template does not read say nothing. root: under which the beginning may be known."""
        read = tuple(option for option in options if option[0] in self._tokenizer.template.options)
        if not self._keeps_reasoning:
            messages = tuple(message._replace(reasoning="") if message.reasoning else message for message in messages)
        before = None if root is None else self._replies.beginning(root, messages)
        conversation = None if before is None else continued(before, messages, tools, read)
        if conversation is None:
            conversation = canonical(messages, tools, stable_first=self._stable_first, options=read)
        return self._replies.seen(conversation)

    def _said(self, found: Mapping[int, Spliced], scope: str) -> dict[int, SaidTurn]:
        """Any thread. Of what was found, the replies that stand whole in the place of their turns."""
        return {
            at: SaidTurn(hit.whole, self._spliced_ids(hit.whole, hit, scope))
            for at, hit in found.items()
            if hit.whole is not None
        }

    async def prompt(self, request: ChatRequest, *, is_open: bool = True) -> Prompted:
        """Raises InvalidRequest, ContextLengthExceeded. A message is a token at the least: its template's.

        is_open: the prompt ends where a reply begins. Else it ends with its last message.
        """
        num_settled_drops = self._replies.drops.settled
        if len(request.messages) >= self._max_model_len:
            raise ContextLengthExceeded(
                num_prompt_tokens=len(request.messages), max_model_len=self._max_model_len, is_lower_bound=True
            )
        root = self.root_of(request.tenant.id, request.cache_salt)
        conversation = self._canonical(request.messages, request.tools, request.template_options, root)
        needs_places = bool(conversation.breakpoints) or request.wants_explanation  # only a whole rendering has them
        looks_up = request.splice and is_open and not needs_places
        transcript = self._replies.transcript(root, conversation) if looks_up else None
        known = None if transcript is None else transcript.known
        new_turns = conversation.turns[known.num_turns + 1 :] if known else conversation.turns
        work = self.apart if _is_long(request, new_turns) else _at_once
        rendered = partial(work, render, conversation, self._tokenizer.template, add_generation_prompt=is_open)
        prompt = None if known is None else await rendered(known=known)
        if transcript is not None and prompt is not None and prompt.known_ids:
            key = transcript.key
            for turn in new_turns:
                key = turn_key(key, turn)
            start = _Start(key, transcript.chain.fork(), {}, transcript.num_spliced, num_settled_drops, transcript)
        else:
            keys = await work(lambda: list(turn_keys(root, conversation)))
            found: dict[int, Spliced] = {}
            if request.splice:
                found = await self._replies.find(root, conversation, keys, self._salted_of(request))
            said = await work(self._said, found, scope_of(request))
            if prompt is None or said:
                prompt = await rendered(said=said)
            spliced = {at: hit for at, hit in found.items() if at not in said} if prompt.contents else {}
            num_whole = sum(segment.said is not None for segment in prompt.segments)
            chain = self.new_chain(request.tenant, request.cache_salt)
            start = _Start(keys[-1], chain, spliced, len(spliced) + num_whole, num_settled_drops)
        return await work(self._encoded, request, conversation, prompt, start)

    def place(self, prompted: Prompted, request: ChatRequest, num_tokens: int) -> tuple[str, int, int]:
        """Where the token after the first `num_tokens` stands: parameter, offset in it, offset in the prompt's text."""
        prompt = prompted.prompt
        at = self._tokenizer.offset_of(prompt, num_tokens, scope=scope_of(request), spliced=prompted.spliced)
        span = prompt.content_at(at)
        if span is not None:
            return f"messages[{span.message}].content", at - span.start, at
        is_before_all = not prompt.contents or at < prompt.contents[0].start
        return "tools" if is_before_all and prompted.opening.conversation.schemas else "template", at, at

    def _encoded(self, request: ChatRequest, conversation: Conversation, prompt: Prompt, start: "_Start") -> Prompted:
        """Any thread."""
        scope = scope_of(request)
        spliced = {
            conversation.sources[at]: self._spliced_ids(conversation.turns[at].content, found, scope)
            for at, found in start.spliced.items()
        }
        token_ids = self._tokenizer.encode(prompt, scope=scope, spliced=spliced, max_model_len=self._max_model_len)
        if not token_ids:
            raise InvalidRequest("The messages render to an empty prompt.", param="messages")
        chain = start.chain
        chain.extend(token_ids[chain.num_tokens :])
        predicted = request.prediction[: CHARACTERS_PER_TOKEN * self._max_model_len]
        opening = Opening(
            root=chain.root,
            key=start.key,
            conversation=conversation,
            text=None if prompt.needed_stand_ins else prompt.text,
            token_ids=token_ids,
            chain=chain.fork(),
            num_spliced=start.num_spliced,
            held=prompt.held,
            num_settled_drops=start.num_settled_drops,
            owner=request.tenant.id,
            continues=start.transcript,
            salted_of=self._salted_of(request),
        )
        prediction = tuple(self._tokenizer.encode_text(predicted, scope=scope))
        report = PromptReport(start.num_spliced, prompt.moves)
        places = _places(conversation, prompt)
        counts = self._tokenizer.tokens_before(prompt, [at for at, _ in places], scope=scope, spliced=spliced)
        breakpoints = tuple((count, point) for count, (_, point) in zip(counts, places, strict=True))
        return Prompted(token_ids, chain, prediction, opening, report, breakpoints, prompt, spliced)

    def _salted_of(self, request: ChatRequest) -> BlockHash | None:
        """See `Opening`."""
        return None if request.cache_salt is None else self.root_of(request.tenant.id, None)

    def _spliced_ids(self, content: str, found: Spliced, scope: str) -> list[TokenId]:
        rest = self._tokenizer.encode_text(content[found.num_chars :], scope=scope)
        return [*map(TokenId, found.ids), *rest]


@dataclass(frozen=True, slots=True)
class _Start:
    """What was found of a conversation. chain: hashes of the tokens that are known already."""

    key: TurnKey
    chain: HashChain
    spliced: dict[int, Spliced]
    num_spliced: int
    num_settled_drops: int
    transcript: Transcript | None = None


def _places(conversation: Conversation, prompt: Prompt) -> list[tuple[int, Breakpoint]]:
    """Where breakpoints stand in the prompt's text; not those at blank contents, or where the template hides them."""
    spans = {span.message: span for span in prompt.contents}
    places = []
    for turn, offset, point in conversation.breakpoints:
        span = spans.get(conversation.sources[turn])
        if span is None:
            continue
        content, rendered = conversation.turns[turn].content, prompt.text[span.start : span.end]
        lost = max(0, content.find(rendered))  # what the template stripped from the beginning
        places.append((span.start + min(max(0, offset - lost), len(rendered)), point))
    return places


async def _at_once(work: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """As `LongWork`, where a thread would cost more than the work."""
    return work(*args, **kwargs)


def _is_long(request: ChatRequest, turns: Sequence[Turn]) -> bool:
    parts: list[Any] = [part for turn in turns for part in (turn.content, turn.tool_calls, turn.reasoning)]
    parts += request.prediction, *((tool.description, tool.parameters) for tool in request.tools)
    num_characters = 0
    while parts and num_characters <= LONG_PROMPT_CHARACTERS:
        part = parts.pop()
        num_characters += MARKUP_CHARACTERS
        if isinstance(part, str):
            num_characters += len(part)
        elif isinstance(part, dict):
            parts += chained.from_iterable(part.items())
        elif isinstance(part, (list, tuple)):
            parts += part
    return num_characters > LONG_PROMPT_CHARACTERS


def scope_of(request: ChatRequest | CompletionRequest) -> str:
    """Whose encodings may be reused: nobody can time what another tenant wrote."""
    return request.tenant.id + "\0" + (request.cache_salt or "")
