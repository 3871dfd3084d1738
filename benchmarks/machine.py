"""Where a run took place, and beside what: for the head of a report. Reads the system; starts nothing."""

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import psutil

from benchmarks.report import QUIET_PERCENT, cpu_name

PACKAGES: Final = ("anaphora", "torch", "transformers", "litestar", "uvicorn", "redis", "openai", "matplotlib")
SETTLE_S: Final = 1.0


def machine() -> dict[str, Any]:
    """Processor, memory, system, versions."""
    frequency = psutil.cpu_freq()
    return {
        "processor": cpu_name(),
        "physical cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "logical cores": os.cpu_count(),
        "MHz": round(frequency.current) if frequency else None,
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "system": platform.platform(),
        "Python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def load() -> dict[str, Any]:
    """What the machine does at this moment, looked at for a second."""
    busy = psutil.cpu_percent(SETTLE_S)
    return {
        "load average": [round(value, 2) for value in os.getloadavg()],
        "processors busy, percent": busy,
        "free memory": f"{psutil.virtual_memory().available / 2**30:.1f} GiB",
    }


def is_quiet(looked: dict[str, Any]) -> bool:
    """Was nothing else running, as `load` saw it?"""
    return bool(looked["processors busy, percent"] <= QUIET_PERCENT)


def today() -> str:
    """Date and time here, for people."""
    return time.strftime("%Y-%m-%d %H:%M %Z")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
