"""run.json: what is not known survives, what is damaged is named, and bytes stay as they were."""

import dataclasses
import json
import re

import numpy as np
import pytest

from fadeviz import FadevizError, open_run
from fadeviz.storage.info import (
    LayerInfo,
    ObservationInfo,
    RunInfo,
    StoredConfig,
    StoredData,
    check_sum,
    read_info,
)

STORED = {
    "format": 1,
    "run_id": "0a1b2c",
    "user": {"key": [1, 2.5, None, {"deep": "ü 馬"}]},
    "upsampler": "fade:gate=off",
    "title": "FADE",
    "config": {"seed": 3, "labels": "shuffled", "data": "synthetic", "later": {"setting": [1]}},
    "schedule": [0, 5, 10],
    "observation": {"names": ["a"], "later": True, "indices": [4], "mode": "batch", "foreground": [2]},
    "layers": {"up": {"size": [4, 5], "calls": [[4, 5], [2, 3]], "later": 1}, "head": {}},
    "data": {"name": "horses", "notes": ["copies"], "classes": ["sky", "horse"], "fingerprint": "ff"},
    "result": {},
    "seconds": {"training": 1.5},
    "errors": [{"step": 2, "message": "no"}],
    "order": ["a user's key of this name"],
    "extra": "and of this",
    "message": "",
    "weights": None,
}


def text(values):
    return json.dumps(values).encode()


def test_every_attribute_is_typed():
    info = RunInfo.from_json(text(STORED), "run")
    assert (info.run_id, info.upsampler, info.title, info.weights, info.message) == (
        "0a1b2c", "fade:gate=off", "FADE", None, "",
    )  # fmt: skip
    assert (info.config.seed, info.config.labels, info.config.data) == (3, "shuffled", "synthetic")
    assert info.config["later"] == {"setting": [1]}
    assert info.schedule == (0, 5, 10)
    assert info.observation == ObservationInfo(
        names=("a",), indices=(4,), mode="batch", foreground=(2,), extra={"later": True}
    )
    assert info.layers == {
        "up": LayerInfo(size=(4, 5), calls=((4, 5), (2, 3)), extra={"later": 1}), "head": LayerInfo(),
    }  # fmt: skip
    assert (info.data.name, info.data.notes, info.data.classes) == ("horses", ("copies",), ("sky", "horse"))
    assert (info.seconds, info.result, info.errors) == ({"training": 1.5}, {}, ({"step": 2, "message": "no"},))
    assert (info.network, info.kinds, info.threads, info.versions) == (None, (), None, {})


def test_a_run_without_anything_has_the_defaults():
    info = RunInfo.from_json(b'{"format": 1, "run_id": "x"}', "run")
    assert info == RunInfo(run_id="x")
    assert (info.config, info.config.seed, info.config.labels, info.data.name) == ({}, None, "", "")
    assert [info.observation.name_of(image) for image in (0, 3)] == ["image 0", "image 3"]
    assert info.to_dict() == {"format": 1, "run_id": "x"}


def test_what_is_not_known_and_the_order_of_keys_survive_byte_for_byte():
    info = RunInfo.from_json(text(STORED), "run")
    assert json.dumps(info.to_dict()) == json.dumps(STORED)
    again = RunInfo.from_json(info.to_json(), "run")
    assert again == info
    assert again.to_json() == info.to_json()
    changed = dataclasses.replace(info, status="finished", title="FADE 2", schedule=(0, 5))
    expected = {**STORED, "title": "FADE 2", "schedule": [0, 5], "status": "finished"}
    assert json.dumps(changed.to_dict(), sort_keys=True) == json.dumps(expected, sort_keys=True)
    assert list(changed.to_dict())[: len(STORED)] == list(STORED)


def test_a_resumed_run_is_described_anew_and_keeps_what_only_its_beginning_knew():
    earlier = RunInfo.from_json(text({**STORED, "processes": 2, "notes": ["of two"]}), "run")
    now = RunInfo(upsampler="fade", config=StoredConfig({"seed": 3}), threads=2)
    both = now.over(earlier, without=("processes", "notes"))
    assert (both.upsampler, both.title, both.threads, both.processes, both.notes) == ("fade", "FADE", 2, None, ())
    assert both.config == {"seed": 3}
    assert both.extra["user"] == STORED["user"]
    assert list(both.to_dict())[: len(STORED)] == list(STORED)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"run_id": 3}, "run_id is not a string"),
        ({"title": 3}, "title is not a string"),
        ({"config": []}, "config is not an object"),
        ({"config": {"seed": 1.5}}, "config.seed is not a whole number"),
        ({"config": {"labels": []}}, "config.labels is not a string"),
        ({"data": {"notes": "one"}}, "data.notes is not a list of strings"),
        ({"observation": {"names": [1]}}, "observation.names is not a list of strings"),
        ({"observation": None}, "observation is not an object"),
        ({"schedule": [0, True]}, "schedule is not a list of whole numbers"),
        ({"schedule": None}, "schedule is not a list of whole numbers"),
        ({"layers": {"up": 3}}, "layers.up is not an object"),
        ({"layers": {"up": {"size": "4"}}}, "layers.up.size is not a list of whole numbers"),
        ({"result": {"miou": "high"}}, "result is not an object of numbers"),
        ({"threads": 0}, "threads is not a whole number from 1 to 9999"),
        ({"classes": 255}, "classes is not a whole number from 2 to 254"),
        ({"parameters": 2**63}, "parameters is not a whole number"),
        ({"errors": ["no"]}, "errors is not a list of objects"),
    ],
)
def test_what_is_damaged_is_named(changes, what):
    line = f"run/run.json is damaged ({what}). Record the run again with overwrite=True"
    with pytest.raises(FadevizError, match=f"^{re.escape(line)}$"):
        RunInfo.from_json(text({**STORED, **changes}), "run")


def test_strings_come_back_without_control_characters():
    info = RunInfo.from_json(text({**STORED, "title": "a\x1b[2J\nb", "user\r": {"\x07": ["\u202e"]}}), "run")
    assert info.title == r"a\x1b[2J\nb"
    assert info.extra[r"user\r"] == {r"\x07": [r"\u202e"]}


def test_numbers_of_any_kind_are_stored_and_changes_by_hand_are_seen(tmp_path):
    info = RunInfo(run_id="x", last_step=np.int64(7), seconds={"training": np.float64(0.5)}, data=StoredData({"n": 1}))
    (tmp_path / "run.json").write_bytes(info.to_json())
    assert check_sum(tmp_path / "run.json") == ""
    back = read_info(tmp_path, "run")
    assert (back.last_step, back.seconds, back.data) == (7, {"training": 0.5}, {"n": 1})
    assert open_run(tmp_path).info == back
    (tmp_path / "run.json").write_bytes(info.to_json().replace(b'"last_step": 7', b'"last_step": 8'))
    assert "checksum" in check_sum(tmp_path / "run.json")
