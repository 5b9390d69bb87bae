"""Settings: a wrong value is told with its variable and what is allowed."""

import pytest

from app.core.settings import ENVIRONMENT_PREFIX, Settings, SettingsError, load_settings

RIGHT = {
    "DATABASE_URL": "postgresql://localhost/clocktower",
    "REDIS_URL": "redis://localhost",
    "TOKEN_KEY": "t" * 32,
    "PASS_KEY": "p" * 32,
    "SEALING_KEY": "s" * 32,
    "WECHAT_APP_ID": "wx1",
    "WECHAT_APP_SECRET": "secret",
}


@pytest.fixture(autouse=True)
def _right_environment(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction] - used by pytest
    for name, value in RIGHT.items():
        monkeypatch.setenv(ENVIRONMENT_PREFIX + name, value)


def said_of(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> str:
    """Return what is said of one variable with this value."""
    monkeypatch.setenv(ENVIRONMENT_PREFIX + name, value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    return str(refused.value)


def test_a_right_environment_is_taken() -> None:
    assert load_settings().people_limit == Settings.model_fields["people_limit"].default


@pytest.mark.parametrize("value", ["0", "51", "ten", "2.5", ""])
def test_a_number_beyond_its_limits_is_told_both_of_them(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    assert said_of(monkeypatch, "PEOPLE_LIMIT", value) == (
        "CLOCKTOWER_PEOPLE_LIMIT: must be a whole number from 1 to 50"
    )


def test_every_number_has_both_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [name for name, field in Settings.model_fields.items() if field.annotation is int]
    assert len(numbers) > 20
    for name in numbers:
        said = said_of(monkeypatch, name.upper(), "-1")
        assert f"{ENVIRONMENT_PREFIX}{name.upper()}: must be a whole number from " in said
        monkeypatch.delenv(ENVIRONMENT_PREFIX + name.upper())


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LOG_LEVEL", "loud", "must be one of: debug, info, warning, error"),
        ("DATABASE_URL", "mysql://secret-password@x", "must begin with postgresql://"),
        (
            "DATABASE_URL",
            "postgresql://u:secret@one,two/clocktower",
            "names several hosts: say which is to be used, with ?target_session_attrs=primary",
        ),
        (
            "DATABASE_URL",
            "postgresql://u:secret@/clocktower?host=/one,/two&target_session_attrs=any",
            "names several hosts: say which is to be used, with ?target_session_attrs=primary",
        ),
        (
            "REDIS_URL",
            "http://:secret@x",
            (
                "must begin with redis://, rediss:// or unix:// (one server), redis+cluster:// or rediss+cluster:// "
                "(a cluster), or redis+sentinel:// or rediss+sentinel:// (a primary that Sentinels know)"
            ),
        ),
        (
            "REDIS_URL",
            "redis://:secret@one,two",
            "names several servers: begin it with redis+cluster:// or redis+sentinel://",
        ),
        (
            "REDIS_URL",
            "redis+sentinel://:secret@one:26379",
            "must name the primary as the Sentinels do: redis+sentinel://host1:26379,host2:26379/NAME",
        ),
        ("TOKEN_KEY", "short-secret", "must have at least 32 characters"),
        ("PENDING_DEADLINE_MS", "600", "must be greater than CLOCKTOWER_COMMIT_TIMEOUT_MS (8000)"),
    ],
)
def test_what_is_allowed_is_said_and_the_value_is_not(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    sentence = said_of(monkeypatch, name, value)
    assert sentence == f"{ENVIRONMENT_PREFIX}{name}: {said}"
    assert "secret" not in sentence


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "postgresql://u:p@one:5432,two:5433/clocktower?target_session_attrs=primary"),
        ("DATABASE_URL", "postgresql://u@/clocktower?host=/one,/two&port=1,2&target_session_attrs=read-write"),
        ("REDIS_URL", "rediss+cluster://u:p@one:7000,two:7001"),
        ("REDIS_URL", "redis+sentinel://one,two/clocktower"),
    ],
)
def test_several_servers_are_taken(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(ENVIRONMENT_PREFIX + name, value)
    assert getattr(load_settings(), name.lower()).get_secret_value() == value


def test_a_misspelt_variable_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said_of(monkeypatch, "DATABASE_POL_SIZE", "5") == (
        "CLOCKTOWER_DATABASE_POL_SIZE: no such setting; did you mean CLOCKTOWER_DATABASE_POOL_SIZE?"
    )
