"""Settings, their options and their documentation: one source, and nothing missing in any of the three."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from proxy.__main__ import main
from proxy.listening import bind
from proxy.metrics import Metrics
from proxy.options import SettingsError, load_settings, option_name, shown_default, variable_name
from proxy.settings import Settings, parse_api_keys
from sessions.pool_size import PoolSize, parse_pool_size
from sessions.reports import Stats

ROOT = Path(__file__).parents[3]
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_name(name), raising=False)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    info = Settings.model_fields[name]
    row = f"| `{option_name(name)}` | `{variable_name(name)}` | {shown_default(info)} | {info.description} |"
    assert row in CONFIGURATION


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_in_help(name: str) -> None:
    help_text = " ".join(CliRunner().invoke(main, ["serve", "--help"]).output.split())
    shown = f"[{variable_name(name)}; default: {shown_default(Settings.model_fields[name])}]"
    assert option_name(name) in help_text
    assert shown.replace("- ", "-") in help_text.replace("- ", "-")


def test_every_documented_option_exists() -> None:
    documented = set(re.findall(r"^\| `--([a-z-]+)`", CONFIGURATION, re.MULTILINE))
    assert documented == {name.replace("_", "-") for name in Settings.model_fields}


def test_every_metric_is_documented() -> None:
    registry: CollectorRegistry = Metrics(Stats).registry
    exposed = {family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()}
    documented = set(re.findall(r"^\| `(anaphora_\w+)`", CONFIGURATION, re.MULTILINE))
    assert documented == exposed


def test_command_line_wins_over_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANAPHORA_PORT", "9000")
    monkeypatch.setenv("ANAPHORA_BLOCK_SIZE", "32")
    settings = load_settings({"port": "9001", "block_size": None})
    assert (settings.port, settings.block_size, settings.max_num_seqs) == (9001, 32, 64)


@pytest.mark.parametrize(("text", "is_on"), [("true", True), ("1", True), ("false", False), ("0", False)])
def test_a_switch_is_true_or_false(text: str, is_on: bool) -> None:
    assert load_settings({"stable_first": text}).stable_first is is_on
    assert not load_settings({}).stable_first
    assert "--stable-first true|false" in CliRunner().invoke(main, ["serve", "--help"]).output


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANAPHORA_PORT", "")
    assert load_settings({}).port == 8000


@pytest.mark.parametrize(
    ("given_options", "sentence"),
    [
        ({"port": "99999"}, "--port (ANAPHORA_PORT): the value should be less than or equal to 65535."),
        ({"port": "http"}, "--port (ANAPHORA_PORT): the value should be a valid integer"),
        ({"dtype": "int8"}, "--dtype (ANAPHORA_DTYPE): the value should be 'auto', 'float32', 'bfloat16'"),
        ({"cache_budgets": "bob"}, "--cache-budgets (ANAPHORA_CACHE_BUDGETS): 'bob' is not a tenant's budget"),
        (
            {"cache_budgets": "bob=1GiB,bob=2GiB"},
            "--cache-budgets (ANAPHORA_CACHE_BUDGETS): 'bob=2GiB' is not a tenant's budget",
        ),
        (
            {"cache_budgets": "bob=100 tokens"},
            "--cache-budgets (ANAPHORA_CACHE_BUDGETS): 'bob=100 tokens' is not a tenant's budget",
        ),
        ({"pool_size": "big"}, "--pool-size (ANAPHORA_POOL_SIZE): 'big' is not a pool size"),
        (
            {"host_memory_size": "a lot"},
            "--host-memory-size (ANAPHORA_HOST_MEMORY_SIZE): 'a lot' is not a size",
        ),
        ({"keepalive_s": "nan"}, "--keepalive-s (ANAPHORA_KEEPALIVE_S): the value should be"),
        ({"stable_first": "maybe"}, "--stable-first (ANAPHORA_STABLE_FIRST): the value should be a valid boolean"),
        ({"index": "redis"}, "--index redis needs --redis-url (ANAPHORA_REDIS_URL)."),
        ({"max_slowdown": "0.5"}, "--max-slowdown must be 0 or more than 1"),
        ({"max_slowdown": "inf"}, "--max-slowdown (ANAPHORA_MAX_SLOWDOWN): the value should be"),
        ({"max_num_seqs": "300"}, "--max-num-seqs must not exceed --max-num-batched-tokens"),
        ({"redis_url": "http://secret@x"}, "--redis-url (ANAPHORA_REDIS_URL): the URL must begin with redis://"),
        ({"redis_url": "redis://localhost:abc"}, "--redis-url (ANAPHORA_REDIS_URL): the URL's host, port"),
        ({"redis_url": "redis://u:secret/x@host"}, "--redis-url (ANAPHORA_REDIS_URL): the URL's host, port"),
        ({"redis_url": "redis://[::1"}, "--redis-url (ANAPHORA_REDIS_URL): the URL's host, port"),
        ({"redis_url": "redis://host?db=secret"}, "--redis-url (ANAPHORA_REDIS_URL): the URL's host, port"),
        ({"api_keys": "alice=sk-1,sk-secret"}, "--api-keys (ANAPHORA_API_KEYS): entry 2 of the API keys"),
        ({"api_keys_file": "nowhere/keys"}, "--api-keys-file: cannot be read: No such file"),
    ],
)
def test_a_wrong_value_is_one_sentence(given_options: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(given_options)
    message = caught.value.format_message()
    assert message.startswith(sentence)
    assert "\n" not in message
    assert "secret" not in message
    assert caught.value.exit_code == 2


def test_a_short_secret_is_refused_without_being_told() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"secret": "short-one"})
    assert caught.value.format_message() == "--secret (ANAPHORA_SECRET): at least 16 bytes are needed."


def test_the_command_prints_the_sentence_and_exits_with_2() -> None:
    result = CliRunner().invoke(main, ["serve", "--port", "99999"])
    assert result.exit_code == 2
    assert result.stderr == "Error: --port (ANAPHORA_PORT): the value should be less than or equal to 65535.\n"


def refused(*options: str) -> tuple[int, str]:
    """Exit code and standard error of a real `anaphora serve` that does not get as far as a model."""
    command = [sys.executable, "-m", "proxy", "serve", "--index", "off", *options]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--host", "nonsense.invalid"), "Cannot listen on nonsense.invalid:0: "),
        (("--host", "a..b"), "Cannot listen on a..b:0: that is no host name."),
        (("--cache-dir", "/proc/nope"), "--cache-dir (ANAPHORA_CACHE_DIR): /proc/nope cannot be used: "),
        (("--cache-dir", __file__ + "/x"), "--cache-dir (ANAPHORA_CACHE_DIR): "),
    ],
)
def test_a_value_refused_after_the_settings_is_one_sentence_too(options: tuple[str, ...], sentence: str) -> None:
    exit_code, errors = refused("--port", "0", *options)
    assert exit_code == 2
    assert errors.splitlines()[-1].startswith("Error: " + sentence)
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--model", "/nope"), "There is no folder /nope."),
        (("--quantization", "fp16", "--dtype", "bfloat16"), "quantization 'fp16' needs"),
    ],
)
@pytest.mark.model
@pytest.mark.slow
def test_a_value_refused_by_the_model_exits_with_2(options: tuple[str, ...], sentence: str) -> None:
    exit_code, errors = refused("--port", "0", *options)
    assert exit_code == 2
    assert errors.splitlines()[-1].startswith("Error: ")
    assert sentence in errors.splitlines()[-1]


def test_a_port_in_use_exits_with_1() -> None:
    with bind("127.0.0.1", 0) as held:
        held.listen()
        exit_code, errors = refused("--port", str(held.getsockname()[1]))
    assert exit_code == 1
    assert errors.startswith("Error: 127.0.0.1:")
    assert "is in use" in errors


def test_secrets_are_not_in_the_representation() -> None:
    settings = Settings(api_keys="alice=sk-hidden", secret="hidden, and long enough", redis_url="redis://:hidden@x")
    assert "hidden" not in repr(settings)


def test_api_keys_of_option_and_file_are_joined(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# rotated in May\nbob=sk-2\n\nbob = sk-3  # the new one\n", encoding="utf-8")
    settings = load_settings({"api_keys": "alice=sk-1,", "api_keys_file": str(keys)})
    assert settings.key_pairs() == (("alice", "sk-1"), ("bob", "sk-2"), ("bob", "sk-3"))


def test_a_hash_is_part_of_a_key(tmp_path: Path) -> None:
    """A secret cut short in silence would be a short secret. In a file a comment starts a line or follows a blank."""
    assert load_settings({"api_keys": "alice=sk#1, bob=#2"}).key_pairs() == (("alice", "sk#1"), ("bob", "#2"))
    keys = tmp_path / "keys"
    keys.write_text("  # alice=sk-0\nalice=sk#1\t# new, bob=sk-9\n#\nbob=#2\n", encoding="utf-8")
    settings = load_settings({"api_keys": "carol=sk #3", "api_keys_file": str(keys)})
    assert settings.key_pairs() == (("carol", "sk #3"), ("alice", "sk#1"), ("bob", "#2"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"alice=\xff\xfesk-secret", "the file is not text in UTF-8."),
        (b"alice=sk-secret\x00\x01", "entry 2 of the API keys holds a character that cannot be printed."),
        (b"\x7fELF\x02\x01\x01", "entry 2 of the API keys is not of the form tenant=key."),
    ],
)
def test_a_keys_file_that_is_none_is_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load_settings({"api_keys_file": str(keys)})
    assert caught.value.format_message() == f"--api-keys-file: {sentence}"


def test_a_key_given_twice_is_refused_without_quoting_it() -> None:
    with pytest.raises(ValueError, match="twice") as caught:
        parse_api_keys("alice=sk-same,bob=sk-same")
    assert "sk-same" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", PoolSize("bytes", 2 * 2**30)),
        ("512 mb", PoolSize("bytes", 512_000_000)),
        ("1.5GiB", PoolSize("bytes", 3 * 2**29)),
        ("40000 tokens", PoolSize("tokens", 40_000)),
        ("1 token", PoolSize("tokens", 1)),
        ("0.3", PoolSize("fraction", 0.3)),
        (".5", PoolSize("fraction", 0.5)),
    ],
)
def test_pool_sizes(text: str, size: PoolSize) -> None:
    assert parse_pool_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", "1", "40000", "-1GiB", "0 tokens", "1.5", "2 GiBs", "inf", "nan", "٣ tokens"]
)
def test_what_is_no_pool_size(text: str) -> None:
    with pytest.raises(ValueError, match="pool size"):
        parse_pool_size(text)


@given(st.text(max_size=20))
def test_any_text_is_a_positive_pool_size_or_a_value_error(text: str) -> None:
    try:
        assert parse_pool_size(text).amount > 0
    except ValueError as error:
        assert "pool size" in str(error)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom proxy.__main__ import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        "print(*sorted({'torch', 'transformers', 'litestar', 'uvicorn', 'redis'} & set(sys.modules)))"
    )
    started_at = time.monotonic()
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30)
    assert loaded.stdout.strip() == ""
    assert time.monotonic() - started_at < 5
