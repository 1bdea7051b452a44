"""The table of data sets by task and name: what ``--data`` can be, and how each is loaded, checked and watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ..errors import FadevizError, unknown_name
from . import Sample, Splits
from .ade20k import check_ade20k, describe_ade20k, load_ade20k
from .matting.compositing import crop_unknown
from .matting.dataset import check_matting, describe_matting, load_matting, load_synthetic_mattes
from .pool import Kept
from .synthetic import dataset as synthetic
from .weizmann_horse import check_weizmann, describe_weizmann, load_weizmann


class Wanted(NamedTuple):
    """What a run asks of a data set; each takes what concerns it.

    Attributes:
        folder: where the files lie.
        size: side of the training images in pixels.
        seed: of what is drawn for training.
        split_seed: of the split and of the test images.
        subset: train on so many images; 0 is all.
    """

    folder: str
    size: int
    seed: int
    split_seed: int
    subset: int = 0


@dataclass(frozen=True)
class DataSet:
    """How to get at one data set.

    Attributes:
        load: gives the images.
        check: reads every file of a folder and gives its problems, a line each; None where there is no folder.
        describe: what its files have that is easily read another way, a line each, such as orientation tags.
        watched: what of a test image is observed, for images of any size.
        whole: a network sees whole images, squeezed into the square; else crops of them.
        mirrors: training images are mirrored at random already.
        subsets: ``Wanted.subset`` is understood.
        held: training images are all in memory once they were read: they need no workers and no pool.
    """

    load: Callable[[Wanted], Splits]
    check: Callable[[Path], list[str]] | None = None
    describe: Callable[[Path], list[str]] | None = None
    watched: Callable[[Sample, int], Sample] = lambda sample, size: sample
    whole: bool = True
    mirrors: bool = False
    subsets: bool = False
    held: bool = False


def _synthetic(wanted: Wanted) -> Splits:
    count = synthetic.TEST_DRAWINGS
    test = Kept(synthetic.SyntheticHorses(wanted.size, wanted.split_seed, stream="test", count=count))
    info = {"name": "synthetic", "train": "endless", "test": count}
    return Splits(synthetic.SyntheticHorses(wanted.size, wanted.seed, stream="train"), test, info)


def _weizmann(wanted: Wanted) -> Splits:
    return load_weizmann(wanted.folder, wanted.size, wanted.split_seed)


def _ade20k(wanted: Wanted) -> Splits:
    subset = wanted.subset or None
    return _kept(
        load_ade20k(wanted.folder, wanted.size, subset=subset, seed=wanted.seed, subset_seed=wanted.split_seed)
    )


def _synthetic_mattes(wanted: Wanted) -> Splits:
    return _kept(load_synthetic_mattes(wanted.size, wanted.split_seed, wanted.seed))


def _mattes(wanted: Wanted) -> Splits:
    return _kept(load_matting(wanted.folder, wanted.size, wanted.split_seed, wanted.seed))


def _kept(splits: Splits) -> Splits:
    """The same, with test images that are read or drawn once."""
    return replace(splits, test=Kept(splits.test))


DATA: Mapping[str, Mapping[str, DataSet]] = {
    "segmentation": {
        "synthetic": DataSet(_synthetic),
        "weizmann": DataSet(_weizmann, check_weizmann, describe_weizmann, held=True),
        "ade20k": DataSet(_ade20k, check_ade20k, describe_ade20k, whole=False, mirrors=True, subsets=True),
    },
    "matting": {
        "synthetic": DataSet(_synthetic_mattes, watched=crop_unknown, whole=False, mirrors=True),
        "mattes": DataSet(_mattes, check_matting, describe_matting, watched=crop_unknown, whole=False, mirrors=True),
    },
}
"""By task, then by name."""


def find_data(task: str, name: str) -> DataSet:
    """The data set of this name that serves a task.

    Raises:
        FadevizError: there is none; the message says for what the name would serve.
    """
    if name in DATA[task]:
        return DATA[task][name]
    for other, sets in DATA.items():
        if name in sets:
            fitting = ", ".join(DATA[task])
            raise FadevizError(f"data {name} is for {other}, but the network is for {task}. Choose from: {fitting}")
    raise unknown_name("data set", name, sorted({name for sets in DATA.values() for name in sets}))


def check_data(folder: str | Path, name: str = "") -> tuple[str, list[str], Splits | None]:
    """Read every file of a folder: which data set it is, its problems, and its images where there are none.

    Args:
        folder: where the set lies.
        name: which set it is; empty takes the one whose folders it has.

    Raises:
        FadevizError: no such data set, or one without a folder; no such folder, or one with the folders of no set.
    """
    folder = Path(folder)
    with_folder = {n: one for sets in DATA.values() for n, one in sets.items() if one.check is not None}
    if name and name not in with_folder:
        raise unknown_name("data set with a folder", name, with_folder)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise FadevizError(f"data folder {folder} {what}. Give the folder of one of: {', '.join(with_folder)}")
    name = name or _guess(folder)
    found = with_folder[name]
    assert found.check is not None
    problems = found.check(folder)
    return name, problems, None if problems else found.load(Wanted(str(folder), 64, 0, 0))


def describe_data(folder: str | Path, name: str) -> list[str]:
    """How files were read where other readers may treat them differently, a line each.

    Args:
        folder: where the set lies, as :func:`check_data` found it whole.
        name: which set it is.

    Raises:
        FadevizError: the folder is no longer whole.
    """
    described = next(sets[name].describe for sets in DATA.values() if name in sets and sets[name].check is not None)
    return described(Path(folder)) if described is not None else []


_FOLDERS = {
    "weizmann": ("rgb", "figure_ground", "horse", "mask", "weizmann_horse_db"),
    "ade20k": ("annotations", "images", "ADEChallengeData2016"),
    "mattes": ("gt", "input", "trimap1", "trimap2", "Training_set", "Test_set", "train", "test", "Combined_Dataset"),
}
"""Names of folders by which each set is known."""


def _guess(folder: Path) -> str:
    """Which data set a folder is of, by the names in it."""
    names = {path.name for path in folder.iterdir()}
    for name, known in _FOLDERS.items():
        if names.intersection(known):
            return name
    if any("_alpha." in name for name in names):
        return "mattes"
    raise FadevizError(
        f"{folder} has the folders of no data set, such as rgb/ (weizmann), annotations/ (ade20k), gt/ or "
        "Training_set/ (mattes). Give such a folder, or name the set: --data"
    )


__all__ = ["DATA", "DataSet", "Wanted", "check_data", "describe_data", "find_data"]
