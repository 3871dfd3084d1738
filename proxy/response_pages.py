"""Pages of items, as OpenAI's lists have them: from the item that follows `after`, in either order. Pure."""

from collections.abc import Sequence
from typing import Annotated, Literal

from litestar.params import QueryParameter

from proxy.refusals import invalid
from proxy.response_item_schemas import Item, ItemList

After = Annotated[str | None, QueryParameter(description="`id` of the item before the page.")]
Limit = Annotated[int, QueryParameter(description="Items of a page, at most.", ge=1, le=100)]
Order = Annotated[Literal["asc", "desc"], QueryParameter(description="`desc`: the last item first.")]


def page_of(items: Sequence[Item], *, after: str | None, limit: int, order: Literal["asc", "desc"]) -> ItemList:
    """At most `limit` items, from the one that follows `after`. Raises InvalidRequest for one that is not there."""
    ordered = list(items) if order == "asc" else list(reversed(items))
    start = 0
    if after is not None:
        places = [at for at, item in enumerate(ordered) if item.id == after]
        if not places:
            raise invalid("after", "no item has this id")
        start = places[0] + 1
    page = ordered[start : start + limit]
    return ItemList(
        data=page,
        first_id=page[0].id if page else "",
        last_id=page[-1].id if page else "",
        has_more=start + limit < len(ordered),
    )
