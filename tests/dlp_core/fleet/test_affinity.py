"""Which replica runs a mix: properties that hold for any replicas. In traffic: tests/benchmarks/test_affinity.py."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlp_core.fleet.affinity import IMBALANCE, Replica, rank, rendezvous

ADAPTERS = [f"a{number}" for number in range(8)]
MIXES = st.dictionaries(st.sampled_from(ADAPTERS), st.floats(0.05, 1.0), max_size=3)
REPLICAS = st.lists(
    st.builds(
        Replica,
        id=st.uuids().map(str),
        resident=st.frozensets(st.sampled_from(ADAPTERS)),
        running=st.integers(0, 20),
        capacity=st.just(16),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda replica: replica.id,
)


@given(MIXES, REPLICAS, st.randoms())
def test_every_replica_is_ranked_once_whatever_their_order(mix: dict[str, float], replicas: list[Replica], rng) -> None:  # type: ignore[no-untyped-def]
    ranked = rank(mix, replicas)
    assert Counter(ranked) == Counter(replicas)
    rng.shuffle(replicas)
    assert rank(mix, replicas) == ranked


@given(MIXES, REPLICAS)
def test_holding_more_adapters_never_lowers_the_rank(mix: dict[str, float], replicas: list[Replica]) -> None:
    before = [replica.id for replica in rank(mix, replicas)]
    for replica in replicas:
        richer = [replace(one, resident=one.resident | set(mix)) if one is replica else one for one in replicas]
        after = [one.id for one in rank(mix, richer)]
        assert after.index(replica.id) <= before.index(replica.id)


@given(MIXES, REPLICAS)
def test_being_busier_never_raises_the_rank(mix: dict[str, float], replicas: list[Replica]) -> None:
    before = [replica.id for replica in rank(mix, replicas)]
    min_running = min(replica.running for replica in replicas)
    for replica in replicas:
        if replica.running == min_running:
            continue  # this would change min_running for the others
        busier = [replace(one, running=one.running + 1) if one is replica else one for one in replicas]
        assert [one.id for one in rank(mix, busier)].index(replica.id) >= before.index(replica.id)


@given(MIXES, REPLICAS)
def test_overload_ignores_affinity(mix: dict[str, float], replicas: list[Replica]) -> None:
    ranked = rank(mix, replicas)
    min_running = min(replica.running for replica in replicas)
    late = [replica.running >= 16 or (replica.running - min_running) / 16 > IMBALANCE for replica in ranked]
    assert late == sorted(late)


@given(MIXES.filter(bool), REPLICAS)
def test_cold_mixes_agree_and_move_only_with_their_replica(mix: dict[str, float], replicas: list[Replica]) -> None:
    cold = [replace(replica, resident=frozenset(), running=3) for replica in replicas]
    first, *rest = rank(mix, cold)
    heaviest = max(mix, key=lambda name: (mix[name], name))
    assert first == max(cold, key=lambda replica: rendezvous(heaviest, replica.id))
    for gone in rest:
        assert rank(mix, [replica for replica in cold if replica != gone])[0] == first


def test_the_holder_is_chosen_unless_it_is_much_busier() -> None:
    holder, other = Replica("holder", {"sql"}, 4, 16), Replica("other", frozenset(), 0, 16)
    assert rank({"sql": 1.0}, [other, holder])[0] == holder
    assert rank({"sql": 1.0}, [other, replace(holder, running=9)])[0] == other
    assert (
        rank({"sql": 0.8, "cron": 0.2}, [Replica("light", {"cron"}, 0, 16), replace(holder, running=0)])[0].id
        == "holder"
    )


def test_without_adapters_the_least_busy_one_is_chosen() -> None:
    assert rank({}, [Replica("a", {"sql"}, 2, 16), Replica("b", frozenset(), 1, 16)])[0].id == "b"


def test_rendezvous_spreads_evenly() -> None:
    replicas = [Replica(f"r{number}", frozenset(), 0, 16) for number in range(4)]
    found = Counter(rank({f"adapter-{n}": 1.0}, replicas)[0].id for n in range(2000))
    assert max(found.values()) < 1.15 * 500


def test_a_replica_without_capacity_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one request"):
        rank({}, [Replica("a", frozenset(), 0, 0)])
