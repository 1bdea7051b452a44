"""Sweeps elsewhere: as Slurm jobs, on a Dask cluster, as shell lines and scripts; killed, requeued, given again."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main
from fadeviz_cli.sweep import record_arguments

import fake_slurm
from fadeviz import FadevizError, open_run
from fadeviz.experiment import RunConfig, train, validation
from fadeviz.models import build_network
from fadeviz.storage.check import check_run
from fadeviz.sweep import MANIFEST, Event, plan_sweep, run_sweep, unfinished_trials
from fadeviz.sweep import slurm as slurm_module
from fadeviz.sweep.slurm import OPTIONS, SlurmArray, batch_script, parse_options
from fadeviz.sweep.trial import ProgressReader, Task, TrialEnd, follow_trials

TINY = RunConfig(
    size=32, width=1 / 16, steps=2, snapshots="2", batch_size=1, kinds="feature", observe=1, evaluate_every=2,
    checkpoint_every=1,
)  # fmt: skip
LONG = dataclasses.replace(TINY, steps=80, snapshots="80", evaluate_every=80, checkpoint_every=10)
"""Long enough to be caught in the middle."""
CANNOT = "nearest"
"""Whose runs :func:`blocked` lets fail."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals, and Slurm, are those of Unix")


def blocked(out):
    """The sweep's folder, with something else where the run of ``CANNOT`` is to be."""
    out.mkdir(parents=True)
    (out / f"{CANNOT}-seed0").write_text("mine")
    return out


def options(config):
    """The training options of a command that has these settings."""
    return record_arguments(config, Path("x"))[8:]


def entries(out):
    return {entry["name"]: entry for entry in json.loads((out / MANIFEST).read_text())["runs"]}


def statuses(out):
    return [entry["status"] for entry in entries(out).values()]


def what_was_recorded(folder):
    """Everything of a run that does not tell the time."""
    files = sorted([*folder.glob("snapshots/*"), folder / "metrics.jsonl", folder / "observation.safetensors"])
    return {file.name: file.read_bytes() for file in files}


def until(done, seconds=90):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What a run of its own records, made once."""
    made = {}

    def of(plan, trial):
        config = plan.config(trial)
        if config not in made:
            made[config] = what_was_recorded(train(config, tmp_path_factory.mktemp("alone") / "run").path)
        return made[config]

    return of


class TestKilled:
    """The whole process group is killed, as when a machine fails; the same command goes on."""

    def killed_and_given_again(self, out, operators, seeds, after, alone):
        arguments = ["sweep", "--out", str(out), "--upsamplers", ",".join(operators), "--seeds", f"0:{seeds}",
                     *options(TINY)]  # fmt: skip
        plan = plan_sweep(operators, range(seeds), TINY)
        folders = {trial: out / trial.name for trial in plan.trials}

        def finished():
            found = []
            for trial, folder in folders.items():
                file = folder / "run.json"
                if file.exists() and json.loads(file.read_text())["status"] == "finished":
                    found.append(trial)
            return found

        command = [sys.executable, "-m", "fadeviz_cli.main", *arguments]
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
        until(lambda: len(finished()) >= after or process.poll() is not None, 300)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kept = finished()
        assert after <= len(kept) < len(folders)
        before = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for m in kept for p in folders[m].rglob("*")}

        again = CliRunner().invoke(main, arguments)
        assert again.exit_code == 0, again.output
        assert f"{len(folders)} of {len(folders)} runs finished" in again.stdout
        assert again.stderr.count("finished before") == len(kept)
        assert before == {p: (p.stat().st_ino, p.stat().st_mtime_ns) for m in kept for p in folders[m].rglob("*")}
        assert statuses(out) == ["finished"] * len(folders)
        for folder in folders.values():
            assert open_run(folder).steps == (0, 2)
            assert not open_run(folder).broken
            assert not check_run(folder)
        sample = {kept[0], *[trial for trial in folders if trial not in kept][:1], plan.trials[-1]}
        for trial in sample:
            assert what_was_recorded(folders[trial]) == alone(plan, trial), trial
        assert not list(out.rglob(".*"))

    @pytest.mark.slow
    def test_of_four_runs(self, tmp_path, alone):
        self.killed_and_given_again(tmp_path / "out", ["nearest", "bilinear"], 2, 1, alone)

    @pytest.mark.slow
    def test_of_sixty_runs(self, tmp_path, alone):
        self.killed_and_given_again(tmp_path / "out", ["nearest", "carafe", "fade@shuffled"], 20, 30, alone)


@pytest.fixture
def real_slurm(tmp_path, monkeypatch):
    """A Slurm of this machine alone, that the test starts and stops."""
    absent = [name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name) is None]
    if absent or os.getuid() != 0:
        pytest.skip(
            f"needs root and a real Slurm ({', '.join(absent) or 'found'}): "
            "apt-get install slurm-wlm slurm-wlm-basic-plugins munge"
        )
    script = Path(__file__).with_name("real_slurm.sh")
    subprocess.run([script, "start", tmp_path / "slurm"], check=True, timeout=120)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm" / "slurm.conf"))
    yield
    subprocess.run(["scancel", "--me"], timeout=60)
    subprocess.run([script, "stop", tmp_path / "slurm"], check=True, timeout=60)


@pytest.mark.slow
class TestRealSlurm:
    """What the stand-in cannot show: that Slurm itself tells, kills and requeues jobs as we think it does."""

    config = dataclasses.replace(TINY, steps=150, snapshots="150", evaluate_every=150, checkpoint_every=9999)

    def test_finished_requeued_cancelled_and_sent_again(self, real_slurm, tmp_path, alone):
        pytest.importorskip("submitit", reason='pip install ".[slurm]"')
        out, steps = tmp_path / "out", {"nearest-seed0": [], "bilinear-seed0": [], "bicubic-seed0": []}
        plan = plan_sweep(["nearest", "bilinear", "bicubic"], [0], self.config)
        act = {"nearest-seed0": ["scontrol", "requeue"], "bilinear-seed0": ["scancel"]}

        def disturb(progress):
            if progress.status != "running":
                return
            steps[progress.name].append(progress.step)
            if progress.name in act and progress.step >= 5:
                subprocess.run([*act.pop(progress.name), entries(out)[progress.name]["job"]], check=True)

        def executor():
            return SlurmArray({"time": "10", "mem": "400"}, pause=0.5, patience=5)

        outcomes = run_sweep(plan, out, executor=executor(), on_progress=disturb)
        assert not act
        assert [outcome.status for outcome in outcomes] == ["finished", "failed", "finished"], outcomes
        assert "exited without reporting a result: cancelled" in outcomes[1].message
        # SIGTERM came first, and what was done then is kept, though no checkpoint was due.
        cancelled = open_run(out / "bilinear-seed0")
        assert cancelled.info.status == "interrupted"
        assert 5 <= cancelled.info.last_step < self.config.steps
        assert f"continues at step {cancelled.info.last_step + 1}" in cancelled.info.message
        # The one that was requeued went on where it was stopped: its steps never went back.
        assert steps["nearest-seed0"] == sorted(steps["nearest-seed0"])
        assert "interrupted" not in statuses(out)

        outcomes = run_sweep(plan, out, executor=executor(), on_progress=disturb)
        assert [outcome.status for outcome in outcomes] == ["finished"] * 3
        assert steps["bilinear-seed0"] == sorted(steps["bilinear-seed0"])
        for trial in plan.trials:
            assert what_was_recorded(out / trial.name) == alone(plan, trial)
            assert not check_run(out / trial.name)

    def test_a_script_that_is_cancelled_saves_and_goes_on_when_sent_again(self, real_slurm, tmp_path, alone):
        out, plan = tmp_path / "out", plan_sweep(["nearest"], [0], self.config)
        arguments = ["sweep", "--out", str(out), "--upsamplers", "nearest", "--seeds", "0", "--executor", "slurm",
                     "--slurm", "mem=400", "--dry-run", *options(self.config)]  # fmt: skip
        script = CliRunner().invoke(main, arguments).stdout
        command = f"{sys.executable} -m fadeviz_cli.main record"
        (tmp_path / "job.sh").write_text(script.replace("fadeviz record", command))
        send = ["sbatch", "--parsable", f"--output={tmp_path}/log.txt", str(tmp_path / "job.sh")]
        metrics = out / "nearest-seed0" / "metrics.jsonl"

        number = subprocess.run(send, check=True, capture_output=True, text=True).stdout.strip()
        until(metrics.exists)
        subprocess.run(["scancel", number], check=True)
        until(lambda: slurm_module.queued_jobs() == set())
        stopped = open_run(out / "nearest-seed0").info
        assert stopped["status"] == "interrupted"
        assert f"continues at step {stopped['last_step'] + 1}" in (tmp_path / "log.txt").read_text()
        subprocess.run(send, check=True, capture_output=True)
        until(lambda: open_run(out / "nearest-seed0").info.status == "finished", 180)
        until(lambda: slurm_module.queued_jobs() == set())
        assert what_was_recorded(out / "nearest-seed0") == alone(plan, plan.trials[0])


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    for name, value in fake_slurm.install(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    return tmp_path / "slurm"


class TestSlurm:
    def test_sent_followed_preempted_cancelled(self, slurm, tmp_path, alone):
        """Through submitit and a Slurm that is not one: everything but the scheduling is real."""
        pytest.importorskip("submitit", reason='pip install ".[slurm]"')
        out, told = blocked(tmp_path / "out"), []
        plan = plan_sweep(["fade", CANNOT, "fade@shuffled"], [0], LONG)

        def executor():
            chosen = parse_options(["partition=gpu,time=1:30:00,cpus-per-task=2", "gpus=a100:1"])
            return SlurmArray(chosen, jobs=2, pause=0.1, patience=0.5)

        def stop(progress):
            if progress.ended == 0 and progress.name == "fade-shuffled-seed0":
                raise KeyboardInterrupt

        (slurm / "hold").touch()
        with pytest.raises(KeyboardInterrupt):
            run_sweep(plan, out, executor=executor(), on_progress=stop)
        script = (slurm / "1000.sh").read_text()
        for flag in ("array=0-2%2", "partition=gpu", "time=90", "cpus-per-task=2", "gpus=a100:1", "signal=USR2@90"):
            assert f"#SBATCH --{flag}\n" in script
        assert "--cpus-per-task=2" in script[script.index("srun ") :]  # of srun, which does not inherit it

        # The jobs are still there: another place is refused, the same sends none twice.
        subprocess.run(["scancel", "1000_2"], check=True)
        with pytest.raises(FadevizError, match=r"2 runs of .* are in Slurm's queue \(job 1000\).*scancel 1000"):
            run_sweep(plan, out)
        assert [task.trial for task in unfinished_trials(plan, out)] == [plan.trials[2]]
        before = {trial.name: f"1000_{number}" for number, trial in enumerate(plan.trials)}
        (slurm / "hold").unlink()
        preempted = []

        def preempt(progress):
            told.append(progress)
            if progress.name == "fade-seed0" and progress.status == "running" and not preempted:
                preempted.append(progress.step)
                os.kill(int((slurm / "1000_0.step").read_text()), signal.SIGUSR2)

        # That the last was taken out of the queue is seen: it is sent anew, and finds its way.
        outcomes = run_sweep(plan, out, executor=executor(), on_progress=preempt)
        assert [outcome.status for outcome in outcomes] == ["finished", "failed", "finished"]
        assert f"{CANNOT}-seed0 is a file. Choose another out=..." in outcomes[1].message
        assert preempted[0] < LONG.steps
        log = (out / "slurm" / "1000_0_0_log.out").read_text()
        assert "Requeued job 1000_0" in log
        assert log.count("Starting with") == 2
        assert sorted(path.name for path in slurm.glob("*.sh")) == ["1000.sh", "1001.sh"]
        assert "--array" not in (slurm / "1001.sh").read_text()
        queued = {progress.name: progress.job for progress in told if progress.status == "queued"}
        assert queued == {**before, "fade-shuffled-seed0": "1001"}
        for trial in (plan.trials[0], plan.trials[2]):
            assert what_was_recorded(out / trial.name) == alone(plan, trial)
        assert statuses(out) == ["finished", "failed", "finished"]
        assert all("job" not in entry for entry in entries(out).values())

    @pytest.mark.slow
    def test_as_processes_of_this_machine(self, tmp_path, alone):
        """submitit's own trial of a cluster."""
        pytest.importorskip("submitit", reason='pip install ".[slurm]"')
        plan = plan_sweep(["nearest"], [0], TINY)
        array = SlurmArray(pause=0.1, patience=0.5, cluster="local")
        (outcome,) = run_sweep(plan, tmp_path, executor=array)
        assert [job._process.wait(60) for job in array._submitted] == [0]
        assert outcome.status == "finished", outcome.message
        assert what_was_recorded(outcome.folder) == alone(plan, plan.trials[0])

    def test_a_job_that_vanishes(self, slurm, tmp_path):
        pytest.importorskip("submitit", reason='pip install ".[slurm]"')
        plan = plan_sweep(["nearest"], [0, 1], TINY)
        (slurm / "hold").touch()

        def cancel(progress):
            if progress.status == "queued":
                subprocess.run(["scancel", progress.job], check=True)

        outcomes = run_sweep(plan, tmp_path / "o", executor=SlurmArray(pause=0.05, patience=0.2), on_progress=cancel)
        assert [outcome.status for outcome in outcomes] == ["failed", "failed"]
        assert "its job 1000_1 exited without reporting a result" in outcomes[1].message
        assert "1000_1_0_log.out" in outcomes[1].message

    def test_a_strangers_last_words(self, tmp_path):
        """What lies in a sweep's folder under a job's name: no code is run for it, and no path is followed."""
        from fadeviz.sweep.manifest import Manifest

        (trial,) = plan_sweep(["nearest"], [0], TINY).trials
        task, array = Task(trial, TINY, tmp_path / trial.name, "7_0"), SlurmArray(pause=0, patience=60)
        logs = tmp_path / "slurm"
        logs.mkdir()
        assert array._ended([task]) == {}
        evil = f"cos\nsystem\n(S'touch {tmp_path}/run'\ntR."
        (logs / "7_0_0_result.pkl").write_text(evil)
        assert "its job failed before the training" in array._ended([task])[trial].message
        for word in (
            "{",
            "[]",
            "[" * 10_000,
            '{"status": "finished", "message": "", "result": 3, "traceback": ""}',
            evil,
        ):
            (logs / "7_0_end.json").write_text(word)
            end = array._ended([task])[trial]
            assert end.status == "failed"
            assert "the report of job 7_0 is damaged" in end.message
        assert not (tmp_path / "run").exists()
        manifest = Manifest(tmp_path / MANIFEST, TINY)
        for job, kept in (("1000_3", "1000_3"), ("../../etc/7", "")):
            manifest.runs[trial.name] = {"status": "queued", "job": job}
            assert manifest.job(trial) == kept

    def test_a_queue_that_does_not_answer_gives_up_no_job(self, slurm, tmp_path):
        tasks = [Task(trial, TINY, tmp_path / trial.name, "7_0") for trial in plan_sweep(["nearest"], [0], TINY).trials]
        array = SlurmArray(pause=0, patience=0)
        (slurm / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
        assert array._ended(tasks) == {}
        (slurm / "bin" / "squeue").write_text("#!/bin/sh\necho 7_0\n")
        assert array._ended(tasks) == {}

    def test_refused(self, slurm, tmp_path):
        pytest.importorskip("submitit", reason='pip install ".[slurm]"')
        (slurm / "bin" / "sbatch").write_text("#!/bin/sh\necho 'error: invalid partition: gpuu' >&2\nexit 1\n")
        plan = plan_sweep(["nearest"], [0, 1], TINY)
        with pytest.raises(FadevizError, match="sbatch refused the jobs: .*invalid partition: gpuu") as caught:
            run_sweep(plan, tmp_path / "out", executor=SlurmArray({"partition": "gpuu"}))
        assert len(str(caught.value).splitlines()) == 1
        assert statuses(tmp_path / "out") == ["planned", "planned"]

    def test_no_slurm_here(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", "")
        with pytest.raises(FadevizError, match="there is no Slurm here .* --dry-run"):
            run_sweep(plan_sweep(["nearest"], [0], TINY), tmp_path, executor=SlurmArray())

    def test_without_submitit(self, slurm, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "submitit", None)
        with pytest.raises(
            FadevizError,
            match=r'--executor slurm --dry-run \.\.\. writes a script instead\. .*pip install "\.\[slurm\]"',
        ):
            run_sweep(plan_sweep(["nearest"], [0], TINY), tmp_path / "out", executor=SlurmArray())

    def test_a_job_that_gets_nowhere(self, tmp_path, monkeypatch):
        """Stopped again and again before a checkpoint: it says so, instead of being requeued for ever."""
        handed_on = []
        monkeypatch.setattr(slurm_module, "train_trial", lambda config, folder, report: stopped(report))
        before = signal.signal(signal.SIGUSR2, lambda *what: handed_on.append(what))

        def stopped(report):
            os.kill(os.getpid(), signal.SIGUSR2)
            with pytest.raises(KeyboardInterrupt):
                report(None)
            return TrialEnd("interrupted", "", {}, "")

        try:
            job = slurm_module._Job(TINY, tmp_path)
            ends = []
            for _ in range(5):
                signal.signal(signal.SIGUSR2, lambda *what: handed_on.append(what))
                ends.append(job._train())
        finally:
            signal.signal(signal.SIGUSR2, before)
        assert len(handed_on) == 4
        assert ends[-1].status == "failed"
        assert "stopped 5 times before it reached a new checkpoint" in ends[-1].message

    @pytest.mark.parametrize(
        ("texts", "read"),
        [
            (["partition=gpu,gpus-per-node=1"], {"partition": "gpu", "gpus_per_node": "1"}),
            (["nodelist=a,b,mem=16GB"], {"nodelist": "a,b", "mem": "16GB"}),
            (["exclude=a,b"], {"exclude": "a,b"}),
            (["exclusive,mem=1GB,exclude=a"], {"exclusive": "", "mem": "1GB", "exclude": "a"}),
            (["gres=gpu:a100:1", "exclusive"], {"gres": "gpu:a100:1", "exclusive": ""}),
            (["time=1-12, qos = long"], {"time": "1-12", "qos": "long"}),
            ([], {}),
        ],
    )
    def test_options(self, texts, read):
        assert parse_options(texts) == read

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("partion=gpu", "no Slurm option 'partion'. Nearest: 'partition'"),
            ("partition", "the Slurm option partition needs a value"),
            ("time=soon", "the Slurm option time is 'soon'; write minutes"),
            ("time=0", "it must be at least a minute"),
            ("time=1:2:3:4", "the Slurm option time is"),
            ("", "no Slurm option"),
            ("mem=1\n#SBATCH --x", "it must be a single line of text"),
        ],
    )
    def test_bad_options(self, text, message):
        with pytest.raises(FadevizError, match=message):
            parse_options([text])

    @pytest.mark.parametrize(
        ("text", "minutes"),
        [
            ("120", 120),
            ("1:30", 2),
            ("2:00:00", 120),
            ("0:0:1", 1),
            ("1-12", 2160),
            ("1-0:30", 1470),
            ("2-0:0:1", 2881),
        ],
    )
    def test_time(self, text, minutes):
        assert slurm_module._minutes(text) == minutes

    def test_submitit_takes_every_option(self, slurm, tmp_path):
        submitit = pytest.importorskip("submitit", reason='pip install ".[slurm]"')
        array = SlurmArray({name: "1" for name in OPTIONS if name != "exclusive"} | {"exclusive": ""})
        executor = submitit.AutoExecutor(tmp_path, cluster="slurm")
        executor.update_parameters(**array._parameters())
        text = executor._executor._make_submission_file_text("x", "x")
        for name in OPTIONS:
            assert f"#SBATCH --{name.replace('_', '-')}" in text

    def test_a_large_sweep_is_several_arrays(self, slurm, tmp_path, monkeypatch):
        monkeypatch.setattr(slurm_module, "_ARRAY", 2)
        sent = []
        array = SlurmArray(pause=0, patience=0)
        monkeypatch.setattr(
            array, "_submit", lambda tasks: sent.append(len(tasks)) or [t._replace(job="1") for t in tasks]
        )
        monkeypatch.setattr(slurm_module, "follow_trials", lambda tasks, ends, pause: iter(()))
        plan = plan_sweep(["nearest"], range(5), TINY)
        list(array.train([Task(trial, TINY, tmp_path / trial.name) for trial in plan.trials]))
        assert sent == [2, 2, 1]


class TestFollowing:
    """What is seen of a run that another machine trains."""

    def test_the_latest_line_counts(self, tmp_path):
        task = Task(plan_sweep(["nearest"], [0], LONG).trials[0], LONG, tmp_path)
        reader = ProgressReader(task)
        assert reader.read() is None
        lines = [{"step": step, "loss": 1 / step, "lr": 0.1} for step in range(1, 400)]
        lines[380] |= {"miou": 0.5, "accuracy": 0.75}
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "metrics.jsonl").write_text(text + '{"step": 400, "lo')
        progress = reader.read()
        assert (progress.step, progress.steps, progress.loss) == (399, 80, 1 / 399)
        assert progress.metrics == {"miou": 0.5, "accuracy": 0.75}
        assert reader.read() is None
        (tmp_path / "metrics.jsonl").write_text(text + '{"step": 400, "loss": 2.0}\n')
        assert reader.read()[::2] == (400, 2.0)
        (tmp_path / "metrics.jsonl").unlink()
        assert reader.read() is None

    def test_finished_but_nowhere_to_be_seen(self, tmp_path, monkeypatch):
        monkeypatch.setattr("fadeviz.sweep.trial.SLOW_DISK", 0.05)
        task = Task(plan_sweep(["nearest"], [0], LONG).trials[0], LONG, tmp_path / "elsewhere")
        told = [
            event
            for batch in follow_trials([task], lambda tasks: {task.trial: TrialEnd("finished", "", {}, "")}, 0.01)
            for event in batch
        ]
        assert [event.status for event in told] == ["failed"]
        assert "Choose a folder that all machines see under the same path: out=..." in told[0].message


class TestDask:
    @pytest.fixture(scope="class")
    @classmethod
    def cluster(cls):
        distributed = pytest.importorskip("distributed", reason='pip install ".[dask]"')
        with distributed.LocalCluster(
            processes=True, n_workers=2, threads_per_worker=1, dashboard_address=None, protocol="tcp"
        ) as cluster:
            yield cluster

    def test_results_failures_and_a_worker_that_dies(self, cluster, tmp_path, alone):
        from fadeviz.sweep.dask import DaskCluster

        plan = plan_sweep(["fade", CANNOT, "fade@shuffled"], [0], LONG)
        blocked(tmp_path / "out")
        killed, told = [], []

        def kill(progress):
            told.append(progress)
            if progress.name == "fade-seed0" and progress.status == "running" and not killed:
                killed.append(progress.step)
                (key,) = [key for key in cluster.scheduler.tasks if "fade-seed0-" in key]
                address = cluster.scheduler.tasks[key].processing_on.address
                (nanny,) = [nanny for nanny in cluster.workers.values() if nanny.worker_address == address]
                os.kill(nanny.pid, signal.SIGKILL)

        executor = DaskCluster(cluster.scheduler_address, pause=0.1)
        outcomes = run_sweep(plan, tmp_path / "out", executor=executor, on_progress=kill)
        assert [outcome.status for outcome in outcomes] == ["finished", "failed", "finished"], outcomes
        assert f"{CANNOT}-seed0 is a file. Choose another out=..." in outcomes[1].message
        assert killed
        assert killed[0] < LONG.steps
        assert statuses(tmp_path / "out") == ["finished", "failed", "finished"]
        for trial in (plan.trials[0], plan.trials[2]):
            assert what_was_recorded(tmp_path / "out" / trial.name) == alone(plan, trial)

    def test_ctrl_c_takes_the_runs_back(self, cluster, tmp_path):
        from fadeviz.sweep.dask import DaskCluster

        long = dataclasses.replace(LONG, steps=99999, snapshots="99999", evaluate_every=99999)
        plan = plan_sweep(["nearest"], [0, 1, 2], long)

        def stop(progress):
            if progress.status == "running":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_sweep(plan, tmp_path, executor=DaskCluster(cluster.scheduler_address, pause=0.1), on_progress=stop)
        assert "interrupted" in statuses(tmp_path)

        def begun():
            return [open_run(path) for path in tmp_path.glob("nearest-*") if (path / "run.json").exists()]

        for _ in range(3):  # the second worker may have been on its way when the first was heard of
            until(lambda: all(run.info.status == "interrupted" for run in begun()), 30)
            time.sleep(1)
        assert 1 <= len(begun()) <= 2  # the third was dropped
        assert all(run.info.status == "interrupted" for run in begun())

    def test_nobody_answers(self, tmp_path, monkeypatch):
        pytest.importorskip("distributed", reason='pip install ".[dask]"')
        from fadeviz.sweep.dask import DaskCluster

        plan = plan_sweep(["nearest"], [0], TINY)
        with pytest.raises(FadevizError, match="no Dask scheduler answers at nonsense://here"):
            run_sweep(plan, tmp_path, executor=DaskCluster("nonsense://here"))
        monkeypatch.setitem(sys.modules, "distributed", None)
        with pytest.raises(FadevizError, match=r'pip install "\.\[dask\]"'):
            run_sweep(plan, tmp_path, executor=DaskCluster("tcp://127.0.0.1:1"))


class TestDryRun:
    def lines(self, *args, **env):
        result = CliRunner().invoke(main, ["sweep", "--dry-run", *map(str, args)], env=env)
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()

    @pytest.mark.slow
    def test_shell_lines_do_the_same_runs(self, tmp_path, monkeypatch, alone):
        out = tmp_path / "a sweep's folder"
        plan = plan_sweep(["fade:gate=off@shuffled"], [0], TINY)
        lines = self.lines("--out", out, "--upsamplers", "fade:gate=off@shuffled", "--seeds", "0", *options(TINY))
        assert not out.exists()
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        subprocess.run(["bash", "-ec", "\n".join(lines)], check=True, capture_output=True)
        for trial in plan.trials:
            assert what_was_recorded(out / trial.name) == alone(plan, trial)
        assert self.lines("--out", out, "--upsamplers", "fade:gate=off@shuffled", "--seeds", "0", *options(TINY)) == []
        assert not (out / MANIFEST).exists()

    @pytest.mark.slow
    def test_the_script_goes_on_where_it_was_stopped(self, slurm, tmp_path, alone):
        out = tmp_path / "out"
        plan = plan_sweep(["nearest"], [0, 1], LONG)
        result = CliRunner().invoke(
            main, ["sweep", "--out", str(out), "--upsamplers", "nearest", "--seeds", "0:2", "--executor", "slurm",
                   "--slurm", "partition=gpu", "--jobs", "7", "--dry-run", *options(LONG)],
        )  # fmt: skip
        assert not out.exists()
        assert "2 of 2 runs are missing" in result.stderr
        assert "#SBATCH --array=0-1%7\n" in result.stdout
        assert "#SBATCH --partition=gpu\n" in result.stdout
        script = tmp_path / "job.sh"
        script.write_text(result.stdout)
        env = {**os.environ, "SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "77"}
        process = subprocess.Popen(["bash", script], env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        folder = out / plan.trials[1].name
        until((folder / "checkpoints" / "last.pt").exists)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 0
        assert (slurm / "77.requeue").exists()
        assert open_run(folder).info.status == "running"  # it had no time to say otherwise
        subprocess.run(["bash", script], env=env, check=True, capture_output=True)
        assert what_was_recorded(folder) == alone(plan, plan.trials[1])
        assert [path.name for path in out.iterdir()] == [folder.name]

    def test_the_script_gives_back_how_a_run_ended(self, tmp_path):
        script = tmp_path / "job.sh"
        script.write_text(batch_script(["bash -c 'exit 3'", "true", "printf '%s' 'a  b'"], {}))

        def result(number):
            env = {**os.environ, "SLURM_ARRAY_TASK_ID": number}
            return subprocess.run(["bash", script], env=env, capture_output=True, text=True)

        assert [result(number).returncode for number in "0123"] == [3, 0, 0, 2]
        assert result("2").stdout == "a  b"
        assert "there is no run 3" in result("3").stderr

    @pytest.mark.parametrize(
        "config",
        [
            RunConfig(),
            RunConfig(upsampler="fade:gate=off,init=small", labels="shuffled", seed=7, flip=True, channels_last=False),
            RunConfig(data="weizmann", data_dir="/data/a horse's $HOME", steps=7, snapshots="1:7:2", width=0.1),
            RunConfig(tf32=True, deterministic=True, compile="reduce-overhead"),
            RunConfig(precision="bf16", weights="w.pth", layers="decoder.*", kinds="all", observe=2, lr=1e-4,
                      observe_mode="batch", channel_images=3, evaluate_every=5, checkpoint_every=9, weight_decay=1e-5,
                      batch_size=3, split_seed=4, device="cpu"),
        ],
    )  # fmt: skip
    def test_a_line_says_every_setting(self, config):
        """What the shell makes of it, read by `record` itself."""
        line = shlex.join(record_arguments(config, Path("an out")))
        name, *arguments = shlex.split(line)
        context = main.commands[name].make_context(name, arguments)
        told = {f.name: context.params[f.name] for f in dataclasses.fields(config) if f.name in context.params}
        assert dataclasses.replace(RunConfig(), **told) == config
        assert context.params["requeue"]
        assert context.params["out"] == Path("an out")

    @pytest.mark.parametrize("settings", [{"momentum": 0.5}, {"lr_drops": (0.5,)}])
    def test_a_setting_without_an_option(self, settings):
        with pytest.raises(FadevizError, match="no option: train this sweep from Python"):
            record_arguments(RunConfig(**settings), Path("out"))

    def test_names_for_dask(self, tmp_path):
        assert self.lines(
            "--out", tmp_path / "o", "--upsamplers", "nearest", "--seeds", "3:5", "--executor", "dask"
        ) == [
            "nearest-seed3",
            "nearest-seed4",
        ]
        assert not (tmp_path / "o").exists()


class TestRequeue:
    def call(self, *args):
        return CliRunner().invoke(main, ["record", "--requeue", *map(str, args), *options(TINY)])

    def test_begins_goes_on_and_leaves_alone(self, tmp_path, monkeypatch, alone):
        out = tmp_path / "run"
        (out / "snapshots").mkdir(parents=True)
        (out / ".run.partial.json").write_text("{")  # killed at birth
        monkeypatch.setattr("fadeviz_cli.record.Bars.show", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        arguments = ["--out", out, "--upsampler", "nearest"]
        stopped = self.call(*arguments)
        assert stopped.exit_code == 130
        assert "interrupted at step 1 of 2; " in stopped.stderr
        monkeypatch.undo()
        assert self.call(*arguments).exit_code == 0
        plan = plan_sweep(["nearest"], [0], TINY)
        assert what_was_recorded(out) == alone(plan, plan.trials[0])
        before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
        assert self.call(*arguments).exit_code == 0
        assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before

    def test_another_run_is_not_touched(self, tmp_path):
        out = tmp_path / "run"
        train(dataclasses.replace(TINY, upsampler="nearest", lr=0.5), out)
        result = self.call("--out", out, "--upsampler", "nearest")  # lr is the default, not what the folder has
        assert result.exit_code == 1
        assert "lr was 0.5, is 0.01" in result.stderr

    def test_not_with_its_likes(self, tmp_path):
        for other in ("--resume", "--overwrite"):
            result = self.call(other, "--out", tmp_path)
            assert result.exit_code == 2
            assert "leave --resume and --overwrite out" in result.stderr


class TestCommand:
    def fails(self, code, message, *args):
        result = CliRunner().invoke(main, ["sweep", "--upsamplers", "nearest", *map(str, args)])
        assert result.exit_code == code, result.output
        assert re.search(message, result.stderr.strip().splitlines()[-1]), result.stderr

    def test_options_that_do_not_go_together(self, tmp_path):
        out = ["--out", tmp_path / "out"]
        self.fails(2, "'pbs' is none of local, slurm, dask", *out, "--executor", "pbs")
        self.fails(2, "--slurm is for --executor slurm", *out, "--slurm", "time=3")
        self.fails(2, "--scheduler is for --executor dask", *out, "--scheduler", "tcp://x:1")
        self.fails(2, "--jobs is not for --executor dask", *out, "--executor", "dask", "--jobs", "2")
        self.fails(2, "needs the address of a cluster: --scheduler", *out, "--executor", "dask")
        self.fails(1, "no Slurm option 'tim'", *out, "--executor", "slurm", "--slurm", "tim=3")
        self.fails(1, "no Slurm option", *out, "--executor", "slurm", "--slurm", "tim=3", "--dry-run")
        self.fails(1, "jobs is 0", *out, "--executor", "slurm", "--jobs", "0")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("arguments", "kind", "told"),
        [
            (["--executor", "slurm", "--slurm", "partition=p"], "SlurmArray",
             "jobs keep running. Wait for them again: fadeviz sweep --out {out} --executor slurm; or cancel them: "
             "scancel 12 13"),
            (["--executor", "dask", "--scheduler", "tcp://h:1"], "DaskCluster",
             "stopped. Resume with: fadeviz sweep --out {out} --executor dask --scheduler tcp://h:1"),
            (["--jobs", "3"], "LocalProcesses", "stopped. Resume with: fadeviz sweep --out {out}"),
        ],
    )  # fmt: skip
    def test_ctrl_c_says_how_to_look_again(self, tmp_path, monkeypatch, arguments, kind, told):
        from fadeviz.sweep import SweepProgress

        def stop(plan, out, *, executor, on_progress):
            assert type(executor).__name__ == kind
            for job in ("12_0", "12_1", "13") if kind == "SlurmArray" else ():
                on_progress(SweepProgress("nearest-seed0", "queued", 0, 2, float("nan"), {}, "", 0, 3, job))
            raise KeyboardInterrupt

        monkeypatch.setattr("fadeviz.run_sweep", stop)
        out = tmp_path / "out"
        result = CliRunner().invoke(main, ["sweep", "--upsamplers", "nearest", "--out", str(out), *arguments])
        assert result.exit_code == 130
        lines = result.stderr.splitlines()
        assert lines[-1].endswith(told.format(out=out))
        assert lines[:-1] == (
            [f"queued as job {job}: squeue --job {job}" for job in ("12", "13")] if kind == "SlurmArray" else []
        )


class TestManifest:
    def test_one_write_a_batch(self, tmp_path, monkeypatch):
        """A scheduler tells of many runs at once, and the file lists them all."""
        from fadeviz.sweep.manifest import Manifest

        class Many:
            def train(self, tasks):
                yield [Event(task, "queued") for task in tasks]
                for task in tasks:
                    shutil.copytree(done, task.folder, dirs_exist_ok=True)
                yield [Event(task, "finished") for task in tasks]

        done = tmp_path / "done"
        done.mkdir()
        written = []
        monkeypatch.setattr(Manifest, "write", lambda self: written.append(len(self.runs)))
        outcomes = run_sweep(plan_sweep(["nearest"], range(200), TINY), tmp_path / "out", executor=Many())
        assert [outcome.status for outcome in outcomes] == ["finished"] * 200
        assert written == [200, 200, 200]

    def test_planning_builds_an_operator_once(self, monkeypatch):
        built = []
        network = build_network("segnet", "fade", width=1 / 16)
        monkeypatch.setattr(validation, "build_network", lambda *args, **options: built.append(args) or network)
        validation.check_model.cache_clear()
        try:
            plan = plan_sweep(["fade", "carafe"] * 500, range(500), TINY)
            configs = [plan.config(trial) for trial in plan.trials]
        finally:
            validation.check_model.cache_clear()
        assert len(configs) == 1000
        assert {one[1] for one in built} == {"fade", "carafe"}
        assert len(built) <= 4  # with its own layers and kinds, and with those of the sweep

    def test_what_is_missing_is_found_without_writing(self, tmp_path):
        plan = plan_sweep(["nearest"], [0], TINY)
        assert [task.trial for task in unfinished_trials(plan, tmp_path / "out")] == list(plan.trials)
        assert not (tmp_path / "out").exists()
