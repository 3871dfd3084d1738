"""Affinity: which groups of requests came before, by `prompt_cache_key`. Pure; event loop only.

A key says that requests belong together. It never decides what is shared (prompts share what is the same in them,
whatever their keys), only how much is lost with what a request leaves behind: of a group that came back it is a
session's and not a one-shot's (`engine/retention.py`), also before its second turn shows that.
"""

from collections import OrderedDict
from hashlib import blake2b
from typing import Final

MAX_GROUPS: Final = 16_384
"""About 2 MB. The group that was quiet for longest is forgotten first."""


class Affinity:
    """One per service. Keeps digests, so that neither a key's length nor its text stays."""

    def __init__(self, max_groups: int = MAX_GROUPS) -> None:
        self._max_groups = max_groups
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def returns(self, tenant_id: str, group: str | None) -> bool:
        """Did the tenant's group come before? Notes that it came now. Mutates."""
        if group is None:
            return False
        named = tenant_id.encode()
        digest = blake2b(
            len(named).to_bytes(4, "little") + named + group.encode("utf-8", "surrogatepass"), digest_size=16
        ).digest()
        is_known = digest in self._seen
        self._seen[digest] = None
        self._seen.move_to_end(digest)
        if len(self._seen) > self._max_groups:
            self._seen.popitem(last=False)
        return is_known
