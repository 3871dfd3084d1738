"""Grammars that take long, and a look at the processes in which they are tried."""

import asyncio
import json
import subprocess
from collections.abc import Callable
from queue import Queue

from sessions.grammars import Grammars
from tests.schemas import closed

SLOW = json.dumps(closed(**{f"field_{n}": {"type": "string"} for n in range(5000)}))
"""A schema that takes half a second of processor time."""
PATIENT_S = 31.0

Make = Callable[..., Grammars]
Trials = Queue[tuple[str, subprocess.Popen[bytes]]]
"""What is tried, as it begins to be, and where."""


async def one_of(trials: Trials) -> tuple[str, subprocess.Popen[bytes]]:
    return await asyncio.to_thread(trials.get, timeout=20)


async def patient_one(trials: Trials) -> subprocess.Popen[bytes]:
    """The process in which the patient lane tries what was too slow for the quick one."""
    await one_of(trials)
    return (await one_of(trials))[1]
