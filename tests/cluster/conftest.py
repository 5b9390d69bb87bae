"""The workers of the gate's own tests, on servers that are several."""

from collections.abc import AsyncGenerator

import pytest

from tests.booking.gate.conftest import db, open_worker, signer
from tests.cluster.servers import Cluster, Sentinels

__all__ = ["db", "open_worker", "signer"]


@pytest.fixture(scope="module")
async def standing_cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        await cluster.start()
        yield cluster
    finally:
        cluster.kill()


@pytest.fixture
async def cluster(standing_cluster: Cluster) -> Cluster:
    """Give every test a cluster that is whole and empty, whatever the last one did to it."""
    await standing_cluster.whole()
    for node in standing_cluster.nodes:
        if (await node.facts())["role"] == "master":
            await node.ask("FLUSHALL")
    return standing_cluster


@pytest.fixture
async def sentinels(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Sentinels]:
    sentinels = Sentinels(tmp_path_factory.mktemp("sentinels"))
    try:
        await sentinels.start()
        yield sentinels
    finally:
        sentinels.kill()
