"""How big the KV pool shall be, as an operator writes it. Pure; the engine turns the value into blocks.

"2GiB", "512 MiB", "4GB"     bytes of K and V
"40000 tokens"               tokens, rounded up to whole blocks
"0.3"                        that share of the device's free memory
"""

import re
from dataclasses import dataclass
from typing import Literal

_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_PATTERN = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([a-z]*)", re.IGNORECASE | re.ASCII)
_HINT = 'write a size in bytes ("2GiB"), in tokens ("40000 tokens") or as a share of free memory ("0.3")'


@dataclass(frozen=True, slots=True)
class PoolSize:
    """`amount` is a count of bytes, a count of tokens, or a share in (0, 1), as `kind` says."""

    kind: Literal["bytes", "tokens", "fraction"]
    amount: float


def parse_pool_size(text: str) -> PoolSize:
    """Raises ValueError with one clear sentence when `text` is none of the three forms or not positive."""
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a pool size: {_HINT}")
    number, unit = float(match[1]), match[2].lower()
    if unit in ("token", "tokens"):
        return PoolSize("tokens", _positive_int(number, text))
    if unit in _UNITS:
        return PoolSize("bytes", _positive_int(number * _UNITS[unit], text))
    if unit == "" and 0 < number < 1:
        return PoolSize("fraction", number)
    raise ValueError(f"{text!r} is not a pool size: {_HINT}")


def parse_budgets(text: str) -> dict[str, int]:
    """Bytes by tenant, as "alice=2GiB,bob=512MiB". Raises ValueError with one clear sentence."""
    budgets: dict[str, int] = {}
    for entry in filter(None, map(str.strip, text.split(","))):
        tenant, _, amount = map(str.strip, entry.partition("="))
        size = parse_pool_size(amount) if tenant and amount else None
        if size is None or size.kind != "bytes" or tenant in budgets:
            raise ValueError(f"{entry!r} is not a tenant's budget: write each tenant once, as tenant=2GiB")
        budgets[tenant] = int(size.amount)
    return budgets


def parse_disk_size(text: str) -> int:
    """Bytes, as "4GiB"; "0" is none. Raises ValueError with one clear sentence."""
    if text.strip() == "0":
        return 0
    try:
        size = parse_pool_size(text)
    except ValueError:
        size = None
    if size is None or size.kind != "bytes":
        raise ValueError(f'{text!r} is not a disk size: write bytes ("4GiB"), or 0 for none')
    return int(size.amount)


def parse_host_memory_size(text: str) -> int | None:
    """Bytes, as "4GiB"; "0" is none, "auto" is None. Raises ValueError with one clear sentence."""
    if text.strip().lower() == "auto":
        return None
    try:
        return parse_disk_size(text)
    except ValueError:
        pass
    raise ValueError(f'{text!r} is not a size of host memory: write bytes ("4GiB"), 0 for none, or auto')


def _positive_int(amount: float, text: str) -> int:
    if amount < 1:
        raise ValueError(f"{text!r} is not a pool size: it must hold at least one")
    return int(amount)
