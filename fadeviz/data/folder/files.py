"""Finding the images of a folder with their masks, and which are to train and to test on. No image is opened."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ...errors import FadevizError, printable
from ...storage.files import read_regular
from ..images import SUFFIXES, is_hidden, key_of, list_folder, note_left_out

ENDINGS = (*SUFFIXES, ".gif")
"""Suffixes, in lower case, of the files that count as images or masks."""

PARTS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""The parts of a set, with the names that their folders have."""

IMAGES = (
    *("images", "image", "imgs", "img", "rgb", "photos", "inputs", "input", "JPEGImages"),
    *("701_StillsRaw_full", "original_images"),
)
"""Names of folders of images, in either case."""

MASKS = (
    *("masks", "mask", "labels", "label", "annotations/trimaps", "annotations", "annotation", "annots", "annot"),
    *("gt", "ground_truth", "groundtruth", "segmentations", "segmentation", "targets", "SegmentationClass"),
    *("SegmentationClassPNG", "LabeledApproved_full", "label_images_semantic"),
    # In sets of retinas, mask/ holds the camera's field of view: the user has to say which one is meant.
    *("1st_manual", "2nd_manual", "manual1", "manual2", "manual"),
)
"""Names of folders of masks, in either case."""

_MASK_WORDS = {
    *("mask", "masks", "label", "labels", "labelids", "gt", "groundtruth", "seg", "segmentation", "annotation"),
    *("annotations", "annot", "matte", "trimap", "target"),
}
_IMAGE_WORDS = {"image", "images", "img", "imgs", "sat", "rgb", "photo", "photos", "input"}
_IMAGES_WORDS = _IMAGE_WORDS | {"frames", "im", "inputs", "original", "originals", "photographs"}
_MASKS_WORDS = _MASK_WORDS | {"ann", "annots", "segmentations", "semantic", "truth", "targets", "manual"}
"""Words in the names of folders, such as PNGImages/ and PedMasks/, images_png/ and masks_png/."""

_LIST_FOLDERS = (".", "ImageSets/Segmentation", "ImageSets", "splits", "split", "lists", "annotations")
_LIKE_A_LIST = re.compile(r".*(train|val|test).*\.(txt|lst)", re.IGNORECASE)
_SEPARATORS = "_-. "
_SHOWN = 5
_DEEPEST = 3
_LARGEST_LIST = 1 << 26
_COLUMNS = {
    "image": ("image", "images", "img", "image_path", "image_file", "file", "filename"),
    "mask": ("mask", "masks", "label", "labels", "annotation", "mask_path", "mask_file", "label_path"),
    "part": ("split", "set", "subset", "part", "fold"),
}


class Pair(NamedTuple):
    """An image with its mask.

    Attributes:
        name: the stem of the image's file.
        image: the image.
        mask: the mask.
    """

    name: str
    image: Path
    mask: Path


@dataclass
class Found:
    """What lies in a folder.

    Attributes:
        root: the folder that it was found in.
        parts: pairs by part: ``train``, ``val`` and ``test``, or ``""`` alone of a set that is not split.
        notes: remarks, a line each.
        problems: faults, a line each.
    """

    root: Path
    parts: dict[str, list[Pair]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def pairs(self) -> list[Pair]:
        """All pairs."""
        return [pair for part in self.parts.values() for pair in part]


class _Place(NamedTuple):
    """Where the images and masks of one part are: the same folder twice if they share one."""

    images: Path
    masks: Path


def find_pairs(folder: str | os.PathLike[str], masks_dir: str = "") -> Found:
    """Find the images of a folder and their masks.

    Args:
        folder: the folder; or a CSV with the columns ``image``, ``mask`` and, if it is split, ``split``.
        masks_dir: the folder of the masks, by its path or its path in ``folder``; empty to find it by its name.

    Raises:
        FadevizError: if there is no such folder, or it has no layout that is known.
    """
    path = Path(folder)
    if path.is_file() and path.suffix.lower() == ".csv":
        if masks_dir:
            raise FadevizError(f"{path} names the masks already. Leave out masks_dir=...")
        found = _read_csv(path)
    else:
        root, places = _places(path, masks_dir)
        found = _Finder(root, places).find()
    found.notes = [printable(note) for note in found.notes]
    found.problems = [printable(problem) for problem in found.problems]
    return found


def has_known_layout(folder: Path, *, by_words: bool = True) -> bool:
    """Whether a folder has images and masks in a layout that is known here; nothing but names is read.

    Args:
        folder: the folder.
        by_words: whether words in the names of its folders suffice, as in ``PedMasks/``.
    """
    try:
        _places(folder, "", by_words=by_words)
    except TwoFolders:
        return True
    except FadevizError:
        return False
    return True


class TwoFolders(FadevizError):
    """A folder has several that may hold its images, or its masks."""


# --- layouts ---


def _places(folder: Path, masks_dir: str, *, by_words: bool = True) -> tuple[Path, dict[str, _Place]]:
    """The folder that has a layout that is known, and where its parts are."""
    if not folder.is_dir():
        what = "is a file, but neither a folder nor a .csv" if folder.exists() else "does not exist"
        raise FadevizError(
            f"data folder {folder} {what}. Give the folder that holds the images and masks: data_dir=DIR"
        )
    if masks_dir:
        if split := _parts_with(folder, masks_dir):
            return folder, split
        return folder, _in_two_folders(_images_of(folder), _masks_folder(folder, masks_dir))
    root = folder
    for _ in range(_DEEPEST):
        if places := _layout(root) or (by_words and _layout_by_words(root)):
            return root, places
        # An archive may unpack into a folder of its own, as VOCdevkit/VOC2012 does.
        inside = _subfolders(root)
        if len(inside) != 1 or _has_files(root):
            break
        root = root / inside[0]
    has = [f"{name}/" for name in _subfolders(folder)][:_SHOWN]
    if _has_files(folder):
        first = list(_list(folder))[:_SHOWN]
        raise FadevizError(
            f"{folder} has images, but none with a mask: {', '.join(first)}. Name masks after their images, as in "
            "a.jpg and a_mask.png, or give their folder: masks_dir=DIR"
        )
    if not has:
        raise FadevizError(f"{folder} has no images ({', '.join(ENDINGS)}) and no folders. Give another folder")
    known = [name for name in _subfolders(folder) if _words(name) & (_IMAGES_WORDS | _MASKS_WORDS)]
    deeper = [f"{name}/{inside[0]}/" for name in known if (inside := _subfolders(folder / name))]
    if deeper:
        raise FadevizError(
            f"{folder} has {', '.join(has)}, but the files lie deeper ({', '.join(deeper[:_SHOWN])}). Give a CSV of "
            "pairs, data_dir=pairs.csv, or the folders that hold the files: data_dir=IMAGES, masks_dir=MASKS"
        )
    raise FadevizError(
        f"{folder} has {', '.join(has)}, none of them known to hold images or masks. Name them images/ and masks/, "
        "give both: data_dir=IMAGES, masks_dir=MASKS, or give a CSV of pairs: data_dir=pairs.csv"
    )


def _layout(root: Path) -> dict[str, _Place]:
    """Where the parts of a folder are; empty if the layout is not known."""
    images, masks = _child(root, IMAGES), _child(root, MASKS)
    if images and masks:
        return _in_two_folders(images, masks)
    split = {part: place for part in PARTS if (place := _part(root, part))}
    if any(place.masks != place.images or _mask_stems(place.images) for place in split.values()):
        return split
    if _has_files(root) and _mask_stems(root):
        return {"": _Place(root, root)}
    return {}


def _layout_by_words(root: Path) -> dict[str, _Place]:
    """Where the parts of a folder are by words in the names of its folders: ``PNGImages/`` and ``PedMasks/``.

    Those with the word of a part are of that part: ``train_images/`` and ``train_segmentations/``.
    """
    of_parts = {part: _two_by_words(root, names) for part, names in PARTS.items()}
    if split := {part: place for part, place in of_parts.items() if place}:
        return split
    place = _two_by_words(root)
    return _in_two_folders(place.images, place.masks) if place else {}


def _two_by_words(root: Path, part: Sequence[str] = ()) -> _Place | None:
    """The folder of images and the folder of masks that words in their names tell, both of one part or of none."""
    images, masks = [], []
    for name in _subfolders(root):
        words = _words(name)
        of_part = words & {word for names in PARTS.values() for word in names}
        if (not of_part <= set(part) if part else of_part) or (part and not of_part) or not _is_filled(root / name):
            continue
        if words & _MASKS_WORDS:
            masks.append(root / name)
        elif words & (_IMAGES_WORDS):
            images.append(root / name)
    if not images or not masks:
        return None
    for found, what in ((images, "images"), (masks, "masks")):
        if len(found) > 1:
            raise _two_of(found, what)
    return _Place(images[0], masks[0])


def _words(name: str) -> set[str]:
    """The words of a folder's name in lower case: ``PNGImages``, ``images_png`` and ``Ground Truth`` have two each."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", key_of(name))}


def _part(root: Path, part: str) -> _Place | None:
    """Where a part with a folder of its own has its images and masks."""
    folder = _part_folder(root, part, filled=False)
    if folder is None:
        return None
    images, masks = _child(folder, IMAGES), _child(folder, MASKS)
    if not images or not masks:
        images, masks = _two_by_words(folder) or (images, masks)
    if images:
        return _Place(images, masks or folder)
    # trainannot/, train_labels/ and the like, beside train/.
    words = "|".join(sorted(_MASK_WORDS, key=len, reverse=True))
    beside = re.compile(rf"{re.escape(folder.name)}[_-]?({words})", re.IGNORECASE)
    found = [root / name for name in _subfolders(root) if beside.fullmatch(name)]
    if len(found) > 1:
        raise _two_of(found, "masks")
    return _Place(folder, found[0] if found else folder)


def _in_two_folders(images: Path, masks: Path) -> dict[str, _Place]:
    """The parts of a folder of images and one of masks, either of which may have a folder for each part."""
    split = {part: folder for part in PARTS if (folder := _part_folder(images, part))}
    if not split or _has_files(images):
        return {"": _Place(images, masks)}
    return {part: _Place(folder, _part_folder(masks, part) or masks) for part, folder in split.items()}


def _part_folder(folder: Path, part: str, *, filled: bool = True) -> Path | None:
    """The folder of a part: ``train``, or the only one with a number behind it, as ``train2017``."""
    if found := _child(folder, PARTS[part], filled=filled):
        return found
    with_number = re.compile(rf"({'|'.join(PARTS[part])})[_-]?\d+", re.IGNORECASE)
    numbered = [folder / name for name in _subfolders(folder) if with_number.fullmatch(name)]
    numbered = [path for path in numbered if not filled or _has_files(path)]
    if len(numbered) > 1:
        raise _two_of(numbered, "images")
    return numbered[0] if numbered else None


def _parts_with(folder: Path, masks_dir: str) -> dict[str, _Place]:
    """The parts of a folder, each with a folder of masks of this name in it: ``training/1st_manual``."""
    if (folder / masks_dir).is_dir() or Path(masks_dir).is_dir():
        return {}
    parts = {part: _part_folder(folder, part, filled=False) for part in PARTS}
    inside = {part: folder for part, folder in parts.items() if folder}
    if not any((folder / masks_dir).is_dir() for folder in inside.values()):
        return {}
    images = {part: _images_of(folder) for part, folder in inside.items()}
    masks = {part: folder / masks_dir for part, folder in inside.items()}
    return {part: _Place(images[part], masks[part] if masks[part].is_dir() else images[part]) for part in inside}


def _images_of(folder: Path) -> Path:
    if _has_files(folder) or any(_part_folder(folder, part) for part in PARTS):
        return folder
    images = _child(folder, IMAGES)
    if images is None and (place := _two_by_words(folder)):
        images = place.images
    if images is None:
        raise FadevizError(
            f"{folder} has no images ({', '.join(ENDINGS)}), nor images/, train/ or the like. Give the folder that "
            "holds them, or a CSV of pairs: data_dir=pairs.csv"
        )
    return images


def _masks_folder(folder: Path, masks_dir: str) -> Path:
    for path in (folder / masks_dir, Path(masks_dir)):
        if path.is_dir():
            return path
    raise FadevizError(f"masks_dir is {masks_dir}, which is no folder, neither here nor in {folder}. Give another one")


def _child(folder: Path, names: Sequence[str], *, filled: bool = True) -> Path | None:
    """The subfolder with one of these names, in either case.

    Args:
        folder: the folder.
        names: paths in it.
        filled: only one that holds images, or folders of parts that do.

    Raises:
        FadevizError: if there are several.
    """
    found: list[Path] = []
    for name in names:
        path: Path | None = folder
        for word in name.split("/"):
            inside = {key_of(child).lower(): child for child in reversed(_subfolders(path))} if path else {}
            path = path / inside[word.lower()] if path and word.lower() in inside else None
        if path and (not filled or _is_filled(path)):
            found.append(path)
    if len(found) > 1:
        raise _two_of(found, "masks" if names is MASKS else "images")
    return found[0] if found else None


def _two_of(found: Sequence[Path], what: str) -> TwoFolders:
    listed = " and ".join(f"{path.name}/" for path in found[:2])
    remedy = "masks_dir=DIR" if what == "masks" else "data_dir=IMAGES, masks_dir=MASKS"
    return TwoFolders(f"{found[0].parent} has two folders of {what}, {listed}. Say which: {remedy}")


def _is_filled(folder: Path) -> bool:
    words = "|".join(name for names in PARTS.values() for name in names)
    of_part = re.compile(rf"({words})([_-]?\d+)?", re.IGNORECASE)
    return _has_files(folder) or any(
        _has_files(folder / name) for name in _subfolders(folder) if of_part.fullmatch(name)
    )


def _subfolders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if _is_folder(entry))
    except OSError as error:
        raise FadevizError(f"{folder} cannot be listed: {error.strerror or error}. Check its permissions") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # macOS packs its own files into a folder of that name.
    return not entry.name.startswith(".") and entry.name != "__MACOSX" and entry.is_dir()


def _has_files(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(_is_image(entry.name) and not entry.is_dir() for entry in entries)
    except OSError as error:
        raise FadevizError(f"{folder} cannot be listed: {error.strerror or error}. Check its permissions") from error


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in ENDINGS and not is_hidden(Path(name))


def _list(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if _is_image(name))


# --- which image belongs to which mask ---


def _mask_stems(folder: Path) -> dict[str, list[str]]:
    """The names of the masks in a folder that they share with their images, by the stems of these names."""
    names = _list(folder)
    by_stem: dict[str, list[str]] = {}
    for name in names:
        by_stem.setdefault(key_of(Path(name).stem), []).append(name)
    named = {stem: files for stem, files in by_stem.items() if _last_word(stem) in _MASK_WORDS}
    if named:
        return named
    named = {stem: files for stem, files in by_stem.items() if _first_word(stem) in _MASK_WORDS}
    if 0 < len(named) < len(by_stem):
        return named
    # a.jpg with a.png, or a.png with a_L.png
    twins = {
        stem: [name for name in files if not name.lower().endswith((".jpg", ".jpeg"))]
        for stem, files in by_stem.items()
        if len(files) == 2
    }
    if twins:
        return {stem: files for stem, files in twins.items() if len(files) == 1}
    ends = {stem: _end_beyond(stem, by_stem)[1] for stem in by_stem}
    common = _most_common_word(ends.values())
    return {stem: by_stem[stem] for stem, end in ends.items() if common and end == common}


def _last_word(stem: str) -> str:
    return re.split(rf"[{re.escape(_SEPARATORS)}]", stem)[-1].lower()


def _first_word(stem: str) -> str:
    return re.split(rf"[{re.escape(_SEPARATORS)}]", stem)[0].lower()


def _end_beyond(stem: str, images: Mapping[str, object]) -> tuple[str, str]:
    """The longest of the ``images`` that a mask's stem begins with, up to a separator, and the rest of the stem."""
    for at in range(len(stem) - 1, 0, -1):
        if stem[at] in _SEPARATORS and stem[:at] in images:
            return stem[:at], stem[at:]
    return "", ""


def _most_common_word(ends: Iterable[str]) -> str:
    """The most frequent of the endings that have a letter: without one, as in ``_2``, it is a part of a number."""
    counted = Counter(end for end in ends if any(map(str.isalpha, end)))
    return counted.most_common(1)[0][0] if counted else ""


class _Paired(NamedTuple):
    pairs: list[Pair]
    lone_images: list[Path]
    lone_masks: list[Path]
    problems: list[str]
    note: str = ""


def _cores(images: Collection[str], masks: Collection[str]) -> tuple[dict[str, str], dict[str, str], str] | None:
    """Names without what all images, and what all masks, begin and end with, if these pair up every file.

    So ``21_training`` is the image of ``21_manual1``, and ``image_001`` that of ``segmim_001``.

    Returns:
        The cores of the images by their stems, the stems of the masks by their cores, and a note; or None.
    """
    if not images or not masks:
        return None
    (first, last), (mask_first, mask_last) = _common_ends(images), _common_ends(masks)
    words = _IMAGE_WORDS | _MASKS_WORDS
    starts = all(not start or start[-1] in _SEPARATORS or start.lower() in words for start in (first, mask_first))
    ends = all(not end or end[0] in _SEPARATORS or end.lower() in words for end in (last, mask_last))
    if not starts or not ends:
        return None
    if re.findall(r"\d+", first) != re.findall(r"\d+", mask_first):  # another sequence, not another name
        return None
    of_image = {stem: stem[len(first) : len(stem) - len(last)] for stem in images}
    of_mask = {stem[len(mask_first) : len(stem) - len(mask_last)]: stem for stem in masks}
    if len(set(of_image.values())) < len(of_image) or len(of_image) < 2 or set(of_image.values()) != set(of_mask):
        return None
    one = next(iter(of_image))
    return (
        of_image,
        of_mask,
        f"images and masks pair up by what differs in their names: {one} and {of_mask[of_image[one]]}",
    )


def _common_ends(stems: Iterable[str]) -> tuple[str, str]:
    """What all names begin and end with, without a part of a number."""
    listed = list(stems)
    first = re.sub(r"\d+$", "", _common_start(listed))
    last = _common_start([stem[len(first) :][::-1] for stem in listed])[::-1]
    return first, re.sub(r"^\d+", "", last)


def _common_start(texts: Sequence[str]) -> str:
    low, high = min(texts), max(texts)
    differing = (at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return low[: next(differing, min(len(low), len(high)))]


def _pair_up(images: Mapping[str, Path], masks: Mapping[str, Path]) -> _Paired:
    """Pair images and masks, both by the stems of their names: equal ones, then those equal up to an ending.

    An ending is ``_mask``, ``_gt`` and the like, or whatever most masks of the folder end with. An image may end with
    ``_image``, ``_sat`` and the like.
    """
    mask_of: dict[str, list[str]] = {stem: [stem] for stem in images if stem in masks}
    rest = {stem: stem for stem in images if stem not in masks}
    for stem in list(rest):
        base = stem[: -len(_last_word(stem)) - 1]
        if _last_word(stem) in _IMAGE_WORDS and base and base not in images:
            rest.setdefault(base, stem)
    matches = {stem: _end_beyond(stem, rest) for stem in masks if stem not in images}
    for stem in masks:
        if stem not in images and stem in rest:  # a_image.jpg with a.png
            matches[stem] = stem, ""
    # Beside masks that are named as their images are, another ending is that of a mask whose image is missing.
    common = "" if mask_of else _most_common_word(end for _, end in matches.values())
    for stem, (image, end) in matches.items():
        if image and (end in ("", common) or end[1:].lower() in _MASK_WORDS):
            mask_of.setdefault(rest[image], []).append(stem)
    pairs, problems, used = [], [], set()
    for stem, path in images.items():
        belonging = mask_of.get(stem, [])
        used.update(belonging)
        if len(belonging) == 1:
            pairs.append(Pair(path.stem, path, masks[belonging[0]]))
        elif belonging:
            names = ", ".join(masks[mask].name for mask in belonging)
            problems.append(f"{path} has {len(belonging)} masks: {names}. Keep one, or give a CSV of pairs")
    if not used and (cores := _cores(images, masks)):
        of_image, of_mask, note = cores
        pairs = [Pair(images[stem].stem, images[stem], masks[of_mask[core]]) for stem, core in of_image.items()]
        return _Paired(pairs, [], [], [], note)
    lone_images = [path for stem, path in images.items() if not mask_of.get(stem)]
    return _Paired(pairs, lone_images, [path for stem, path in masks.items() if stem not in used], problems)


class _Finder:
    """Pairs up the files of the places of a set, and puts them into parts."""

    def __init__(self, root: Path, places: Mapping[str, _Place]) -> None:
        self.places = places
        self.found = Found(root)
        self.lone_images: list[Path] = []
        self.lone_masks: list[Path] = []

    def find(self) -> Found:
        found = self.found
        by_masks: dict[Path, list[str]] = {}
        for part, place in self.places.items():
            by_masks.setdefault(place.masks, []).append(part)
        for parts in by_masks.values():
            self._pair_up(parts)
        without = [part for part in self.places if not found.parts.get(part)]
        if without and len(without) < len(self.places):
            for part in without:
                # As in a benchmark that keeps the masks of its test images to itself.
                inside = self.places[part].images
                self.lone_images = [path for path in self.lone_images if path.parent != inside]
                found.notes.append(f"{part}: no image in {self._short(inside)}/ has a mask; it is left out")
                found.parts.pop(part, None)
        lists = find_lists(found.root)
        if lists:
            self._apply(lists)
        found.notes += _note_unused(found.root, lists)
        self._report_lone(listed=bool(lists))
        if unused := self._unused_folders():
            found.notes.append(f"folders with images that are not used: {', '.join(unused[:_SHOWN])}")
        return found

    def _unused_folders(self) -> list[str]:
        """The folders beside those of the set that hold images too, themselves or in a folder of theirs."""
        used = {path for place in self.places.values() for path in place}
        used |= {parent for path in used for parent in path.parents}
        others = [name for name in _subfolders(self.found.root) if self.found.root / name not in used]
        folders = ((f"{name}/", self.found.root / name) for name in others)
        return [
            name for name, path in folders if any(map(_has_files, (path, *(path / one for one in _subfolders(path)))))
        ]

    def _pair_up(self, parts: Sequence[str]) -> None:
        """Pair up the images of the parts that have their masks in the same folder."""
        found, first = self.found, self.places[parts[0]]
        images: dict[str, Path] = {}
        part_of: dict[Path, str] = {}
        masks: dict[str, Path] = {}
        for part in parts:
            place = self.places[part]
            if place.images == place.masks:
                own, masks = self._shared(place.images)
            else:
                own = self._listed(place.images)
            for stem, path in own.items():
                part_of[path] = part
                if images.setdefault(stem, path) != path:
                    found.problems.append(
                        f"{path} has the same name as {images[stem]}, and both parts have their masks in "
                        f"{self._short(first.masks)}/. Give each part a folder of masks"
                    )
        if first.images != first.masks:
            masks = self._listed(first.masks)
        paired = _pair_up(images, masks)
        for pair in paired.pairs:
            found.parts.setdefault(part_of[pair.image], []).append(pair)
        found.problems += paired.problems
        found.notes += [paired.note] * bool(paired.note)
        self.lone_images += paired.lone_images
        self.lone_masks += paired.lone_masks

    def _listed(self, folder: Path) -> dict[str, Path]:
        listed = list_folder(folder, ENDINGS)
        self.found.problems += listed.problems
        left_out = [name for name in listed.left_out if not is_hidden(Path(name))]
        self.found.notes += note_left_out(f"{self._short(folder)}/", left_out)
        return listed.files

    def _shared(self, folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
        """The images and the masks of a folder that holds both."""
        of_masks = _mask_stems(folder)
        masks = {stem: folder / files[0] for stem, files in of_masks.items()}
        taken = {name for files in of_masks.values() for name in files}
        images: dict[str, Path] = {}
        for name in _list(folder):
            if name in taken:
                continue
            stem = key_of(Path(name).stem)
            if images.setdefault(stem, folder / name) != folder / name:
                self.found.problems.append(
                    f"{folder / name} has the same name as {images[stem].name}. Remove one of the two"
                )
        for files in of_masks.values():
            if len(files) > 1:
                self.found.problems.append(
                    f"{folder / files[1]} has the same name as {files[0]}. Remove one of the two"
                )
        return images, masks

    def _short(self, path: Path) -> str:
        return path.relative_to(self.found.root).as_posix() if path.is_relative_to(self.found.root) else path.name

    def _names(self, paths: Sequence[Path]) -> str:
        """The first few of some files, by their paths in the folder."""
        return printable(", ".join(map(self._short, paths[:_SHOWN])) + ", ..." * (len(paths) > _SHOWN))

    def _report_lone(self, *, listed: bool) -> None:
        found = self.found
        if not found.pairs and self.lone_images and self.lone_masks:
            found.problems.append(
                f"{found.root}: no image pairs with a mask: {self._names(self.lone_images)}; "
                f"{self._names(self.lone_masks)}. Names must be equal up to an ending such as _mask; or give a CSV of "
                "pairs: data_dir=pairs.csv"
            )
            return
        for lone, what, other in ((self.lone_images, "image", "mask"), (self.lone_masks, "mask", "image")):
            if not lone:
                continue
            one = len(lone) == 1
            line = f"{_count(lone, what)} without {'a' if other == 'mask' else 'an'} {other}"
            names = self._names(lone)
            if listed:
                found.notes.append(f"{line}, in none of the lists: left out ({names})")
            else:
                remedy = (
                    "list the images to use in train.txt and test.txt"
                    if what == "image"
                    else f"remove {'it' if one else 'them'}"
                )
                found.problems.append(f"{found.root}: {line}: {names}. Add {'it' if one else 'them'}, or {remedy}")

    # --- lists ---

    def _apply(self, lists: Mapping[str, Path]) -> None:
        """Put the pairs into the parts of ``train.txt``, ``val.txt`` and ``test.txt``."""
        found = self.found
        if "train" not in lists:
            first = next(iter(lists.values()))
            found.problems.append(
                f"{first} lists images, but there is no train.txt beside it. Add it, or remove the list"
            )
            return
        by_stem: dict[str, list[Pair]] = {}
        for pair in found.pairs:
            by_stem.setdefault(key_of(pair.name), []).append(pair)
        listed_in: dict[Path, str] = {}
        parts = {part: self._read_list(part, path, by_stem, listed_in) for part, path in lists.items()}
        unlisted = [pair.image for pair in found.pairs if pair.image not in listed_in]
        if unlisted:
            names = ", ".join(path.name for path in lists.values())
            found.notes.append(f"{_count(unlisted, 'image')} in none of {names}: left out ({self._names(unlisted)})")
        found.parts = {part: pairs for part, pairs in parts.items() if pairs}

    def _read_list(
        self, part: str, path: Path, by_stem: Mapping[str, list[Pair]], listed_in: dict[Path, str]
    ) -> list[Pair]:
        """The pairs that a list names; ``listed_in`` has the list of each image that was met before."""
        lone = {key_of(image.stem) for image in self.lone_images}
        pairs: list[Pair] = []
        missing: list[str] = []
        without: list[str] = []
        twice: list[str] = []
        unlike: list[str] = []
        for line in _lines(path):
            pair = self._listed_pair(line, by_stem)
            name, *others = _entries(line)
            mask = others[0] if others and _is_image(others[0]) else ""
            if pair is None:
                (without if key_of(_stem(name)) in lone else missing).append(name)
            elif mask and key_of(_stem(mask)) not in (key_of(pair.mask.stem), key_of(pair.name)):
                unlike.append(f"{pair.name} ({_stem(mask)}, not {pair.mask.name})")
            elif pair.image in listed_in:
                twice.append(f"{pair.name} ({listed_in[pair.image]})")
            else:
                listed_in[pair.image] = path.name
                pairs.append(pair)
        if part != "train" and without and not (pairs or missing or twice or unlike):
            # As in a benchmark that keeps the masks of its test images to itself.
            self.found.notes.append(f"{path.name} lists {_count(without, 'image')}, all without a mask: it is left out")
            return []
        for names, what, remedy in (
            (missing, "not there", "Put what is missing there"),
            (without, "without a mask", "Add the masks"),
            (unlike, "with another mask than in the folders", "Give a CSV of pairs"),
            (twice, "listed already", "List each once"),
        ):
            if names:
                shown = printable(", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN))
                self.found.problems.append(
                    f"{path} lists {_count(names, 'image')} {what}: {shown}. {remedy}, or correct the list"
                )
        return pairs

    def _listed_pair(self, line: str, by_stem: Mapping[str, list[Pair]]) -> Pair | None:
        """The pair that a line of a list names: by the image's name or path, perhaps with its mask's path."""
        first, *others = _entries(line)
        two_paths = _is_image(first) and any(map(_is_image, others))
        for entry in dict.fromkeys((first,) if two_paths else (line.strip("\"'"), first)):
            named = by_stem.get(key_of(_stem(entry)), [])
            # Of several parts' images with one name, the one whose path ends as the entry does.
            tail = entry.replace("\\", "/").strip("/").rpartition("/")[0]
            while len(named) > 1 and tail:
                fitting = [pair for pair in named if pair.image.parent.as_posix().endswith(tail)]
                if fitting:
                    named = fitting
                    break
                tail = tail.partition("/")[2]  # what the path of another machine begins with
            if len(named) == 1:
                return named[0]
        return None


def _count(listed: Sequence[object], what: str) -> str:
    return f"{len(listed)} {what}{'s' * (len(listed) != 1)}"


def find_lists(root: Path) -> dict[str, Path]:
    """The lists of images by part, where a folder has any: ``train.txt``, ``val.txt``, ``test.txt``.

    Without ``train.txt`` and ``val.txt``, ``trainval.txt`` lists the images to train on.
    """
    for place in _LIST_FOLDERS:
        lists = {part: root / place / f"{part}.txt" for part in PARTS if (root / place / f"{part}.txt").is_file()}
        both = root / place / "trainval.txt"
        if lists.keys() <= {"test"} and both.is_file():
            lists = {"train": both, **lists}
        if lists:
            return lists
    return {}


def _note_unused(root: Path, lists: Mapping[str, Path]) -> list[str]:
    """A note on files that look like lists of images and are none by their names."""
    used = {path.name for path in lists.values()}
    if lists.keys() >= {"train", "val"}:
        used.add("trainval.txt")  # the two together
    names = [name for name in sorted(os.listdir(root)) if _LIKE_A_LIST.fullmatch(name) and name not in used]
    if not names:
        return []
    return [f"not used: {', '.join(names[:_SHOWN])}. Lists of images are named train.txt, val.txt and test.txt"]


def _lines(path: Path) -> list[str]:
    """The lines of a list or a CSV, without empty ones and comments."""
    try:
        text = decode(read_regular(path, _LARGEST_LIST))
    except OSError as error:
        reason = error.strerror or "it is not a file"
        raise FadevizError(f"{path} cannot be read: {reason}. Give a text file, or remove it") from error
    except UnicodeDecodeError as error:
        raise FadevizError(f"{path} cannot be read: {NO_TEXT}, or remove it") from error
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


NO_TEXT = "it is not text in UTF-8. Save it as UTF-8"


def decode(data: bytes) -> str:
    """The text of a file in UTF-8, or in UTF-16 with its mark, as some spreadsheets write it.

    Raises:
        UnicodeDecodeError: if it is neither.
    """
    return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")


_PATHS = re.compile(rf"\S.*?(?:{'|'.join(map(re.escape, ENDINGS))})(?=[\s,;]|$)", re.IGNORECASE)


def _entries(line: str) -> list[str]:
    """What a line of a list names: paths, which may have spaces, or words."""
    paths: list[str] = [path.strip("\"'") for path in _PATHS.findall(line)]
    if len(paths) > 1:
        return paths
    return [entry.strip("\"'") for entry in re.split(r"[\s,;]+", line) if entry]


def _stem(entry: str) -> str:
    name = entry.replace("\\", "/").rpartition("/")[2]
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in ENDINGS else name


# --- a CSV of pairs ---


def _read_csv(path: Path) -> Found:
    found = Found(path.parent)
    lines = _lines(path)
    if lines and re.fullmatch(r"sep=.?", lines[0]):  # for spreadsheets
        lines = lines[1:]
    if not lines:
        raise FadevizError(f"{path} is empty. Give the columns image and mask, and split if you like")
    delimiter = next((mark for mark in ("\t", ";", ",") if mark in lines[0]), ",")
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    except csv.Error as error:
        raise FadevizError(f"{path} is no CSV of paths: {error}. Give a row for each image") from error
    header = [cell.lower() for cell in rows[0]]
    columns = {
        name: header.index(word) for name, words in _COLUMNS.items() for word in reversed(words) if word in header
    }
    for name, words in (("mask", _MASKS_WORDS), ("image", _IMAGE_WORDS | {"file", "filename"})):
        if name not in columns and not _is_image(header[0]):  # img_path, segmentation_file
            fitting = [i for i, cell in enumerate(header) if _words(cell) & words and i not in columns.values()]
            columns |= {name: fitting[0]} if len(fitting) == 1 else {}
    begins = 1
    if not columns and len(rows[0]) in (2, 3) and _is_image(rows[0][0]):
        columns, begins = dict(zip(("image", "mask", "part"), range(len(rows[0])), strict=False)), 0
    if lacking := [name for name in ("image", "mask") if name not in columns]:
        raise FadevizError(
            f"{path} lacks the column {lacking[0]}: it has {', '.join(rows[0])[:80]}. Needed are image and mask, and "
            "split (train, val, test) if you like"
        )
    if begins and (unused := [cell for i, cell in enumerate(header) if cell and i not in columns.values()]):
        found.notes.append(f"columns of {path.name} that are not used: {', '.join(unused[:_SHOWN])}")
    missing: list[str] = []
    seen: dict[str, str] = {}
    for number, row in enumerate(rows[begins:], begins + 1):
        if max(columns.values()) >= len(row):
            found.problems.append(f"{path} has {len(row)} cells in row {number}, fewer than columns. Complete the row")
            continue
        image, mask = (_in_either_form(path.parent, row[columns[name]]) for name in ("image", "mask"))
        word = row[columns["part"]] if "part" in columns else ""
        part = next((part for part, names in PARTS.items() if word.lower() in names), None)
        if part is None and "part" in columns:
            found.problems.append(f"{path} has the split {word!r} in row {number}: it must be train, val or test")
            continue
        absent = [row[columns[name]] for name, file in (("image", image), ("mask", mask)) if not os.path.lexists(file)]
        if absent:
            missing += absent
            continue
        if (file := os.path.realpath(image)) in seen:
            found.problems.append(
                f"{path} lists {row[columns['image']]} in row {number} again, after {seen[file]}. List each once"
            )
            continue
        seen[file] = f"row {number}"
        found.parts.setdefault(part or "", []).append(Pair(image.stem, image, mask))
    if missing:
        shown = printable(", ".join(missing[:_SHOWN]) + ", ..." * (len(missing) > _SHOWN))
        found.problems.append(
            f"{path} lists {_count(missing, 'file')} not there: {shown}. Put what is missing there, or correct the "
            "list: paths are relative to it"
        )
    if not found.pairs and not found.problems:
        raise FadevizError(f"{path} lists no images. Give a row for each")
    shared = [mask.name for mask, count in Counter(pair.mask for pair in found.pairs).items() if count > 1]
    if shared:
        found.notes.append(f"masks of several images: {len(shared)} ({', '.join(shared[:_SHOWN])})")
    return found


def _in_either_form(root: Path, name: str) -> Path:
    """A file by its name in composed or decomposed Unicode, with slashes or backslashes, whichever is there."""
    spellings = dict.fromkeys((name, name.replace("\\", "/")))
    forms = [root / unicodedata.normalize(form, one) for one in spellings for form in ("NFC", "NFD")]
    return next((path for path in (root / name, *forms) if os.path.lexists(path)), root / name)


__all__ = ["ENDINGS", "IMAGES", "MASKS", "PARTS", "Found", "Pair", "find_lists", "find_pairs", "has_known_layout"]
