"""A Slurm of one machine for the tests: sbatch, srun, squeue, scontrol and scancel, by the name it is called with.

Its state is in the folder $FAKE_SLURM: ``NUMBER.sh`` is what was sent, ``queue/`` what waits or runs, and nothing is
begun while a file ``hold`` is there. Tasks run one after the other.
"""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

HOME = Path(os.environ.get("FAKE_SLURM", "/nonexistent"))
QUEUE = HOME / "queue"


def install(folder):
    """Make the commands in ``folder``; returns the environment in which they are found."""
    (folder / "bin").mkdir(parents=True)
    (folder / "queue").mkdir()
    for name in ("sbatch", "srun", "squeue", "scontrol", "scancel"):
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} {name} "$@"\n')
        script.chmod(0o755)
    return {"FAKE_SLURM": str(folder), "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"}


def sbatch(script):
    text = Path(script).read_text()
    number = 1000 + len(list(HOME.glob("*.sh")))
    (HOME / f"{number}.sh").write_text(text)
    array = re.search(r"^#SBATCH --array=0-(\d+)", text, re.M)
    tasks = [f"{number}_{task}" for task in range(int(array[1]) + 1)] if array else [str(number)]
    for task in tasks:
        (QUEUE / task).write_text("PENDING")
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    subprocess.Popen([sys.executable, __file__, "slurmd", *tasks], start_new_session=True, **quiet)
    print(f"Submitted batch job {number}")


def slurmd(*tasks):
    for task in tasks:
        number, _, index = task.partition("_")
        here = {"SLURM_JOB_ID": task, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0"}
        if index:
            here |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": index}
        while (QUEUE / task).exists():
            if (HOME / "hold").exists():
                time.sleep(0.05)
                continue
            (HOME / f"{task}.requeue").unlink(missing_ok=True)
            subprocess.run(["bash", HOME / f"{number}.sh"], env={**os.environ, **here}, start_new_session=True)
            if not (HOME / f"{task}.requeue").exists():
                (QUEUE / task).unlink(missing_ok=True)


def srun(*args):
    task = os.environ["SLURM_JOB_ID"]
    number, _, index = task.partition("_")
    where = args[args.index("--output") + 1]
    for sign, value in (("%j", task), ("%A", number), ("%a", index), ("%t", "0")):
        where = where.replace(sign, value)
    (HOME / f"{task}.step").write_text(str(os.getpid()))
    (HOME / f"{task}.srun").write_text(" ".join(args))
    log = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    command = list(args[next(i for i, arg in enumerate(args) if "python" in arg) :])
    os.execv(command[0], command)


def squeue(*args):
    print("\n".join(sorted(path.name for path in QUEUE.iterdir())))


def scontrol(command, task):
    (HOME / f"{task}.{command}").write_text("")


def scancel(task):
    (QUEUE / task).unlink()
    with suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int((HOME / f"{task}.step").read_text()), signal.SIGKILL)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
