"""A sweep on a real Ray cluster of two nodes on this machine: the records of a run without; a node killed midway."""

import os
import time

import pytest

from helpers import InputError, profiles
from helpers.experiments import glue, pretraining
from helpers.measure import records, sweep

ray = pytest.importorskip("ray", reason="ray is not installed")
FEW = {
    "threads": 1,
    "corpus.train_blocks": 64,
    "corpus.heldout_blocks": 12,
    "corpus.curve_blocks": 4,
    "teacher_training.whole.steps": 4,
    "distillation.variants": ["student"],
    "distillation.seeds": [0],
    "distillation.snapshots": [],
    "distillation.training.steps": 2,
    "glue.tasks": ["sst2", "stsb"],
    "glue.models": ["teacher", "student"],
    "glue.seeds": [0],
    "glue.recipes.sst2.train_rows": 64,
    "glue.recipes.stsb.train_rows": 64,
}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of a core each, beside the head, which has none; the tests share them, in their order."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield started, [started.add_node(num_cpus=1) for _ in range(2)]
    ray.shutdown()
    started.shutdown()


@pytest.fixture
def nodes(cluster, monkeypatch):
    monkeypatch.setenv(sweep.CLUSTER, cluster[0].address)
    return cluster


class Waiting(sweep.Experiment):
    """Units that leave the name of their node and take a while; the last builds on the first."""

    name, spreads = "waiting", True
    units = [{"number": number} for number in range(4)]

    def settings(self, unit):
        if unit["number"] == 3 and not self.record(self.units[0]):
            raise InputError("the first is not there yet")
        return {"version": 1}

    def measure(self, unit):
        with open(self.space.root / f"{unit['number']}.log", "a") as log:
            print(ray.get_runtime_context().get_node_id(), file=log)
        time.sleep(2)
        return records.Measurement({"number": float(unit["number"])}, [], [], {})

    def tries(self, number: int) -> list[str]:
        """The nodes that began a unit."""
        log = self.space.root / f"{number}.log"
        return log.read_text().split() if log.exists() else []


class Hanging(Waiting):
    """The same, but where the second is begun first, it never ends."""

    def measure(self, unit):
        made = super().measure(unit)
        while unit["number"] == 1 and len(self.tries(1)) == 1:
            time.sleep(1)
        return made


class Failing(Waiting):
    """The same, but the second cannot be measured, and of the third other machines have other settings."""

    def __init__(self, profile, space, home: int):
        super().__init__(profile, space)
        self.home = home

    def measure(self, unit):
        if unit["number"] == 1:
            raise ValueError("no such number")
        return super().measure(unit)

    def settings(self, unit):
        return {"version": 2 if unit["number"] == 2 and os.getpid() != self.home else 1}


def workspace(place, threads: int = 1) -> tuple[profiles.Profile, records.Workspace]:
    profile = profiles.load("mini", {"threads": threads})
    return profile, records.Workspace(profile, str(place))


@pytest.mark.slow
def test_glue_on_two_nodes_has_the_records_of_a_run_without(nodes, tmp_path, monkeypatch):
    profile = profiles.load("mini", FEW)
    here, there = (records.Workspace(profile, str(tmp_path / name)) for name in ("here", "there"))
    spread = [*pretraining.Pretraining(profile, there).run(), *glue.Glue(profile, there).run()]
    monkeypatch.delenv(sweep.CLUSTER)
    alone = [*pretraining.Pretraining(profile, here).run(), *glue.Glue(profile, here).run()]
    assert len(alone) == len(spread) == 6
    for one, other in zip(alone, spread, strict=True):
        assert one["unit"] == other["unit"] and one["settings"] == other["settings"]
        kept = [name for name in one["metrics"] if not name.endswith(("minutes", "_per_s"))]
        assert {name: one["metrics"][name] for name in kept} == {name: other["metrics"][name] for name in kept}
        assert one["details"].get("predictions") == other["details"].get("predictions")
        assert one["provenance"]["threads"] == other["provenance"]["threads"] == 1


@pytest.mark.slow
def test_what_fails_on_a_node_is_said_and_the_rest_is_there(nodes, tmp_path):
    experiment = Failing(*workspace(tmp_path), home=os.getpid())
    with pytest.raises(sweep.SweepError) as failed:
        experiment.run()
    said = str(failed.value)
    assert "2 failed, 2 done" in said and "waiting number1: " in said and "no such number" in said
    assert "a node disagrees on version" in said
    assert experiment.record({"number": 0}) and not experiment.record({"number": 1})


@pytest.mark.slow
def test_a_node_killed_midway_loses_nothing(nodes, tmp_path):
    (started, made), experiment, said = nodes, Hanging(*workspace(tmp_path)), []

    def kill(line: str) -> None:  # the node that is at the second unit, when another has come home
        if not said:
            until = time.monotonic() + 120  # a busy machine is slow to begin it
            while not experiment.tries(1) and time.monotonic() < until:
                time.sleep(0.1)
            (busy,) = (node for node in made if node.node_id in experiment.tries(1))
            started.remove_node(busy, allow_graceful=False)
        said.append(line)

    ended = sweep.on_cluster(experiment, experiment.units, kill)
    assert ended == dict.fromkeys(map(records.slug, experiment.units)) and len(said) == 4
    assert [one["metrics"]["number"] for one in experiment.run()] == [0, 1, 2, 3]
    assert len(set(experiment.tries(1))) == 2, "it was tried again elsewhere"
    assert [len(experiment.tries(number)) for number in (0, 2, 3)] == [1, 1, 1], "nothing else was"
    begun = [(tmp_path / f"{number}.log").stat().st_mtime for number in (0, 3)]
    assert begun[1] - begun[0] >= 2, "it waited for what it builds on"


@pytest.mark.slow
def test_a_cluster_without_room_or_without_an_answer_is_named(nodes, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no node of the cluster has what a unit asks for, .*8.*: the largest has"):
        Waiting(*workspace(tmp_path, threads=8)).run()
    ray.shutdown()
    monkeypatch.setenv(sweep.CLUSTER, "127.0.0.1:9")
    with pytest.raises(InputError, match="no Ray cluster answers at '127.0.0.1:9'"):
        Waiting(*workspace(tmp_path)).run()
    assert not list(tmp_path.rglob("*.json"))
