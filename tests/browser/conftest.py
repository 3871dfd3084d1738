"""A real Chromium (Debian's, `make browser`) in front of a real server. Without one these tests are skipped."""

import contextlib
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, async_playwright, expect

from tests.contract.conftest import serve  # noqa: F401  (a fixture)

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
QUIET = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-gpu",
    "--disable-quic",
)
DEADLINE_MS = 15_000

expect.set_options(timeout=DEADLINE_MS)


class Visit:
    """The page in a browser of its own, and what it complained of and asked for meanwhile."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.origin = origin
        self.complaints: list[str] = []
        self.asked: list[str] = []
        page.set_default_timeout(DEADLINE_MS)
        page.on(
            "console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def __getitem__(self, selector: str) -> Locator:
        return self.page.locator(selector)

    async def open(self, state: str = "live") -> None:
        await self.page.goto(f"{self.origin}/ui")
        await expect(self["#connection"]).to_have_text(state)

    async def say(self, text: str) -> None:
        """Send a message, wait for the end of its reply."""
        num_turns = await self["#chat-log .turn"].count()
        await self["#chat-input"].fill(text)
        await self["#chat-input"].press("Enter")
        await expect(self["#chat-log .turn"]).to_have_count(num_turns + 1)
        await expect(self["#chat-send"]).to_be_visible()

    async def turns(self) -> list[tuple[int, int, int]]:
        """(prompt, cached, new) tokens of the chat's turns."""
        lines = await self["#chat-log .turn"].all_text_contents()
        return [tuple(int(part.split()[0].replace(",", "")) for part in line.split(" · ")[:3]) for line in lines]  # type: ignore[misc]

    async def stored_tokens(self) -> int:
        """That the picture shows."""
        tokens = await self["#trie .node"].evaluate_all("nodes => nodes.map(node => +node.dataset.tokens)")
        return sum(tokens)

    async def hidden_overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        wide: int = await self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        return wide

    def expect_quiet(self) -> None:
        """It complained of nothing and asked nobody else."""
        assert self.complaints == []
        assert [url for url in self.asked if not url.startswith(self.origin + "/")] == []


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def chromium() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: `make browser`")
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        await browser.close()


Visiting = Callable[..., AbstractAsyncContextManager[Visit]]


@pytest.fixture
def visiting(chromium: Browser) -> Visiting:
    """`async with visiting(origin, width=360, color_scheme="dark") as visit`: quiet by then, unless told otherwise."""

    @contextlib.asynccontextmanager
    async def visit(origin: str, width: int = 1280, *, is_quiet: bool = True, **options: Any) -> AsyncIterator[Visit]:
        context = await chromium.new_context(viewport={"width": width, "height": 800}, **options)
        try:
            found = Visit(await context.new_page(), origin)
            yield found
            if is_quiet:
                found.expect_quiet()
        finally:
            await context.close()

    return visit
