"""Everything on the device "cuda", by fake tensors: no type or device is mixed up, and the host waits once a step.

``fake_cuda.py`` runs the cases in a process of its own; it says what it sees and what it does not.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fadeviz.upsamplers import UPSAMPLERS
from test_gpu_operators import OPTIONS

HEADER = Path(torch.__file__).parent / "include/ATen/detail/CUDAHooksInterface.h"

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA: run the tests with -m gpu"),
    pytest.mark.skipif(shutil.which("g++") is None or not HEADER.exists(), reason="needs g++ and torch's headers"),
]

PRECISIONS = ("fp32", "bf16", "fp16")
NETWORKS = ("segnet", "unet") + (("segformer", "matting") if importlib.util.find_spec("transformers") else ())


def run(cases):
    """The cases and their results; those that failed hold an ``error``."""
    command = [sys.executable, Path(__file__).with_name("fake_cuda.py")]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return list(zip(cases, json.loads(done.stdout), strict=True))


def operator_cases(upsamplers, precisions, formats):
    return [
        {"run": "operator", "upsampler": upsampler, "precision": precision, "channels_last": channels_last}
        for upsampler in upsamplers
        for precision in precisions
        for channels_last in formats
    ]


def network_case(network, upsampler, precision, **more):
    return {"run": "network", "network": network, "upsampler": upsampler, "precision": precision, **more}


def check_operator(case, found):
    assert "error" not in found, (case, found)
    assert found["shape"] == [2, 32, 18, 28], case
    assert found["dtype"] == [case["precision"]] * 2, (case, found)
    assert found["device"] == ["cuda", "cuda"], case
    assert found["gradients"], case
    assert found["waits"] == [], (case, found)


def check_network(case, found):
    """A step waits once, after the backward pass was launched; an observation once, for all maps."""
    assert "error" not in found, (case, found)
    assert found["waits"] == [
        ["copy to device", "training.loop.fit", "before", 2],
        ["copy to host", "training.loop._deferred_item", "before", 1],
        ["event", "training.loop._deferred_item.<locals>.read", "after", 1],
    ], case
    assert found["observations"].keys() == set(case.get("observe", ()))
    for observation in found["observations"].values():
        assert observation["maps"] > 0
        assert observation["waits"] == [
            ["copy to host", "recording.hooks.MapCollector._add", "before", observation["maps"]],
            ["synchronize", "recording.hooks.MapCollector.synchronize", "before", 1],
        ], case


@pytest.fixture(scope="module")
def results():
    """One process for all, as its start takes seconds."""
    return run(
        [
            {"run": "waits"},
            *operator_cases(UPSAMPLERS, ("bf16",), (True,)),
            network_case("segnet", "carafe", "bf16", steps=1),
            network_case("segnet", "fade", "fp32", observe=["batch"]),
            *(network_case(network, "fade", "bf16", steps=1, observe=["eval"]) for network in NETWORKS[1:]),
        ]
    )


def test_waits_are_seen(results):
    _, found = results[0]
    assert [(what, count) for what, _, _, count in found["waits"]] == [
        ("blocking copy to device", 2),  # of a constant of the host, and from memory that is not pinned
        ("blocking copy to host", 1),
        ("boolean index", 1),
        ("copy to device", 1),
        ("copy to host", 1),
        ("item", 1),
        ("nonzero", 1),
        ("synchronize", 1),
    ]
    assert found["launches"] == 3  # a sum and two comparisons


def test_operators(results):
    for case, found in results:
        if case["run"] == "operator":
            check_operator(case, found)


@pytest.mark.parametrize("network", NETWORKS)
def test_networks(network, results):
    for case, found in results:
        if case.get("network") == network:
            check_network(case, found)


def check_launches(results):
    """A step of a small network takes as long as its launches: 325 with nearest interpolation."""
    launches = {
        case["upsampler"]: found["launches"]
        for case, found in results
        if case.get("steps") == 1 and case["network"] == "segnet"
    }
    assert max(launches.values()) <= 800, launches
    return launches.keys()


def test_launches(results):
    assert check_launches(results) == {"carafe"}


@pytest.mark.slow
def test_launches_of_every_operator():
    results = run([network_case("segnet", upsampler, "bf16", steps=1) for upsampler in UPSAMPLERS])
    for case, found in results:
        check_network(case, found)
    assert check_launches(results) == UPSAMPLERS.keys()


@pytest.mark.slow
def test_operators_and_options_in_every_precision_and_memory_format():
    for case, found in run(operator_cases([*UPSAMPLERS, *OPTIONS], PRECISIONS, (False, True))):
        check_operator(case, found)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_every_operator_in_every_network(network):
    cases = [network_case(network, name, "fp32", observe=["eval", "batch"]) for name in UPSAMPLERS]
    cases += [network_case(network, name, precision) for name in UPSAMPLERS for precision in ("bf16", "fp16")]
    for case, found in run(cases):
        check_network(case, found)
