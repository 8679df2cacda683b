"""Sweeps on a cluster: machines die, processes are killed, and every run is done once."""

import builtins
import os
import signal
import socket
import threading
import time
from contextlib import ExitStack, closing

import pytest

from gradthrough._errors import ConfigError
from gradthrough.bench import records
from gradthrough.bench.cells import cells
from gradthrough.bench.experiment import Experiment, Part
from gradthrough.bench.sweep.executors import slurm
from gradthrough.bench.sweep.executors.base import AbstractExecutor, LostWorkerError
from gradthrough.bench.sweep.executors.ray import RayExecutor
from gradthrough.bench.sweep.executors.slurm import SlurmExecutor
from gradthrough.bench.sweep.job import Job, Outcome
from gradthrough.bench.sweep.sweep import Watcher, sweep
from gradthrough.bench.train import run

pytestmark = pytest.mark.slow
PATIENCE = 60.0  # seconds; nothing is timed, a test that hangs is ended


def experiment(seeds):
    return Experiment(
        name="far",
        title="",
        paper="",
        run={
            "task": "polynomial",
            "task_options": {"length": 4, "steps_per_epoch": 60},
            "estimator": "reinmax",
            "epochs": 20,
            "batch_size": 4,
        },
        axes={},
        budgets={"smoke": (Part(seeds=seeds),)},
    )


def swept(seeds, executor, out, **options):
    return sweep(
        experiment(seeds), "smoke", executor=executor, out=out, accelerator="cpu", **options
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Where the runs are that nobody disturbs."""
    return tmp_path_factory.mktemp("alone")


def assert_done_once(seeds, out, alone):
    """All numbers are there, each once, and they are those of runs that nobody disturbed."""
    (cell,) = cells(experiment(seeds), "smoke")
    files = {path.stem: path for path in (out / "far").glob("*.jsonl")}
    assert sorted(files) == sorted(config.key for config in cell.configs)
    for config in cell.configs:
        lines = records.read(files[config.key])
        assert [r.status for r in lines if r.kind == "end"] == ["done"]
        whole = run(config, out=alone, progress=False, accelerator="cpu").records
        assert numbers(lines) == numbers(whole)


def numbers(lines):
    return [(r.step, r.split, r.metric, r.value) for r in lines if r.kind == "metric"]


def starts(out):
    """How often each run was started."""
    files = (out / "far").glob("*.jsonl")
    return sorted(sum(r.kind == "start" for r in records.read(path)) for path in files)


def job_in(folder, title="a job"):
    (cell,) = cells(experiment("0"), "smoke")
    return Job(cell.config, (0,), "far", folder, 1, "cpu", title)


# What workers do is made in functions, so that it goes to them by value: they cannot import a test.
def refuser():
    def refuse(job):
        raise ConfigError(f"no {job.title}")

    return refuse


def teller():
    def tell(job):
        names = ("OMP_NUM_THREADS", "GRADTHROUGH_DATA")
        return Outcome({}, {name: os.environ[name] for name in names} | {"out": str(job.out)})

    return tell


def killer():
    def kill(job):
        os.kill(os.getpid(), signal.SIGKILL)

    return kill


def beater():
    def beat(job):
        while True:
            (job.out / "beat").write_text(str(time.monotonic()))
            time.sleep(0.02)

    return beat


def beats(folder):
    """Whether the worker of `beater` is alive."""
    path = folder / "beat"
    before = path.read_text() if path.exists() else ""
    time.sleep(0.3)
    return path.exists() and path.read_text() != before


def until(holds):
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def check_contract(executor, folder):
    """An outcome comes back, what is raised comes back as it is, and a killed worker is known."""
    there = executor.submit(teller(), job_in(folder)).result(PATIENCE).reasons
    data = os.environ["GRADTHROUGH_DATA"]
    assert there == {"OMP_NUM_THREADS": "1", "GRADTHROUGH_DATA": data, "out": str(folder)}
    error = executor.submit(refuser(), job_in(folder)).exception(PATIENCE)
    assert type(error) is ConfigError
    assert str(error) == "no a job"
    assert type(executor.submit(killer(), job_in(folder)).exception(PATIENCE)) is LostWorkerError
    beating = executor.submit(beater(), job_in(folder))
    until(lambda: beats(folder))
    executor.close()
    assert type(beating.exception(0)) is LostWorkerError
    until(lambda: not beats(folder))


def ports():
    """Free ports for parts of Ray, for which a machine would else wait, 15 s and no longer."""
    names = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return {name: one.getsockname()[1] for name, one in zip(names, sockets, strict=True)}


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of one machine with one core, to which others can be added."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        found, was = Cluster(), builtins.print
        try:
            add(found, include_dashboard=False)
            yield found
            assert builtins.print is was
        finally:
            found.shutdown()


def add(cluster, **options):
    """Add a machine with one core."""
    try:
        cluster.add_node(num_cpus=1, object_store_memory=100 << 20, **ports(), **options)
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        pytest.skip("this machine is too busy for Ray, which waits 15 s for its parts")


class Unplugs(Watcher):
    """Takes a machine off the cluster as soon as both are at work."""

    def __init__(self, cluster, out):
        self.cluster, self.out, self.losses = cluster, out, 0

    def lost(self, job):
        self.losses += 1

    def tick(self):
        begun = (path.with_suffix(".jsonl") for path in self.out.glob("far/*.ckpt"))
        running = [path for path in begun if records.read(path)[-1].kind != "end"]
        if len(running) == 2 and self.cluster.worker_nodes:
            (node,) = self.cluster.worker_nodes
            self.cluster.remove_node(node, allow_graceful=False)


def test_a_machine_of_a_ray_cluster_dies_and_every_run_is_done_once(cluster, tmp_path, alone):
    add(cluster)
    out, watcher = tmp_path / "out", Unplugs(cluster, tmp_path / "out")
    with closing(RayExecutor(cluster.address)) as executor:
        assert executor.workers == 2
        summary = swept("0..5", executor, out, watcher=watcher)
    assert summary.count("done") == 6
    assert watcher.losses >= 1
    assert starts(out) == [1, 1, 1, 1, 1, 2]
    assert_done_once("0..5", out, alone)


def test_ray_keeps_the_contract_of_an_executor(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADTHROUGH_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match="no machine of the cluster has more than 1"):
        RayExecutor(cluster.address, threads=2)
    check_contract(RayExecutor(cluster.address), tmp_path)


def test_an_address_without_a_ray_cluster_is_refused_at_once(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    left = tmp_path / "ray" / "ray_current_cluster"  # of a cluster that is no more
    left.parent.mkdir()
    for text in ("", "127.0.0.1:1"):
        left.write_text(text)
        for address in ("auto", "127.0.0.1:1"):
            with pytest.raises(ConfigError, match="ray start --head"):
                RayExecutor(address)


class Sabotaged(AbstractExecutor):
    """Kills one of the processes of another executor once, as soon as it has a checkpoint."""

    def __init__(self, inner, number):
        self.inner, self.number, self.lost = inner, number, 0

    @property
    def workers(self):
        return self.inner.workers

    def submit(self, work, job):
        number = self.number

        def hurt(job):
            (path,) = job.paths
            mark = path.with_suffix(".hurt")
            mark.parent.mkdir(parents=True, exist_ok=True)

            def hit():
                while not path.with_suffix(".ckpt").exists():
                    time.sleep(0.001)
                os.kill(os.getpid(), number)

            if job.seeds == (1,) and not mark.exists():
                mark.touch()
                threading.Thread(target=hit, daemon=True).start()
            return work(job)

        future = self.inner.submit(hurt, job)
        future.add_done_callback(self._count)
        return future

    def _count(self, future):
        self.lost += isinstance(future.exception(), LostWorkerError)

    def close(self):
        self.inner.close()


def test_a_process_of_submitit_is_killed_and_every_run_is_done_once(tmp_path, alone):
    pytest.importorskip("submitit")
    out, inner = tmp_path / "out", SlurmExecutor(tmp_path / "jobs", 3, local=True)
    with closing(Sabotaged(inner, signal.SIGKILL)) as executor:
        summary = swept("0..2", executor, out)
    assert summary.count("done") == 3
    assert executor.lost == 1
    assert starts(out) == [1, 1, 2]
    assert_done_once("0..2", out, alone)


def test_a_job_of_submitit_whose_time_is_up_queues_itself_and_goes_on(tmp_path, alone):
    pytest.importorskip("submitit")
    # Of so few minutes, all are over for submitit.
    out, inner = tmp_path / "out", SlurmExecutor(tmp_path / "jobs", local=True, timeout_min=5)
    with closing(Sabotaged(inner, signal.SIGUSR2)) as executor:
        swept("1", executor, out)
    assert executor.lost == 0
    assert starts(out) == [2]
    assert_done_once("1", out, alone)


# Slurm's commands as far as submitit needs them; a job is a group of processes on this machine.
COMMANDS = {
    "sbatch": """
        for script; do :; done
        grep -q -- '--partition=full' "$script" && { echo 'no such partition' >&2; exit 1; }
        cp "$script" "$JOBS/$$.sh"
        set -m  # a group of its own
        SLURM_JOB_ID=$$ bash "$JOBS/$$.sh" < /dev/null > "$JOBS/$$.log" 2>&1 &
        echo $! > "$JOBS/$$.pid"
        echo "Submitted batch job $$"
    """,
    "srun": """
        while [ "${1#-}" != "$1" ]; do
            case $1 in --output | --error) shift 2 ;; *) shift ;; esac
        done
        exec "$@"
    """,
    "sacct": """
        echo 'JobID|State|NodeList'
        for file in "$JOBS"/*.pid; do
            state=RUNNING
            kill -0 "$(cat "$file")" 2> /dev/null || state=FAILED
            echo "$(basename "$file" .pid)|$state|here"
        done
    """,
    "scancel": 'kill -KILL -- "-$(cat "$JOBS/$1.pid")"',
}


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    """Commands named as Slurm's; returns the folder of the scripts that were submitted."""
    pytest.importorskip("submitit")
    commands, jobs = tmp_path / "bin", tmp_path / "submitted"
    for folder in (commands, jobs):
        folder.mkdir()
    for name, text in COMMANDS.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("JOBS", str(jobs))
    monkeypatch.setitem(slurm._LOOK, "slurm", 0.1)
    monkeypatch.setitem(slurm._ARRIVAL, "slurm", 0.1)
    return jobs


def test_slurm_keeps_the_contract_of_an_executor(fake_slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADTHROUGH_DATA", str(tmp_path))
    executor = SlurmExecutor(tmp_path / "jobs", partition="long", timeout_min=90, mem_gb=2)
    check_contract(executor, tmp_path)
    script = next(fake_slurm.glob("*.sh")).read_text()
    for line in ("partition=long", "time=90", "mem=2GB", "cpus-per-task=1", "signal=USR2@90"):
        assert f"#SBATCH --{line}\n" in script
    assert "srun" in script


def test_a_warning_of_slurm_that_cannot_be_heeded_is_no_error_of_the_run(fake_slurm, tmp_path):
    def warned(job):
        try:
            os.kill(os.getpid(), signal.SIGUSR2)  # there is no scontrol, which would queue it again
            time.sleep(PATIENCE)
        except Exception as error:
            return Outcome({}, {"taken for a failure": str(error)})

    with closing(SlurmExecutor(tmp_path / "jobs")) as executor:
        error = executor.submit(warned, job_in(tmp_path)).exception(PATIENCE)
    assert type(error) is LostWorkerError


def test_what_slurm_refuses_at_first_is_an_error_and_later_a_lost_worker(fake_slurm, tmp_path):
    with closing(SlurmExecutor(tmp_path / "jobs", partition="full")) as executor:
        with pytest.raises(ConfigError, match="Slurm does not take"):
            executor.submit(killer(), job_in(tmp_path))
    with closing(SlurmExecutor(tmp_path / "jobs")) as executor:
        first = executor.submit(refuser(), job_in(tmp_path))
        executor._executor.update_parameters(slurm_partition="full")
        later = executor.submit(refuser(), job_in(tmp_path))
        assert type(later.exception(0)) is LostWorkerError
        assert type(first.exception(PATIENCE)) is ConfigError


def test_a_machine_without_slurm_and_unknown_parameters_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="srun"):
        SlurmExecutor(tmp_path)
    with pytest.raises(ConfigError, match="'speed'"):
        SlurmExecutor(tmp_path, local=True, speed="high")
    with pytest.raises(ConfigError, match="workers must be at least 1"):
        SlurmExecutor(tmp_path, 0)
