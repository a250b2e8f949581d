"""Settings: which source wins, what each of them refuses, and what is never shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.settings import Settings, SettingsError, load, without_settings

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without a file of settings."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def from_file(name: str, value: str) -> Settings:
    quoted = value if value.isdecimal() else f'"{value}"'
    Path("redeem.toml").write_text(f"{name} = {quoted}\n")
    return load({})


def from_environment(name: str, value: str) -> Settings:
    return load({f"REDEEM_{name.upper()}": value})


def from_options(name: str, value: str) -> Settings:
    return load({}, {name: value})


EACH_SOURCE = pytest.mark.parametrize("read", [from_file, from_environment, from_options])


def test_without_any_source_all_are_defaults() -> None:
    assert load({"PATH": "/bin"}) == Settings()


def test_a_variable_wins_over_the_file_and_an_option_over_both() -> None:
    Path("redeem.toml").write_text('port = 1\nworkers = 1\nhost = "file"\n')
    environ = {"REDEEM_PORT": "2", "REDEEM_WORKERS": "2"}
    found = load(environ, {"port": 3, "workers": None})  # None: the option was not given
    assert (found.host, found.workers, found.port) == ("file", 2, 3)


@EACH_SOURCE
def test_each_source_sets(read: Callable[[str, str], Settings]) -> None:
    assert read("workers", "7") == Settings(workers=7)
    assert read("host", "::1") == Settings(host="::1")
    assert read("demo", "yes") == Settings(demo=True)
    assert read("data_dir", "/data") == Settings(data_dir=Path("/data"))


@EACH_SOURCE
def test_an_unknown_name_is_refused(read: Callable[[str, str], Settings]) -> None:
    with pytest.raises(SettingsError, match=r"(?i)unknown setting .*wrokers"):
        read("wrokers", "7")


@EACH_SOURCE
@pytest.mark.parametrize(
    ("name", "value"), [("port", "http"), ("port", "80.5"), ("port", ""), ("demo", "maybe")]
)
def test_a_value_of_the_wrong_type_is_refused(
    read: Callable[[str, str], Settings], name: str, value: str
) -> None:
    with pytest.raises(SettingsError, match=f"REDEEM_{name.upper()} is not a valid"):
        read(name, value)


@pytest.mark.parametrize("value", ["80.0", "true", "[80]"])
def test_a_number_of_another_toml_type_is_refused(value: str) -> None:
    Path("redeem.toml").write_text(f"port = {value}\n")
    with pytest.raises(SettingsError, match="REDEEM_PORT is not a valid int"):
        load({})


@EACH_SOURCE
def test_a_value_below_its_least_is_refused(read: Callable[[str, str], Settings]) -> None:
    assert read("body_bytes_max", "256").body_bytes_max == 256
    with pytest.raises(SettingsError, match="REDEEM_BODY_BYTES_MAX must be at least 256"):
        read("body_bytes_max", "255")


@EACH_SOURCE
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("hold_ttl_s", "3601", "REDEEM_HOLD_TTL_MAX_S, which is 3600"),
        ("stream_kept_min", "500001", "REDEEM_STREAM_RETAINED_MAX, which is 500000"),
        ("redis_memory_percent_max", "101", "100"),
        ("gather_ms", "101", "100"),
    ],
)
def test_a_value_above_its_most_is_refused(
    read: Callable[[str, str], Settings], name: str, value: str, says: str
) -> None:
    assert getattr(read(name, str(int(value) - 1)), name) == int(value) - 1
    with pytest.raises(SettingsError, match=f"REDEEM_{name.upper()} must be at most {says}$"):
        read(name, value)


def test_a_maximum_below_the_setting_that_it_limits_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"REDEEM_HOLD_TTL_S must be at most .* 300"):
        load({"REDEEM_HOLD_TTL_MAX_S": "300"})
    found = load({"REDEEM_HOLD_TTL_MAX_S": "300", "REDEEM_HOLD_TTL_S": "300"})
    assert (found.hold_ttl_s, found.hold_ttl_max_s) == (300, 300)


def test_the_file_that_is_named_is_read_in_place_of_the_usual_one(place: Path) -> None:
    Path("redeem.toml").write_text("port = 1\n")
    named = place / "other.toml"
    named.write_text("workers = 2\n")
    assert load({"REDEEM_CONFIG": str(named)}) == Settings(workers=2)


def test_a_file_that_is_named_and_missing_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"cannot read settings from nowhere\.toml"):
        load({"REDEEM_CONFIG": "nowhere.toml"})


@pytest.mark.parametrize("content", [b"port 1\n", b"\xff"])
def test_a_file_that_is_no_toml_is_refused(content: bytes) -> None:
    Path("redeem.toml").write_bytes(content)
    with pytest.raises(SettingsError, match="cannot read settings"):
        load({})


def test_what_only_the_test_suite_reads_is_no_unknown_setting() -> None:
    assert load({"REDEEM_TEST_REDIS_SERVER": "/usr/bin/redis-server"}) == Settings()


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(
            port=0,
            data_dir=Path("/da ta"),
            redis_url="redis://:secret@cache/0",
            demo=True,
            mint_keys="k1:00",
            mint_keys_file=Path("keys"),
        ),
    ],
)
def test_another_process_gets_the_same_settings(settings: Settings) -> None:
    assert load({"PATH": "/bin"} | settings.to_environ()) == settings


def test_an_environment_without_settings_keeps_the_rest() -> None:
    environ = {"PATH": "/bin", "REDEEM_CONFIG": "redeem.toml", "REDEEM_PORT": "1"}
    assert without_settings(environ) == {"PATH": "/bin"}


def test_secrets_are_not_shown_where_settings_are_printed() -> None:
    settings = Settings(
        host="shown",
        redis_url="redis://:hidden@cache",
        database_url="postgresql://u:hidden@db",
        mint_keys="hidden",
    )
    shown = repr(settings)
    assert "shown" in shown
    assert "hidden" not in shown


@pytest.mark.parametrize("name", ["REDEEM_PORT", "REDEEM_METRICS_PORT"])
def test_a_port_that_there_is_not_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} must be at most 65535"):
        load({name: "65536"})


def test_a_log_level_that_there_is_not_is_refused() -> None:
    with pytest.raises(SettingsError, match="REDEEM_LOG_LEVEL must be one of debug, info"):
        load({"REDEEM_LOG_LEVEL": "bogus"})


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        ({"REDEEM_TRUSTED_PROXIES": "10.0.0.0/8, 10.0.0.1/8"}, "REDEEM_TRUSTED_PROXIES"),
        ({"REDEEM_TRUSTED_PROXIES": "localhost"}, "REDEEM_TRUSTED_PROXIES"),
        ({"REDEEM_CLIENT_ADDRESS_HEADER": "forwarded"}, "needs REDEEM_TRUSTED_PROXIES"),
        ({"REDEEM_PROXY_PROTOCOL": "true"}, "needs REDEEM_TRUSTED_PROXIES"),
        ({"REDEEM_TRUSTED_PROXIES": "::1", "REDEEM_CLIENT_ADDRESS_HEADER": "a b"}, "not the name"),
    ],
)
def test_nobody_is_believed_who_is_not_named(environ: dict[str, str], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        load(environ)
