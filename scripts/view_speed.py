"""Times and memory of the viewer, with runs made for it: python scripts/view_speed.py [RUNS SNAPSHOTS]."""

import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fadeviz.storage.info import RunInfo
from fadeviz.storage.snapshots import Snapshot, SnapshotStore

LAYERS = tuple(f"decoder.{stage}.upsample" for stage in range(4))


def make_runs(folder, runs, snapshots, size=64):
    """Runs with snapshots of 4 layers, 2 kinds and 4 images; all but the first consist of links to its snapshots."""
    rng = np.random.default_rng(0)
    first = folder / "run000"
    store = SnapshotStore(first, "same")
    steps = [10 * number for number in range(snapshots)]
    for step in steps:
        maps = [
            Snapshot(step, layer, 0, kind, rng.normal(size=(4, size, size)).astype(np.float32))
            for layer in LAYERS
            for kind in ("feature", "gradient")
        ]
        store.write(step, maps)
    store.write_observation(np.zeros((4, size, size, 3), np.uint8), np.zeros((4, size, size), np.uint8))
    info = {
        "status": "finished", "upsampler": "fade", "title": "FADE", "network": "segnet", "schedule": steps,
        "layers": {layer: {"size": [size, size]} for layer in LAYERS},
        "observation": {"names": ["a", "b", "c", "d"]},
    }  # fmt: skip
    for number in range(runs):
        path = folder / f"run{number:03d}"
        if number:
            shutil.copytree(first / "snapshots", path / "snapshots", copy_function=os.link)
            os.link(first / "observation.safetensors", path / "observation.safetensors")
        (path / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": 0.5}}\n' for step in steps))
        SnapshotStore(path, "same").write_info(RunInfo.from_dict({**info, "config": {"seed": number}}))


def memory(process):
    """Resident memory of a process in MB, now and at most."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return found["VmRSS"], found["VmHWM"]


def main(runs=500, snapshots=100):
    """Prints the times."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begin = time.perf_counter()
        make_runs(folder, runs, snapshots)
        print(f"{runs} runs of {snapshots} snapshots, made in {time.perf_counter() - begin:.1f} s")
        command = [sys.executable, "-m", "fadeviz", "view", str(folder), "--no-browser"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            port = int(process.stdout.readline().split("/")[2].split(":")[1])
            connection = http.client.HTTPConnection("127.0.0.1", port)

            def get(path):
                begin = time.perf_counter()
                connection.request("GET", path)
                body = connection.getresponse().read()
                return body, 1000 * (time.perf_counter() - begin)

            body, taken = get("/api/runs")
            news = json.loads(body)
            print(f"list, first scan    {taken:7.0f} ms  {len(body) / 1e6:.2f} MB")
            time.sleep(3)
            all_of_it = [get("/api/runs")[1] for _ in range(5) if not time.sleep(0.5)]
            print(f"list, all of it     {statistics.median(all_of_it):7.0f} ms")
            since = f"/api/runs?since={news['session']}.{news['version']}"
            polls = [get(since)[1] for _ in range(5) if not time.sleep(0.5)]
            print(f"a poll              {statistics.median(polls):7.0f} ms")
            tokens = [run["id"] for run in news["runs"]]
            opened = [get(f"/api/run/{token}")[1] for token in tokens[:20]]
            print(f"opening a run       {statistics.median(opened):7.1f} ms")
            path = f"layer={LAYERS[3]}&kind=feature&image=2"
            frames = [
                get(f"/api/run/{token}/map?{path}&step={10 * at}")[1] for at in range(snapshots) for token in tokens[:4]
            ]
            frames.sort()
            slow = frames[int(0.95 * len(frames))]
            print(f"a frame             {statistics.median(frames):7.1f} ms  (95 %: {slow:.1f} ms)")
            ranges = [get(f"/api/run/{token}/ranges?{path}")[1] for token in tokens[:10]]
            print(f"range of all steps  {statistics.median(ranges):7.0f} ms")
            now, most = memory(process.pid)
            print(f"memory              {now:7.0f} MB")
            for token in tokens:
                get(f"/api/run/{token}")
                get(f"/api/run/{token}/ranges?{path}")
            now, most = memory(process.pid)
            print(f"memory, all opened  {now:7.0f} MB  (at most {most:.0f} MB)")
            process.terminate()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
