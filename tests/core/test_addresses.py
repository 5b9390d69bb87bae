"""Addresses of several servers: each part goes where it belongs, and what cannot be meant is told."""

import pytest
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.engine import make_url

from app.core.db import sqlalchemy_url
from app.core.redis_address import Kind, Node, RedisAddress


def test_a_clusters_address_is_that_of_each_node_with_the_same_user_and_options() -> None:
    address = RedisAddress.of("rediss+cluster://u:p%2Fq@one:7000,two,[::1]:7002?ssl_ca_certs=%2Fca.pem")
    assert (address.kind, address.nodes) == (
        Kind.CLUSTER,
        (Node("one", 7000), Node("two", 6379), Node("::1", 7002)),
    )
    assert address.url_of(Node("::1", 7002)) == "rediss://u:p%2Fq@[::1]:7002/0?ssl_ca_certs=%2Fca.pem"
    assert address.where == "one:7000, two:6379, [::1]:7002"


def test_sentinels_have_a_password_of_their_own_or_none() -> None:
    address = RedisAddress.of("redis+sentinel://u:p@one,two:5/name/2?sentinel_username=s&sentinel_password=a%40b")
    assert (address.kind, address.primary_name) == (Kind.SENTINEL, "name")
    assert address.url_of(Node("three", 6379)) == "redis://u:p@three:6379/2"
    assert address.url_of_sentinel(address.nodes[0]) == "redis://s:a%40b@one:26379"
    assert RedisAddress.of("redis+sentinel://u:p@one/name").url_of_sentinel(Node("one", 1)) == "redis://one:1"
    assert address.where == "name, which one:26379, two:5 know,"


@pytest.mark.parametrize("url", ["redis://:p@one:1/3?health_check_interval=2", "rediss://one", "unix:///run/a.sock"])
def test_one_servers_address_is_left_as_it_is(url: str) -> None:
    assert RedisAddress.of(url).url_of(None) == url


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://",
        "redis+cluster://one,",
        "redis+cluster://one two",
        "redis+cluster://one:0",
        "redis+cluster://one:65536",
        "redis+cluster://::1",
        "redis+cluster://one/1",
        "redis+sentinel://one",
        "redis+sentinel://one/name/two",
        "redis+nothing://one",
        "unix+cluster:///one",
        "redis://one,two",
        "valkey://one",
    ],
)
def test_what_cannot_be_meant_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"must|names"):
        RedisAddress.of(url)


@pytest.mark.parametrize(
    ("dsn", "host", "port"),
    [
        ("postgresql://u:p@one/db", "one", None),
        ("postgresql://u:p@one,two:5433/db?target_session_attrs=primary", ["one", "two"], [5432, 5433]),
        ("postgresql://u@/db?host=/a,/b&port=1,2&target_session_attrs=primary", ["/a", "/b"], [1, 2]),
    ],
)
def test_sqlalchemy_finds_every_host_of_a_database(dsn: str, host: object, port: object) -> None:
    _, options = PGDialect_asyncpg().create_connect_args(make_url(sqlalchemy_url(dsn)))
    assert (options["host"], options.get("port"), options["database"]) == (host, port, "db")
    assert options.get("target_session_attrs") == ("primary" if port else None)
