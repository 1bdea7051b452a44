"""The stage ``tests``: the tests that need a GPU, followed line by line."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence

from .setting import ROOT, Rows, Setting

OUTCOME = re.compile(
    r"\[gw\d+\] (?:\[ *\d+%\] )?(?P<word>[A-Z]+) (?P<name>\S.*::.*?) *$"  # by pytest-xdist, else by pytest alone
    r"|(?P<alone>\S.*::.*?) (?P<verdict>PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)(?: \(.*\))? *(?:\[ *\d+%\])?$"
)
SUMMARY = re.compile(r"(?:FAILED|ERROR) (?P<name>\S.*?) - (?P<message>.*)$")


def stage_tests(setting: Setting, rows: Rows) -> None:
    """The tests that are marked gpu, file by file named: what a file of others wants need not be installed."""
    files = sorted(path for path in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in path.read_text())
    files = sorted({*files, ROOT / "tests" / "test_triton.py"})  # which is marked where there is a GPU
    command = [
        sys.executable, "-m", "pytest", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", "-v", "--color=no",
        "-o", "xfail_strict=false", "--tb=short", "--maxfail=40", "--durations=15",
    ]  # fmt: skip
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", "12" if setting.cuda else "0", "-p", "no:benchmark"]
    if setting.small:
        code = subprocess.run([*command, "--collect-only", str(files[0])], cwd=ROOT, check=False).returncode
        rows.add(what="collected", files=[files[0].name], code=code, ok=code == 0)
        return
    follow_tests([*command, *map(str, files)], rows, setting.seconds)


def follow_tests(command: Sequence[str], rows: Rows, seconds: float) -> None:
    """Run pytest: a row for each test that fails as it fails, so that a stage that is stopped has their names.

    25 seconds before the end the process group is interrupted, the workers of pytest-xdist with it; pytest then tells
    what failed so far. This process is of the group, but reads on.
    """
    signal.signal(signal.SIGINT, lambda *_: None)
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env={**os.environ, "COLUMNS": "250"},  # or the summary cuts messages off
    )  # fmt: skip
    assert process.stdout is not None
    allowed = max(1.0, seconds - 25)

    def interrupt() -> None:
        rows.add(what="stopped", message=f"after {allowed:.0f} s", ok=False)
        os.killpg(0, signal.SIGINT)

    timer = threading.Timer(allowed, interrupt)
    timer.start()
    start, counts, failed = time.monotonic(), Counter[str](), set[str]()
    for line in process.stdout:
        print(line, end="", flush=True)
        if match := OUTCOME.match(line.rstrip()):
            outcome = (match["word"] or match["verdict"]).lower()
            counts[outcome] += 1
            if outcome in ("failed", "error"):
                failed.add(match["name"] or match["alone"])
                rows.add(what=outcome, test=match["name"] or match["alone"], ok=False)
        elif match := SUMMARY.match(line.rstrip()):
            rows.add(what="message", test=match["name"], message=match["message"][:300], ok=match["name"] in failed)
    process.stdout.close()
    code = process.wait()
    timer.cancel()
    rows.add(what="tests", **counts, code=code, seconds=round(time.monotonic() - start, 1), ok=code == 0)
