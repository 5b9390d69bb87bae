"""What an operator asks of a cluster: the doctor looks at every primary, and releases on each are reconciled."""

import asyncio
from collections.abc import Mapping

import asyncpg
import pytest

from app.booking.gate.keys import EpochKeys
from app.booking.gate.passes import PassSigner
from app.booking.gate.topology import Part, SlotMap, Topology
from app.cli.doctor import _look_at_the_cluster
from app.core.ids import new_id
from app.core.redis_address import Node
from app.core.settings import Settings
from tests.booking.gate.builders import Phone, epoch_of
from tests.booking.gate.conftest import OpenWorker
from tests.cluster.opening import PATIENCE
from tests.cluster.servers import PRIMARIES, Cluster, spread
from tests.conftest import make_settings
from tests.serving.servers import clocktower, environment_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(database_url: str, cluster: Cluster) -> Settings:
    return make_settings(database_url, cluster.url, "http://127.0.0.1:9").model_copy(update=dict(PATIENCE))


@pytest.fixture
def surroundings(settings: Settings) -> Mapping[str, str]:
    # What stays for several sweeps is a difference.
    return environment_of(settings) | {"CLOCKTOWER_SWEEP_INTERVAL_MS": "100"}


async def _said(surroundings: Mapping[str, str], *arguments: str) -> tuple[int, str]:
    done = await asyncio.to_thread(clocktower, *arguments, env=surroundings)
    assert "Traceback" not in done.stderr
    return done.returncode, " ".join((done.stdout + done.stderr).split())


async def test_the_doctor_looks_at_every_primary(cluster: Cluster, surroundings: Mapping[str, str]) -> None:
    _, said = await _said(surroundings, "doctor")
    primaries = [node for node in cluster.nodes if (await node.facts())["role"] == "master"]
    assert len(primaries) == PRIMARIES
    for node in primaries:
        assert f" at 127.0.0.1:{node.port} answers." in said
    assert "slots of the cluster" not in said
    assert "refuses every release" not in said
    await primaries[0].ask("CONFIG", "SET", "cluster-require-full-coverage", "yes")
    try:
        _, said = await _said(surroundings, "doctor")
    finally:
        await primaries[0].ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    assert f"note The primary at 127.0.0.1:{primaries[0].port} refuses every release while another one is away" in said
    assert said.count("refuses every release") == 1


async def test_the_doctor_names_a_primary_that_is_gone(cluster: Cluster, surroundings: Mapping[str, str]) -> None:
    lost = cluster.nodes[0]
    for node in await cluster.shard_of(lost):
        node.kill()
    status, said = await _said(surroundings, "doctor")
    assert status == 1
    assert "WRONG The primary at 127.0.0.1:" in said
    assert "its releases are refused. → start it, or promote its replica" in said


async def test_releases_on_every_node_are_compared_and_mended(
    db: "asyncpg.Connection[asyncpg.Record]",
    cluster: Cluster,
    surroundings: Mapping[str, str],
    open_worker: OpenWorker,
    signer: PassSigner,
) -> None:
    worker = await open_worker()
    releases = {node: releases[0] for node, releases in (await spread(db, cluster, 1, capacity=2)).items()}
    ids = {made: new_id() for made in releases.values()}
    for made, claim_id in ids.items():
        assert (await worker.ask(Phone.with_pass(signer, made).claim(claim_id=claim_id))).word == "confirmed"
    status, said = await _said(surroundings, "reconcile", "--dry-run")
    assert (status, said.count("the gate and PostgreSQL agree.")) == (0, PRIMARIES), said
    node, broken = next(iter(releases.items()))
    await node.ask("HDEL", EpochKeys(broken.release_id, 1).claims, ids[broken].bytes)
    status, said = await _said(surroundings, "reconcile", "--dry-run")
    assert (status, f"To mend: clocktower reconcile {broken.release_id}" in said) == (1, True), said
    status, said = await _said(surroundings, "reconcile", str(broken.release_id))
    assert (status, "made anew from PostgreSQL; they agree now" in said) == (0, True), said
    assert {made: await epoch_of(db, made) for made in ids} == {made: 2 if made is broken else 1 for made in ids}


async def test_the_doctor_counts_slots_that_nobody_holds(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(_topology: Topology) -> SlotMap:
        return SlotMap([Part(0, 9_999, Node("127.0.0.1", 9)), Part(10_001, 16_383, Node("127.0.0.1", 9))])

    monkeypatch.setattr(Topology, "look", look)
    homeless, silent = await _look_at_the_cluster(settings)
    assert homeless.sentence.startswith("1 of 16,384 slots of the cluster have no primary")
    assert silent.sentence.startswith("The primary at 127.0.0.1:9 does not answer")
    assert not homeless.is_well
    assert not silent.is_well
