"""The page at `/ui` as somebody uses it: chat, picture, explainer, key, keyboard; nothing comes from elsewhere."""

import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
from playwright.async_api import expect
from pydantic import SecretStr

from proxy.settings import Settings
from sessions.service import ChatService
from sessions.startup import ServiceOptions
from tests.browser.conftest import Visit, Visiting
from tests.contract.conftest import RunningServer, Serve, running
from tests.fakes import byte_tokenizer, open_fake_service

pytestmark = pytest.mark.asyncio(loop_scope="module")

LEGIBLE = [
    ("text", "panel"),
    ("soft", "panel"),
    ("soft", "ground"),
    ("strong", "panel"),
    ("wrong", "panel"),
    ("on-strong", "strong"),
]
OPENS_THOUGHTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
SYSTEM = "You are the assistant of a library. Answer in one sentence. " * 4


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running() as started:
        yield started
        started.expect_idle()


async def prepare(visit: Visit, system: str, longest: int = 12) -> None:
    await visit["summary"].click()
    await visit["#chat-system"].fill(system)
    await visit["#chat-max"].fill(str(longest))
    await visit["summary"].click()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
async def test_two_turns_are_chatted_and_their_tokens_seen(
    serve: Serve, visiting: Visiting, width: int, scheme: str
) -> None:
    async with visiting(serve().origin, width, color_scheme=scheme) as visit:
        await visit.open()
        await expect(visit["#trie-empty"]).to_be_visible()
        await prepare(visit, SYSTEM)
        await visit.say("Where are the atlases?")
        await expect(visit["#trie .node"]).to_have_count(1)
        before, told = await visit.stored_tokens(), await visit["#trie-sum"].text_content()
        assert told
        await visit.say("And who keeps them?")
        [(prompt, cached, new), (prompt_2, cached_2, new_2)] = await visit.turns()
        assert (cached, new) == (0, prompt) and prompt > 200
        assert cached_2 > cached and cached_2 + new_2 == prompt_2 and new_2 < new / 2
        await expect(visit["#chat-log .turn"].last).to_have_text(
            re.compile(r"^[\d,]+ prompt · [\d,]+ cached · [\d,]+ new · TTFT [\d.]+ m?s$")
        )
        await expect(visit["#trie-sum"]).not_to_have_text(told)
        assert await visit.stored_tokens() > before
        await expect(visit["#sessions-chats .turns li"]).to_have_count(2)
        await expect(visit["#sessions-stored .turns li"]).to_have_count(1)
        await expect(visit["#figures .value"].nth(1)).to_have_text(re.compile(r"\d %$"))
        await expect(visit["#figures .value"].nth(2)).to_have_text(re.compile(r"m?s$"))
        assert await visit.hidden_overflow() <= 0


async def test_a_young_chart_is_a_wide_one(server: RunningServer, visiting: Visiting) -> None:
    """Or for its first half minute it would be a speck at the edge."""
    async with visiting(server.origin) as visit:
        await visit.open()
        line = visit["#figures .line-0"].first
        await expect(line).to_have_attribute("d", re.compile("L"))
        path = await line.get_attribute("d") or ""
        places = [float(x) for x in re.findall(r"[ML]([\d.]+),", path)]
        assert places[1] - places[0] > 200 / 40, "of a width of 200, where two minutes are 120 places"


async def test_a_fork_and_an_edit_hit_what_stands_before_them(server: RunningServer, visiting: Visiting) -> None:
    async with visiting(server.origin) as visit:
        await visit.open()
        await prepare(visit, "Forked and edited. " + SYSTEM)
        for text in ("First?", "Second?"):
            await visit.say(text)
        (first, _, _), (second, _, _) = await visit.turns()
        await visit["#chat-log article.user"].nth(1).get_by_role("button", name="Edit").click()
        await visit.page.get_by_label("Edit the message").fill("Something else?")
        await visit.page.get_by_label("Edit the message").press("Enter")
        await expect(visit["#chat-send"]).to_be_visible()
        edited = await visit.turns()
        assert len(edited) == 2 and edited[1][1] >= first and edited[1][0] != second
        await visit["#chat-log article.assistant"].first.get_by_role("button", name="Fork here").click()
        await expect(visit["#chat-title"]).to_have_text("Chat 2 (from Chat 1)")
        await visit.say("A third way?")
        forked = await visit.turns()
        assert forked[0] == edited[0] and forked[1][1] >= first
        await expect(visit["#trie .node"].first).to_have_attribute("aria-label", re.compile("3 paths"))
        await visit["#sessions-chats .name"].first.click()
        await expect(visit["#chat-title"]).to_have_text("Chat 1")
        assert await visit.turns() == edited


async def test_a_reply_is_stopped(server: RunningServer, visiting: Visiting) -> None:
    async with visiting(server.origin) as visit:
        await visit.open()
        with server.engine_held():
            await visit["#chat-input"].fill("Tell me everything.")
            await visit["#chat-send"].click()
            await visit["#chat-stop"].click()
            await expect(visit["#chat-log .turn"]).to_have_text("stopped")
        await expect(visit["#chat-send"]).to_be_visible()


class ThinkingServer(RunningServer):
    """A server whose model does nothing but think: its template opens a thought that it never ends."""

    def __init__(self) -> None:
        super().__init__(Settings(), {})

    async def _open(self, _: ServiceOptions) -> ChatService:
        self.service = await open_fake_service(tokenizer=byte_tokenizer(OPENS_THOUGHTS, ("<think>", "</think>")))
        return self.service


async def test_thoughts_are_seen_and_go_back_as_they_came(visiting: Visiting) -> None:
    server = ThinkingServer()
    server.start()
    try:
        async with visiting(server.origin) as visit:
            await visit.open()
            await prepare(visit, "Think.")
            await visit.say("Why?")
            await expect(visit["#chat-log .thoughts"]).to_be_visible()
            await expect(visit["#chat-log .thoughts"]).not_to_have_text("")
            sent: list[Any] = []
            visit.page.on("request", lambda asked: sent.append(asked.post_data_json) if asked.post_data else None)
            await visit.say("And why that?")
            [asked] = sent
            assert [message["role"] for message in asked["messages"]] == ["system", "user", "assistant", "user"]
            assert asked["messages"][2]["reasoning_content"] and not asked["messages"][2]["content"]
    finally:
        server.stop()


async def test_the_explainer_shows_where_two_requests_part(server: RunningServer, visiting: Visiting) -> None:
    async with visiting(server.origin, 360) as visit:
        await visit.open()
        await visit["#explain-example"].click()
        await visit["#explain-run"].click()
        result = visit["#explain-result"]
        await expect(result.locator("h3")).to_have_text("They part")
        await expect(result.locator("p", has_text="messages[0].content").first).to_contain_text("character 10 of")
        await expect(result.locator("del")).to_have_text(re.compile(r"^3 November"))
        await expect(result.locator("ins")).to_have_text(re.compile(r"^4 November"))
        assert await visit.hidden_overflow() <= 0


async def test_what_is_no_request_is_refused_in_words(server: RunningServer, visiting: Visiting) -> None:
    async with visiting(server.origin, is_quiet=False) as visit:
        await visit.open()
        await visit["#explain-later"].fill("{")
        await visit["#explain-run"].click()
        await expect(visit["#explain-error"]).to_contain_text("This request is no JSON body")
        await expect(visit["#explain-later"]).to_be_focused()
        await expect(visit["#explain-later"]).to_have_attribute("aria-invalid", "true")
        await visit["#explain-later"].fill('{"messages": [{"role": "wizard", "content": "?"}]}')
        await visit["#explain-run"].click()
        await expect(visit["#explain-error"]).to_contain_text("role")
        await visit["#explain-chat"].click()
        await expect(visit["#explain-error"]).to_contain_text("fewer than two")


async def test_the_key_is_asked_for_kept_in_the_tab_and_in_no_address(serve: Serve, visiting: Visiting) -> None:
    server = serve(api_keys=SecretStr("alice=sk-alice"))
    async with visiting(server.origin, is_quiet=False) as visit:
        await visit.open("needs a key")
        await expect(visit["#key-dialog"]).to_be_visible()
        await visit["#key-input"].fill("sk-eve")
        await visit["#key-input"].press("Enter")
        await expect(visit["#key-why"]).to_have_text("The server does not know this key.")
        await visit["#key-input"].fill("sk-alice")
        await visit["#key-input"].press("Enter")
        await expect(visit["#connection"]).to_have_text("live")
        await visit.say("Where?")
        await visit.page.reload()
        await expect(visit["#connection"]).to_have_text("live")
        assert not [url for url in visit.asked if "sk-" in url]
        assert all("401" in said for said in visit.complaints), visit.complaints
        assert await visit.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


async def test_the_keyboard_is_enough(server: RunningServer, visiting: Visiting) -> None:
    async with visiting(server.origin) as visit:
        await visit.open()
        keys = visit.page.keyboard
        await keys.press("Tab")
        await expect(visit[".skip"]).to_be_focused()
        await keys.press("Enter")
        await expect(visit["#chat-input"]).to_be_focused()
        await keys.type("One line")
        await keys.press("Shift+Enter")
        await keys.type("and another")
        await keys.press("Enter")
        await expect(visit["#chat-log article.user .text"]).to_have_text("One line\nand another")
        await expect(visit["#chat-send"]).to_be_visible()
        await expect(visit["#trie .node"]).not_to_have_count(0)
        seen = await tabbed(visit)
        assert {"key-button", "treeitem", "chat-new", "chat-log", "chat-send", "explain-run"} <= seen
        nodes = visit["#trie .node"]
        await visit["#trie .node[tabindex='0']"].focus()
        await keys.press("End")
        await keys.press("Home")
        await keys.press("ArrowDown")
        focused = await visit.page.evaluate("document.activeElement.getAttribute('aria-selected')")
        assert focused == "true" and await nodes.count() > 1
        outline = await visit.page.evaluate(
            "getComputedStyle(document.activeElement.querySelector('rect')).outlineStyle"
        )
        assert outline == "solid"


async def tabbed(visit: Visit) -> set[str]:
    """What Tab reaches from the top of the page on, by id or role; every stop shows where it is."""
    await visit.page.evaluate("document.activeElement.blur(); document.querySelector('.skip').focus()")
    seen: set[str] = set()
    for _ in range(40):
        await visit.page.keyboard.press("Tab")
        at: Any = await visit.page.evaluate(
            """() => {
              const at = document.activeElement;
              const shown = at.matches('.node') ? at.querySelector('rect') : at;
              return [at.id || at.getAttribute('role') || at.tagName, getComputedStyle(shown).outlineStyle];
            }"""
        )
        if at[0] == "BODY":
            break
        assert at[1] != "none", f"focus is not seen on {at[0]}"
        seen.add(at[0])
    return seen


async def test_what_is_said_is_text_and_never_markup(server: RunningServer, visiting: Visiting) -> None:
    async with visiting(server.origin) as visit:
        await visit.open()
        evil = "<img src=/ui/nothing.svg onerror=alert(1)><b>bold</b>"
        await visit.say(evil)
        await expect(visit["#chat-log article.user .text"]).to_have_text(evil)
        assert await visit["#chat-log img, #chat-log b"].count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_words_stand_out_from_what_is_behind_them(server: RunningServer, visiting: Visiting, scheme: str) -> None:
    async with visiting(server.origin, color_scheme=scheme, reduced_motion="reduce") as visit:
        await visit.open()
        style = "getComputedStyle(document.documentElement)"
        for front, behind in LEGIBLE:
            pair = [await visit.page.evaluate(f"{style}.getPropertyValue('--{name}')") for name in (front, behind)]
            assert contrast(*pair) >= 4.5, f"{front} on {behind}"
        await visit.say("Is anything moving?")
        await expect(visit["#trie .node"]).not_to_have_count(0)
        moving = await visit.page.evaluate("document.getAnimations().length")
        assert moving == 0


async def test_no_two_runs_are_drawn_over_each_other(server: RunningServer, visiting: Visiting) -> None:
    """What is on disk may leave the middle of a run, of one that goes on and of one that ends."""

    def node(name: str, parent: str | None, start: int, tokens: int, paths: int = 1) -> dict[str, Any]:
        return {"id": name, "parent": parent, "start": start, "tokens": tokens, "paths": paths}

    nodes = [
        node("head", None, 0, 144, 4),
        node("a", "head", 144, 30),
        node("e", "head", 64, 16),
        node("b", "head", 144, 60, 2),
        node("d", "b", 160, 16),
    ]
    async with visiting(server.origin) as visit:
        await visit.open()
        script = """async nodes => {
          const { layout } = await import('/ui/tree.js');
          return Object.fromEntries(layout(nodes, new Map(), 600).at);
        }"""
        at = await visit.page.evaluate(script, nodes)
    for one, other in combinations(at.values(), 2):
        is_beside = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
        assert is_beside or abs(one["y"] - other["y"]) > (one["thick"] + other["thick"]) / 2
    assert at["head"]["x"] < at["e"]["x"] < at["a"]["x"] == at["b"]["x"] < at["d"]["x"]
    assert {name for name, one in at.items() if one["ends"]} == {"a", "b", "d", "e"}
    assert at["head"]["thick"] > at["b"]["thick"] > at["a"]["thick"]


def contrast(one: str, other: str) -> float:
    """WCAG's, of two colours written `#rrggbb`."""

    def luminance(colour: str) -> float:
        channels = [int(colour.strip()[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
