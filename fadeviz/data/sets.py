"""The table of data sets by task and name: what ``data`` can be, and how each is loaded, checked and observed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from .. import plugins
from ..errors import FadevizError, unknown_name
from . import Sample, Splits
from .ade20k import check_ade20k, describe_ade20k, load_ade20k
from .folder.check import Examination, examine_folder
from .folder.classes import MOST_CLASSES
from .folder.dataset import MaskOptions, load_folder
from .folder.files import has_known_layout
from .matting.compositing import crop_unknown
from .matting.dataset import check_matting, describe_matting, load_matting, load_synthetic_mattes
from .pool import Kept
from .synthetic.dataset import load_synthetic
from .weizmann_horse import check_weizmann, describe_weizmann, load_weizmann


@dataclass(frozen=True)
class DataOptions:
    """What a run requests from a data set; each data set uses what applies to it.

    Attributes:
        folder: the folder of the data set; empty for one that needs none.
        size: side of the training images, in pixels.
        seed: seed of everything random in the training images.
        split_seed: seed of the train/test split and of the test images.
        subset: number of images to train on; 0 for all.
        masks_dir: folder of the masks; empty if it lies in ``folder``.
        palette: file with the names, and perhaps the colours, of the classes; empty if there is none.
        classes: number of classes; 0 for as many as the masks have.
        ignore: classes and values that are ignored, separated by commas.
    """

    folder: str
    size: int
    seed: int
    split_seed: int
    subset: int = 0
    masks_dir: str = ""
    palette: str = ""
    classes: int = 0
    ignore: str = ""

    @property
    def masks(self) -> MaskOptions:
        """What is said about the masks."""
        return MaskOptions(self.masks_dir, self.palette, self.classes, self.ignore)


@dataclass(frozen=True)
class DatasetEntry:
    """A row of the table.

    Attributes:
        load: returns the images; the number of classes is that of the :class:`~fadeviz.data.Splits`.
        task: ``"segmentation"`` or ``"matting"``.
        needs_folder: whether ``DataOptions.folder`` is required; without it, no folder may be given.
        folders: names or patterns of entries by which a folder is recognised as this data set, e.g. ``"*_alpha.*"``.
        check: reads every file of a folder and returns its problems, one line each; without it, the folder is loaded.
        describe: properties of a folder's files that other readers may treat differently, one line each.
        examine: does the work of ``check``, ``describe`` and ``load`` in one pass, with all options.
        recognise: whether a folder is this data set; asked before ``folders`` are looked at.
        own_classes: ``masks_dir``, ``palette``, ``classes`` and ``ignore`` of the options are supported.
        observation_crop: ``(sample, size)`` -> the part of a test image that is observed, for images of any size.
        whole_images: the network sees whole images, resized to a square; otherwise crops of them.
        mirrors: training images are already mirrored at random.
        subsets: ``DataOptions.subset`` is supported.
        in_memory: training images stay in memory once they have been read: they need no workers and no pool.
    """

    load: Callable[[DataOptions], Splits]
    task: str = "segmentation"
    needs_folder: bool = False
    folders: tuple[str, ...] = ()
    check: Callable[[Path], list[str]] | None = None
    describe: Callable[[Path], list[str]] | None = None
    examine: Callable[[DataOptions], Examination] | None = None
    recognise: Callable[[Path], bool] | None = None
    own_classes: bool = False
    observation_crop: Callable[[Sample, int], Sample] = lambda sample, size: sample
    whole_images: bool = True
    mirrors: bool = False
    subsets: bool = False
    in_memory: bool = False


def _synthetic(options: DataOptions) -> Splits:
    return _kept(load_synthetic(options.size, options.split_seed, options.seed))


def _weizmann(options: DataOptions) -> Splits:
    return load_weizmann(options.folder, options.size, options.split_seed)


def _ade20k(options: DataOptions) -> Splits:
    subset = options.subset or None
    return _kept(
        load_ade20k(options.folder, options.size, subset=subset, seed=options.seed, subset_seed=options.split_seed)
    )


def _folder(options: DataOptions) -> Splits:
    return load_folder(options.folder, options.size, options.split_seed, options.masks)


def _examine_folder(options: DataOptions) -> Examination:
    return examine_folder(options.folder, options.size, options.split_seed, options.masks)


def _is_own_folder(folder: Path) -> bool:
    """Whether a folder has images and masks, and not in the layout of one of the other data sets."""
    if folder.is_file():
        return folder.suffix.lower() == ".csv"
    names = {path.name for path in folder.iterdir()}
    of_others = [{"rgb", "figure_ground"}, {"horse", "mask"}, {"input", "gt"}]
    if not (folder / "annotations" / "trimaps").is_dir():
        of_others.append({"images", "annotations"})
    mattes = any(fnmatchcase(name, "*_alpha.*") for name in names) or {"Training_set", "Test_set"} & names
    return not mattes and not any(pair <= names for pair in of_others) and has_known_layout(folder, by_words=False)


def _synthetic_mattes(options: DataOptions) -> Splits:
    return _kept(load_synthetic_mattes(options.size, options.split_seed, options.seed))


def _mattes(options: DataOptions) -> Splits:
    return _kept(load_matting(options.folder, options.size, options.split_seed, options.seed))


def _kept(splits: Splits) -> Splits:
    """The same splits, with test images that are read or generated once."""
    return replace(splits, test=Kept(splits.test))


DATA: Mapping[str, Mapping[str, DatasetEntry]] = {
    "segmentation": {
        "synthetic": DatasetEntry(_synthetic),
        "weizmann": DatasetEntry(
            _weizmann,
            needs_folder=True,
            folders=("rgb", "figure_ground", "horse", "mask", "weizmann_horse_db"),
            check=check_weizmann,
            describe=describe_weizmann,
            in_memory=True,
        ),
        "ade20k": DatasetEntry(
            _ade20k,
            needs_folder=True,
            folders=("annotations", "images", "ADEChallengeData2016"),
            check=check_ade20k,
            describe=describe_ade20k,
            whole_images=False,
            mirrors=True,
            subsets=True,
        ),
        "folder": DatasetEntry(
            _folder,
            needs_folder=True,
            examine=_examine_folder,
            recognise=_is_own_folder,
            own_classes=True,
        ),
    },
    "matting": {
        "synthetic": DatasetEntry(
            _synthetic_mattes, task="matting", observation_crop=crop_unknown, whole_images=False, mirrors=True
        ),
        "mattes": DatasetEntry(
            _mattes,
            task="matting",
            needs_folder=True,
            folders=(
                *("gt", "input", "trimap1", "trimap2", "Training_set", "Test_set", "train", "test"),
                *("Combined_Dataset", "*_alpha.*"),
            ),
            check=check_matting,
            describe=describe_matting,
            observation_crop=crop_unknown,
            whole_images=False,
            mirrors=True,
        ),
    },
}
"""fadeviz's own data sets, by task, then by name. A new one is a file and a row here.

Other packages add theirs under the entry-point group ``fadeviz.datasets``; :func:`find_data` finds both.
"""


def _fault(entry: object) -> str:
    """What is wrong with another package's entry; empty for nothing."""
    if not isinstance(entry, DatasetEntry):
        return f"is a {type(entry).__name__}; a fadeviz.data.sets.DatasetEntry is needed"
    if entry.task not in DATA:
        return f"is for the task {entry.task!r}; there are {', '.join(DATA)}"
    return ""


_TABLE = plugins.Table(
    "data set", plugins.DATASETS, {name: entry for sets in DATA.values() for name, entry in sets.items()}, _fault
)


def find_data(task: str, name: str) -> DatasetEntry:
    """The data set ``name`` for a task: fadeviz's own, or another package's.

    Raises:
        FadevizError: if there is no such task or data set, if the data set is for another task, or if its package is
            broken.
    """
    if task not in DATA:
        raise unknown_name("task", task, DATA)
    if name in DATA[task]:
        return DATA[task][name]
    entry = _TABLE.find(name)
    if entry.task != task:
        names = ", ".join(all_data(task))
        raise FadevizError(f"data {name} is for {entry.task}, but the network is for {task}. Choose from: {names}")
    return entry


def all_data(task: str) -> dict[str, DatasetEntry]:
    """Every data set for a task by name: fadeviz's own, then those of other packages.

    Raises:
        FadevizError: if another package is broken, or uses a name of fadeviz's own.
    """
    others = {name: entry for name, entry in _TABLE.all().items() if name not in _TABLE.own}
    return {**DATA[task], **{name: entry for name, entry in others.items() if entry.task == task}}


@dataclass(frozen=True)
class DataCheck:
    """The result of :func:`check_data`; printing it gives the counts in one line.

    Attributes:
        folder: the folder.
        data: the name of the data set.
        problems: faults of its files, one line each; empty if it can be used.
        notes: how files were read where other readers may treat them differently, one line each.
        splits: its images; None if there are problems.
    """

    folder: Path
    data: str
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    splits: Splits | None = None

    def __str__(self) -> str:
        if self.splits is None:
            return f"{self.folder}: {self.data}, {len(self.problems)} problem{'s' * (len(self.problems) != 1)}"
        info = self.splits.info
        train = info.get("train", self.splits.train.count or "endless")
        count = len(train) if isinstance(train, list) else train  # crops may be drawn without end
        total = f"images: {info['count']}, " if "count" in info else ""
        return f"{self.folder}: {self.data}, {total}to train on {count}, to test on {self.splits.test.count}"


def check_data(
    folder: str | os.PathLike[str],
    data: str = "",
    *,
    masks_dir: str = "",
    palette: str = "",
    classes: int = 0,
    ignore: str = "",
) -> DataCheck:
    """Read every file of a folder: which data set it holds, its problems, and its images if there are none.

    Args:
        folder: the folder of the data set, or a CSV of images and masks.
        data: the name of the data set; if empty, it is recognised by the names in the folder.
        masks_dir: as in :class:`~fadeviz.RunConfig`, like ``palette``, ``classes`` and ``ignore``; for
            ``data="folder"``, which they imply.
        palette: file with the names, and perhaps the colours, of the classes.
        classes: number of classes; 0 for as many as the masks have.
        ignore: classes and values that are ignored, separated by commas.

    Raises:
        FadevizError: if there is no such data set, or it has no folder; if the folder does not exist, or is not
            recognised as a data set; if the data set does not take one of the options.

    Example::

        checked = fadeviz.check_data("weizmann_horse_db")
        print(checked, *checked.problems, sep="\\n")
    """
    folder = Path(folder)
    options = DataOptions(str(folder), 64, 0, 0, 0, str(masks_dir), str(palette), classes, str(ignore))
    if not data and options.masks != MaskOptions():
        data = "folder"
    # Other packages are only imported where the folder may be theirs.
    candidates = {data: _TABLE.find(data)} if data else {n: e for task in DATA for n, e in all_data(task).items()}
    with_folder = {n: entry for n, entry in candidates.items() if entry.needs_folder}
    if not with_folder:
        raise unknown_name("data set with a folder", data, [n for n, entry in _TABLE.own.items() if entry.needs_folder])
    if not folder.is_dir() and not (folder.is_file() and folder.suffix.lower() == ".csv" and "folder" in with_folder):
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise FadevizError(f"data folder {folder} {what}. Give the folder of one of: {', '.join(with_folder)}")
    name = data or _recognise(folder, with_folder)
    entry = with_folder[name]
    check_options(name, entry, options.masks)
    if entry.examine is not None:
        examined = entry.examine(options)
        return DataCheck(folder, name, tuple(examined.problems), tuple(examined.notes), examined.splits)
    problems = [] if entry.check is None else entry.check(folder)
    if problems:
        return DataCheck(folder, name, tuple(problems))
    splits = entry.load(options)
    notes: list[str] = splits.info.get("notes", [])  # type: ignore[assignment]
    return DataCheck(folder, name, (), (*notes, *describe_data(folder, name)), splits)


def check_options(name: str, entry: DatasetEntry, masks: MaskOptions) -> None:
    """Raise for options on masks that are out of range, or that a data set does not take.

    Raises:
        FadevizError: if there is one.
    """
    for option, value in masks._asdict().items():
        if value and not entry.own_classes:
            raise FadevizError(
                f"{option} is {value}, but data {name} has masks of a known form. Leave out {option}=..., or use "
                "data=folder"
            )
    if masks.classes and not 2 <= masks.classes <= MOST_CLASSES:
        raise FadevizError(
            f"classes is {masks.classes}; it must be from 2 to {MOST_CLASSES}, as masks have 8 bits, or 0 for as many "
            "as the masks have"
        )


def describe_data(folder: str | Path, name: str) -> list[str]:
    """How files were read where other readers may treat them differently, one line each.

    Args:
        folder: the folder of the data set, in which :func:`check_data` found no problems.
        name: the data set.

    Raises:
        FadevizError: if there is no such data set, or the folder has problems by now.
    """
    describe = _TABLE.find(name).describe
    return describe(Path(folder)) if describe is not None else []


def _recognise(folder: Path, data: Mapping[str, DatasetEntry]) -> str:
    """The data set that a folder holds, by the names in it."""
    for name, entry in data.items():
        if entry.recognise is not None and entry.recognise(folder):
            return name
    names = {path.name for path in folder.iterdir()}
    for name, entry in data.items():
        if any(fnmatchcase(inside, pattern) for pattern in entry.folders for inside in names):
            return name
    if "folder" in data and has_known_layout(folder):
        return "folder"
    raise FadevizError(
        f"{folder} looks like no data set: it has no folders such as images/ and masks/ (folder), rgb/ (weizmann), "
        "annotations/ (ade20k), gt/ or Training_set/ (mattes). Give such a folder, or name the data set: data=..."
    )


__all__ = [
    "DATA",
    "DataCheck",
    "DataOptions",
    "DatasetEntry",
    "all_data",
    "check_data",
    "check_options",
    "describe_data",
    "find_data",
]
