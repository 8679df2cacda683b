"""Sweeps on a cluster: machines die, processes are killed, and every run is done once."""

from contextlib import ExitStack, closing
from dataclasses import replace

import socket

import pytest

from gradthrough._errors import ConfigError
from gradthrough.bench import records
from gradthrough.bench.cells import cells
from gradthrough.bench.experiment import Experiment, Part
from gradthrough.bench.sweep.job import Job
from gradthrough.bench.sweep.sweep import Watcher, sweep
from gradthrough.bench.train import run

pytestmark = pytest.mark.slow
EPOCHS = 30


def experiment(seeds):
    return Experiment(
        name="far",
        title="",
        paper="",
        run={
            "task": "polynomial",
            "task_options": {"length": 4, "steps_per_epoch": 60},
            "estimator": "reinmax",
            "epochs": EPOCHS,
            "batch_size": 4,
        },
        axes={},
        budgets={"smoke": (Part(seeds=seeds),)},
    )


def assert_done_once(folder, seeds, tmp_path):
    """All numbers are there, each once, and they are those of runs that nobody disturbed."""
    (cell,) = cells(experiment(seeds), "smoke")
    files = {path.stem: path for path in (folder / "far").glob("*.jsonl")}
    assert sorted(files) == sorted(config.key for config in cell.configs)
    for config in cell.configs:
        lines = records.read(files[config.key])
        assert [r.status for r in lines if r.kind == "end"] == ["done"]
        ours = [(r.step, r.split, r.metric, r.value) for r in lines if r.kind == "metric"]
        alone = run(config, out=tmp_path / "alone", progress=False, accelerator="cpu").records
        assert ours == [(r.step, r.split, r.metric, r.value) for r in alone if r.kind == "metric"]


def starts(folder):
    """How often each run was started."""
    paths = (folder / "far").glob("*.jsonl")
    return sorted(sum(r.kind == "start" for r in records.read(path)) for path in paths)


def job_in(folder, title="", **options):
    (cell,) = cells(experiment("0"), "smoke")
    return Job(replace(cell.config, **options), (0,), "far", folder, 1, "cpu", title)


def refused(job):
    raise ConfigError(f"not {job.title}")


def ports():
    """Free ports for those whom a machine's raylet would else wait for, 15 s and no longer."""
    names = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}


@pytest.fixture
def nodes(monkeypatch):
    """A Ray cluster of two machines with one core each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    small = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster()
    try:
        cluster.add_node(include_dashboard=False, **small, **ports())
        cluster.add_node(**small, **ports())
    except Exception as error:
        cluster.shutdown()
        if "timed out during startup" not in str(error):
            raise
        pytest.skip("this machine is too busy for Ray, which does not wait for its own parts")
    yield cluster
    cluster.shutdown()


class Breaks(Watcher):
    """Takes a machine off the cluster as soon as all of them are at work."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder, self.losses = cluster, folder, 0

    def lost(self, job):
        self.losses += 1

    def tick(self):
        begun = [path for path in self.folder.glob("far/*.ckpt")]
        running = [p for p in begun if records.read(p.with_suffix(".jsonl"))[-1].kind != "end"]
        if len(running) == 2 and self.cluster.worker_nodes:
            (node,) = self.cluster.worker_nodes
            self.cluster.remove_node(node, allow_graceful=False)


def test_a_machine_of_a_ray_cluster_dies_and_every_run_is_done_once(nodes, tmp_path):
    from gradthrough.bench.sweep.executors.ray import RayExecutor

    out = tmp_path / "out"
    with closing(RayExecutor(nodes.address)) as executor:
        assert executor.workers == 2
        watcher = Breaks(nodes, out)
        summary = sweep(
            experiment("0..5"),
            "smoke",
            executor=executor,
            out=out,
            watcher=watcher,
            accelerator="cpu",
        )
        assert executor.workers == 1
    assert summary.count("done") == 6
    assert watcher.losses == 1
    assert starts(out) == [1, 1, 1, 1, 1, 2]
    assert_done_once(out, "0..5", tmp_path)
