"""Every knob of the service, once: its unit, its default, its limits and the reason for them.

Each is an environment variable `CLOCKTOWER_<NAME>`. A wrong value stops the start with the variable's name
and what is allowed. Secrets have no default: the embedded mode makes its own and keeps them in its data
directory; anywhere else they must be given.
"""

import os
from difflib import get_close_matches
from functools import lru_cache
from typing import Annotated, Final
from urllib.parse import parse_qsl, urlsplit

from pydantic import AnyHttpUrl, Field, SecretStr, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.core.redis_address import RedisAddress

ENVIRONMENT_PREFIX: Final = "CLOCKTOWER_"
_SECRET_MIN_CHARACTERS: Final = 32

Secret = Annotated[SecretStr, Field(min_length=_SECRET_MIN_CHARACTERS)]


class SettingsError(Exception):
    """A setting is missing or wrong. The message names each variable and what is allowed."""


class Settings(BaseSettings):
    """The settings of one process, read from the environment and checked before anything starts."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="ignore", frozen=True)

    # --- engines -----------------------------------------------------------------------------------------
    database_url: SecretStr = Field(
        description="PostgreSQL 15 or newer: postgresql://user:password@host:port/name. With a standby that may be "
        "promoted: postgresql://user:password@host1:port,host2:port/name?target_session_attrs=primary.",
    )
    redis_url: SecretStr = Field(
        description="Redis 7 or Valkey 8, or newer: redis://…, rediss://… or unix:///path. A cluster: "
        "redis+cluster://user:password@host1:port,host2:port. A primary that Sentinels know: "
        "redis+sentinel://user:password@host1:26379,host2:26379/NAME (the Sentinels' own password: "
        "?sentinel_password=…). With TLS: rediss+….",
    )
    database_pool_size: int = Field(
        default=10,
        ge=2,
        le=200,
        description="Connections of one process for everything but the gate. Times processes, it must stay "
        "below PostgreSQL's max_connections.",
    )
    database_statement_timeout_ms: int = Field(
        default=10_000,
        ge=100,
        le=600_000,
        description="Milliseconds after which PostgreSQL ends a statement of the API.",
    )
    database_lock_timeout_ms: int = Field(
        default=5_000,
        ge=50,
        le=600_000,
        description="Milliseconds a statement of the API waits for a lock.",
    )
    redis_timeout_ms: int = Field(
        default=2_000,
        ge=50,
        le=60_000,
        description="Milliseconds to wait for one answer of Redis before it counts as gone.",
    )

    # --- secrets -----------------------------------------------------------------------------------------
    token_key: Secret = Field(description="Signs access tokens (HMAC-SHA256); at least 32 characters.")
    pass_key: Secret = Field(description="Signs passes for the gate (HMAC-SHA256); at least 32 characters.")
    sealing_key: Secret = Field(
        description="Encrypts nicknames at rest (AES-256-GCM, key derived by SHA-256); at least 32 characters. "
        "Losing it loses the nicknames.",
    )

    # --- web ---------------------------------------------------------------------------------------------
    body_limit_bytes: int = Field(
        default=65_536,
        ge=1_024,
        le=1_048_576,
        description="Bytes of a request body beyond which it is refused with 413.",
    )
    shutdown_grace_seconds: int = Field(
        default=10,
        ge=1,
        le=300,
        description="Seconds that requests in flight get when the server stops.",
    )
    rate_limit_per_minute: int = Field(
        default=600,
        ge=10,
        le=1_000_000,
        description="Requests of one account (or, without sign-in, of one address) in a minute, the gate "
        "excepted. Families and schools share an address, so the unsigned limit is ten times this.",
    )
    sign_in_limit_per_minute: int = Field(
        default=60_000,
        ge=10,
        le=10_000_000,
        description="Sign-ins from one address in a minute. A school's or a carrier's gateway is one address, and "
        "in the minutes before an opening thousands of parents sign in through it.",
    )
    invitation_limit_per_minute: int = Field(
        default=20,
        ge=1,
        le=100_000,
        description="Invitations that one account may try to accept in a minute, whether there are such or not: a "
        "family has a handful, and whoever tries many is guessing.",
    )
    log_level: str = Field(
        default="info",
        pattern="^(debug|info|warning|error)$",
        description="The least important level that is logged: debug, info, warning or error.",
    )
    log_format: str = Field(default="json", pattern="^(json|console)$", description="json or console.")

    # --- accounts ----------------------------------------------------------------------------------------
    access_token_seconds: int = Field(
        default=7_200,
        ge=60,
        le=86_400,
        description="Seconds an access token is good for: it is good until then, even if its account is blocked.",
    )
    refresh_token_days: int = Field(
        default=30,
        ge=1,
        le=365,
        description="Days a refresh token is good for, when unused.",
    )
    people_limit: int = Field(
        default=10,
        ge=1,
        le=50,
        description="People that one account may register: a family, not a school.",
    )
    guardian_limit: int = Field(default=4, ge=1, le=10, description="Guardians that one child may have.")
    invitation_hours: int = Field(
        default=72,
        ge=1,
        le=720,
        description="Hours in which a second guardian may accept an invitation.",
    )
    idempotency_hours: int = Field(
        default=24,
        ge=1,
        le=168,
        description="Hours for which an Idempotency-Key is remembered.",
    )
    refresh_grace_seconds: int = Field(
        default=10,
        ge=0,
        le=60,
        description="Seconds in which a refresh token may be sent again because the reply was lost; later it counts "
        "as stolen.",
    )
    invitation_open_limit: int = Field(
        default=5,
        ge=1,
        le=20,
        description="Invitations of one person that may be open at once: each is a way into the family.",
    )
    consent_versions: str = Field(
        default="",
        max_length=1_000,
        description="Versions of the consent text that may be agreed to, separated by commas. Empty: any, since the "
        "text belongs to the mini-program and may be newer than this service.",
    )

    # --- WeChat ------------------------------------------------------------------------------------------
    wechat_base_url: AnyHttpUrl = Field(
        default=AnyHttpUrl("https://api.weixin.qq.com"),
        description="Where WeChat's server API stands; the embedded mode sets its fake server's address.",
    )
    wechat_app_id: str = Field(min_length=1, max_length=64, description="The mini-program's AppID.")
    wechat_app_secret: SecretStr = Field(min_length=1, description="The mini-program's AppSecret.")
    wechat_connect_timeout_ms: int = Field(
        default=2_000,
        ge=50,
        le=30_000,
        description="Milliseconds to wait for a connection to WeChat.",
    )
    wechat_read_timeout_ms: int = Field(
        default=4_000,
        ge=50,
        le=60_000,
        description="Milliseconds without a byte from WeChat after which a call counts as lost.",
    )
    wechat_total_timeout_ms: int = Field(
        default=8_000,
        ge=100,
        le=60_000,
        description="Milliseconds for one question to WeChat with its retries: how long a parent waits to sign in.",
    )
    wechat_busy_retry_limit: int = Field(
        default=2,
        ge=0,
        le=5,
        description="How often a call is repeated when WeChat says that it is busy.",
    )
    wechat_connection_limit: int = Field(
        default=100,
        ge=1,
        le=1_000,
        description="Connections to WeChat that one process keeps; further calls wait for one.",
    )
    wechat_token_margin_seconds: int = Field(
        default=240,
        ge=10,
        le=290,
        description="Seconds before its end at which the access token is renewed. WeChat gives the next one "
        "only in the last 300.",
    )

    # --- booking: the gate -------------------------------------------------------------------------------
    pass_hours: int = Field(
        default=48,
        ge=1,
        le=336,
        description="Hours a pass is good for: how long a withdrawn consent, a removed child or a "
        "blocked account can still book.",
    )
    people_per_claim_limit: int = Field(
        default=5,
        ge=1,
        le=20,
        description="People in one claim: a family's children; bounds the work of one claim in the script.",
    )
    choices_per_claim_limit: int = Field(
        default=10,
        ge=1,
        le=50,
        description="Ranked pools in one claim; bounds the work of one claim in the script.",
    )
    claim_rate_per_second: int = Field(
        default=20,
        ge=1,
        le=10_000,
        description="Claims of one account to the gate of one worker in a second, before it is told 429: more than "
        "impatient fingers and their retries make. Questions what became of a claim are counted apart, up to as many.",
    )
    batch_limit: int = Field(
        default=150,
        ge=1,
        le=1_000,
        description="Claims in one script call: keeps Redis, which serves one script at a time, below 1–2 ms.",
    )
    admission_queue_limit: int = Field(
        default=20_000,
        ge=10,
        le=1_000_000,
        description="Claims of one release that may wait in one worker; more are told 503 at once.",
    )
    admission_wait_ms: int = Field(
        default=5_000,
        ge=100,
        le=60_000,
        description="Milliseconds a claim may wait for the script before it is told 503.",
    )
    commit_batch_limit: int = Field(
        default=300,
        ge=1,
        le=2_000,
        description="Winning claims in one PostgreSQL transaction.",
    )
    commit_wait_ms: int = Field(
        default=3_000,
        ge=100,
        le=60_000,
        description="Milliseconds a winner's phone waits for PostgreSQL before it hears 202 and asks again.",
    )
    commit_timeout_ms: int = Field(
        default=8_000,
        ge=200,
        le=120_000,
        description="Milliseconds after which a commit's outcome counts as unknown and is settled by insert.",
    )
    rebuild_timeout_seconds: int = Field(
        default=60,
        ge=1,
        le=600,
        description="Seconds after which a rebuild of one release is given up and tried anew: a million places take "
        "some ten.",
    )
    commit_retry_limit: int = Field(
        default=5,
        ge=0,
        le=20,
        description="How often a commit is repeated after a deadlock or serialization error, and a giving back after a "
        "deadlock.",
    )
    gate_connection_limit: int = Field(
        default=6,
        ge=2,
        le=50,
        description="PostgreSQL connections that one process keeps for the gate's commits and rebuilds.",
    )
    pending_deadline_ms: int = Field(
        default=15_000,
        ge=500,
        le=600_000,
        description="Milliseconds after which a claim that was taken but not confirmed is swept. It must exceed "
        "commit_timeout_ms; it decides how soon an orphaned place is free again, never whether it is safe.",
    )
    sweep_interval_ms: int = Field(
        default=1_000,
        ge=50,
        le=60_000,
        description="Milliseconds between two sweeps of the worker, and between two looks of every process at whether "
        "PostgreSQL has gone on to another epoch.",
    )
    availability_age_ms: int = Field(
        default=200,
        ge=0,
        le=250,
        description="Milliseconds for which a worker repeats an availability answer without asking Redis.",
    )
    cancel_deadline_minutes: int = Field(
        default=120,
        ge=0,
        le=20_160,
        description="Minutes before a session's start until which its place can be given back.",
    )

    # --- operations --------------------------------------------------------------------------------------
    listen_backlog: int = Field(
        default=16_384,
        ge=128,
        le=65_535,
        description="Connections that may wait to be accepted: thousands of phones connect in one second. Linux caps "
        "it at net.core.somaxconn.",
    )
    keep_alive_seconds: int = Field(
        default=75,
        ge=1,
        le=3_600,
        description="Seconds a connection stays open for a phone that waits for the opening and keeps its own; "
        "and those that a request may take to arrive, and an answer to be read.",
    )
    connection_limit: int = Field(
        default=20_000,
        ge=10,
        le=1_000_000,
        description=(
            "Connections that one web worker keeps at a time; whoever opens one more is told 503. "
            "Never more than the files that it may have open (`ulimit -n`), less 256."
        ),
    )
    housekeeping_interval_seconds: int = Field(
        default=300,
        ge=10,
        le=86_400,
        description="Seconds between two rounds of the worker in which expired records are deleted, and releases that "
        "are over leave Redis.",
    )

    metrics_address: str = Field(
        default="",
        max_length=260,
        description="Where Prometheus may ask for numbers, as host:port (127.0.0.1:9464); port 0 takes a free one. "
        "Empty: nowhere. Whoever reaches it may read them, so it must not be reachable for the public.",
    )

    # --- booking: releases -------------------------------------------------------------------------------
    catalogue_age_ms: int = Field(
        default=1_000,
        ge=0,
        le=5_000,
        description="Milliseconds for which a worker repeats a catalogue answer without asking PostgreSQL: how long a "
        "change made through another worker may stay unseen.",
    )
    catalogue_answers_limit: int = Field(
        default=500,
        ge=1,
        le=100_000,
        description="Catalogue answers that a worker keeps; a full one (200 sessions) has some 80 KiB.",
    )

    @field_validator("database_url")
    @classmethod
    def _database_is_postgresql(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("postgresql://", "postgres://")):
            message = "must begin with postgresql://"
            raise ValueError(message)
        address = urlsplit(value.get_secret_value())
        options = dict(parse_qsl(address.query))
        hosts = address.netloc.rpartition("@")[2] + options.get("host", "")
        if "," in hosts and options.get("target_session_attrs") not in {"primary", "read-write"}:
            # Else whichever answers first would be taken, a standby too.
            message = "names several hosts: say which is to be used, with ?target_session_attrs=primary"
            raise ValueError(message)
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_is_redis(cls, value: SecretStr) -> SecretStr:
        RedisAddress.of(value.get_secret_value())
        return value

    @field_validator("metrics_address")
    @classmethod
    def _metrics_have_an_address(cls, value: str) -> str:
        if value:
            host_and_port(value)
        return value

    @field_validator("pending_deadline_ms")
    @classmethod
    def _deadline_outlasts_a_commit(cls, value: int, info: object) -> int:
        timeout_ms = getattr(info, "data", {}).get("commit_timeout_ms")
        if timeout_ms is not None and value <= timeout_ms:
            message = f"must be greater than {ENVIRONMENT_PREFIX}COMMIT_TIMEOUT_MS ({timeout_ms})"
            raise ValueError(message)
        return value


_PORT_MAX: Final = 65_535


def host_and_port(address: str) -> tuple[str, int]:
    """Return the parts of host:port, where an IPv6 host stands in brackets. Raises `ValueError`, which says so."""
    host, _, port = address.rpartition(":")
    is_ipv6 = host.startswith("[") and host.endswith("]")
    if not (host and port.isascii() and port.isdecimal() and int(port) <= _PORT_MAX) or (":" in host and not is_ipv6):
        message = "must be host:port, as 127.0.0.1:9464 or [::1]:9464"
        raise ValueError(message)
    return host.strip("[]"), int(port)


def _limits(name: str) -> str:
    """Return the limits of a whole number in words."""
    limits: dict[str, int] = {}
    for mark in Settings.model_fields[name].metadata:
        limits |= {bound: getattr(mark, bound) for bound in ("ge", "le") if hasattr(mark, bound)}
    return f"must be a whole number from {limits['ge']} to {limits['le']}"


def _in_words(item: ErrorDetails) -> str:
    match item["type"]:
        case "missing":
            return "must be given"
        case "greater_than_equal" | "less_than_equal" | "int_parsing" | "int_from_float" | "int_type":
            return _limits(str(item["loc"][0]))
        case "string_pattern_mismatch":
            words = str(item.get("ctx", {}).get("pattern")).strip("^$()").split("|")
            return f"must be one of: {', '.join(words)}"
        case "value_error":
            return item["msg"].removeprefix("Value error, ")
        case "too_short" | "string_too_short":
            return f"must have at least {item.get('ctx', {}).get('min_length')} characters"
        case _:
            return item["msg"]


def _misspelt(variable: str) -> str | None:
    """Return what is wrong with the name of a variable that looks like a setting and is none."""
    name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
    if not variable.startswith(ENVIRONMENT_PREFIX) or name in Settings.model_fields:
        return None
    near = get_close_matches(name, Settings.model_fields, n=1)
    hint = f"; did you mean {ENVIRONMENT_PREFIX}{near[0].upper()}?" if near else ": see clocktower settings"
    return f"{variable}: no such setting{hint}"


def load_settings() -> Settings:
    """Read the environment.

    Raises `SettingsError` with one line for each variable that is missing, wrong or unknown; values are not repeated,
    since they may be secrets.
    """
    unknown = [line for name in sorted(os.environ) if (line := _misspelt(name))]
    if unknown:
        raise SettingsError("\n".join(unknown))
    try:
        return Settings()  # pyright: ignore[reportCallIssue] - the fields come from the environment
    except ValidationError as error:
        lines = [
            f"{ENVIRONMENT_PREFIX}{'_'.join(str(part) for part in item['loc']).upper()}: {_in_words(item)}"
            for item in error.errors(include_input=False, include_url=False)
        ]
        raise SettingsError("\n".join(lines)) from None


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the settings of this process, read once."""
    return load_settings()
