"""run.json: what it holds as frozen dataclasses, and the only code that reads and writes it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from ..errors import FadevizError, printable
from .files import read_regular, unreadable

FORMAT = 1
"""Version of the run folder; a run of a newer format is refused, not misread."""

ACTIVE = ("running", "recording")
"""The statuses of a run that is being recorded: by ``train``, and by a ``Recorder``."""


class _Kind(NamedTuple):
    """What a value of run.json must be, and how it becomes an attribute and JSON again."""

    name: str
    fits: Callable[[Any], bool]
    parse: Callable[[Any, str], Any] = lambda value, name: value
    store: Callable[[Any], Any] = lambda value: value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_list_of(one: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(item, one) for item in value)


def _are_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(_is_whole(one) or isinstance(one, float) for one in value.values())


def _are_numbers_or_none(value: object) -> bool:
    return isinstance(value, list) and all(one is None or _is_whole(one) or isinstance(one, float) for one in value)


_TEXT = _Kind("a string", lambda value: value is None or isinstance(value, str))
_WHOLE = _Kind("a whole number", lambda value: value is None or _is_whole(value))
_VERSION = _Kind("a version", lambda value: True, lambda value, name: int(value))
_THREADS = _Kind("a whole number from 1 to 9999", lambda value: _is_whole(value) and 0 < value < 10_000)
_CLASSES = _Kind("a whole number from 2 to 254", lambda value: _is_whole(value) and 2 <= value <= 254)
_TEXTS = _Kind("a list of strings", _is_list_of(str), lambda value, name: tuple(value), list)
_WHOLES = _Kind(
    "a list of whole numbers",
    lambda value: isinstance(value, list) and all(map(_is_whole, value)),
    lambda value, name: tuple(value),
    list,
)
_OBJECT = _Kind("an object", lambda value: isinstance(value, dict), store=dict)
_OBJECTS = _Kind(
    "a list of objects", _is_list_of(dict), lambda value, name: tuple(value), lambda value: [dict(one) for one in value]
)
_PREDICTED = _Kind("'classes' or 'alpha'", lambda value: value in (None, "classes", "alpha"))
_NUMBERS = _Kind("an object of numbers", _are_numbers, store=dict)
_NUMBERS_BY_CLASS = _Kind(
    "an object of lists of numbers",
    lambda value: isinstance(value, dict) and all(map(_are_numbers_or_none, value.values())),
    lambda value, name: {key: tuple(numbers) for key, numbers in value.items()},
    lambda value: {key: list(numbers) for key, numbers in value.items()},
)


class _Section(Mapping[str, Any]):
    """An object of run.json whose keys are not all known beforehand; those that are asked for are attributes too."""

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values = dict(values or {})

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._values!r})"


class StoredConfig(_Section):
    """The settings of a run: those of a ``RunConfig``; of a ``Recorder`` the seed alone, if that is known."""

    CHECKED: ClassVar = {"seed": _WHOLE, "labels": _TEXT}

    @property
    def seed(self) -> int | None:
        """The seed of the training."""
        return self.get("seed")

    @property
    def labels(self) -> str:
        """``true`` or ``shuffled``; empty where nothing is stored."""
        return self.get("labels") or ""

    @property
    def data(self) -> str:
        """The name under which the data set was asked for; empty where nothing is stored."""
        return str(self.get("data") or "")


class StoredData(_Section):
    """The data set of a run, as it describes itself."""

    CHECKED: ClassVar = {"name": _TEXT, "notes": _TEXTS}

    @property
    def name(self) -> str:
        """The name of the data set; empty where nothing is stored."""
        return self.get("name") or ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on its files, a sentence each."""
        return tuple(self.get("notes", ()))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes, by their labels."""
        names = self.get("classes")
        return tuple(map(str, names)) if isinstance(names, list | tuple) else ()

    @property
    def class_colors(self) -> tuple[tuple[int, int, int], ...]:
        """The colours of its classes, by their labels: red, green and blue from 0 to 255. Empty if it has none."""
        colors = self.get("colors")
        if not isinstance(colors, list | tuple) or not all(map(_is_color, colors)):
            return ()
        return tuple((red, green, blue) for red, green, blue in colors)

    def class_name(self, label: int) -> str:
        """The name of a class, or ``class N`` if it has none."""
        return self.classes[label] if 0 <= label < len(self.classes) else f"class {label}"


def _is_color(value: Any) -> bool:
    three = isinstance(value, list | tuple) and len(value) == 3
    return three and all(_is_whole(one) and 0 <= one < 256 for one in value)


def _section(cls: type[StoredConfig] | type[StoredData]) -> _Kind:
    def parse(values: dict[str, Any], name: str) -> _Section:
        for key, kind in cls.CHECKED.items():
            if key in values and not kind.fits(values[key]):
                raise ValueError(f"{name}.{key} is not {kind.name}")
        return cls(values)

    return _Kind("an object", lambda value: isinstance(value, dict), parse, dict)


_CONFIG, _NO_CONFIG = _section(StoredConfig), StoredConfig()
_DATA, _NO_DATA = _section(StoredData), StoredData()
_NO_VALUES: Mapping[str, Any] = {}


def _key(kind: _Kind, default: Any = None) -> Any:
    """A field that is stored as ``kind``, and left out of the file while it is its default."""
    return field(default_factory=lambda: default, metadata={"kind": kind, "default": default})


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """The size of a layer's maps.

    Attributes:
        size: height and width of the maps of its first call.
        calls: height and width of each call's maps, if it runs several times in a forward pass.
        source: its name in the model, if it was recorded under another one.
        extra: what else the file holds.
    """

    size: tuple[int, ...] = _key(_WHOLES, ())
    calls: tuple[tuple[int, ...], ...] = _key(
        _Kind(
            "a list of lists of whole numbers",
            lambda value: isinstance(value, list) and all(map(_WHOLES.fits, value)),
            lambda value, name: tuple(map(tuple, value)),
            lambda value: list(map(list, value)),
        ),
        (),
    )
    source: str | None = _key(_TEXT)
    extra: Mapping[str, Any] = field(default_factory=dict)
    order: tuple[str, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class ObservationInfo:
    """The observed images.

    Attributes:
        names: the name of each.
        indices: the index of each in the test images.
        mode: ``eval`` or ``batch``: which statistics BatchNorm uses in an observation.
        foreground: the class of each whose outline and interior are measured; None where that is every class but 0.
        images: ``none`` if the images themselves are unknown, as those of imported maps may be.
        extra: what else the file holds.
    """

    names: tuple[str, ...] = _key(_TEXTS, ())
    indices: tuple[int, ...] = _key(_WHOLES, ())
    mode: str | None = _key(_TEXT)
    foreground: tuple[int, ...] | None = _key(_WHOLES)
    images: str | None = _key(_TEXT)
    extra: Mapping[str, Any] = field(default_factory=dict)
    order: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def name_of(self, image: int) -> str:
        """The name of an observed image, or ``image N`` if it has none."""
        return self.names[image] if image < len(self.names) else f"image {image}"


_NO_OBSERVATION = ObservationInfo()

_LAYERS = _Kind(
    "an object",
    lambda value: isinstance(value, dict),
    lambda value, name: {layer: _parse_layer(entry, f"{name}.{layer}") for layer, entry in value.items()},
    lambda value: {layer: _to_dict(entry) for layer, entry in value.items()},
)
_OBSERVATION = _Kind(
    "an object",
    lambda value: isinstance(value, dict),
    lambda value, name: _parse(ObservationInfo, value, f"{name}."),
    lambda value: _to_dict(value),
)


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What run.json holds. Runs of earlier versions lack some of it, and those of a ``Recorder`` more.

    Attributes that have their default are left out of the file. Change one with :func:`dataclasses.replace`.

    Attributes:
        run_id: the id that every file of the run carries.
        format: the version of the folder.
        upsampler: the operator with its options, or the name that a ``Recorder`` was given.
        title: the operator as papers write it.
        network: the network with its options, or the class of a ``Recorder``'s model.
        network_title: the network as papers write it.
        task: ``segmentation`` or ``matting``.
        classes: the number of classes, including background.
        parameters: the number of the network's parameters.
        weights: the initial weights of the encoder.
        config: the settings.
        settings: the settings of the training that a ``Recorder`` was given, which are any JSON values.
        schedule: the steps to record; of a finished ``Recorder`` those that were recorded.
        kinds: the recorded kinds of maps.
        predictions: ``classes`` or ``alpha`` if each snapshot holds what the model predicted for the observed images:
            the class of each pixel, or its alpha from 0 to 255.
        figure_layer: the layer that figures show.
        observation: the observed images.
        device: the name of the device.
        optimizer: the class of the optimizer.
        threads: the number of CPU threads.
        processes: the number of training processes, if there were several.
        reassembly: the backend of the reassembly kernels.
        versions: the version of each library.
        data: the data set.
        layers: the recorded layers, in the network's order.
        notes: notes on the run, a sentence each.
        status: ``running``, ``recording``, ``finished``, ``interrupted`` or ``failed``.
        message: the reason for an early end.
        last_step: optimiser steps done.
        seconds: time spent, by activity.
        result: the metrics of the last test.
        class_metrics: those of each class, by name and label, where there are more than two; None for a class that
            occurs neither in the masks nor in the predictions.
        errors: errors of a ``Recorder``: ``message`` and, where known, ``step``.
        imported: what the maps were imported from; None if they were recorded.
        writer: the machine that holds the folder's lock, while the run is active.
        extra: what else the file holds; it is kept when the file is written again.
        order: the keys in the order in which the file holds them.
    """

    run_id: str = _key(_TEXT, "")
    format: int = _key(_VERSION, FORMAT)
    upsampler: str | None = _key(_TEXT)
    title: str | None = _key(_TEXT)
    network: str | None = _key(_TEXT)
    network_title: str | None = _key(_TEXT)
    task: str | None = _key(_TEXT)
    classes: int | None = _key(_CLASSES)
    parameters: int | None = _key(_WHOLE)
    weights: str | None = _key(_TEXT)
    config: StoredConfig = _key(_CONFIG, _NO_CONFIG)  # noqa: RUF009 - a field
    settings: Mapping[str, Any] = _key(_OBJECT, _NO_VALUES)
    schedule: tuple[int, ...] = _key(_WHOLES, ())
    kinds: tuple[str, ...] = _key(_TEXTS, ())
    predictions: str | None = _key(_PREDICTED)
    figure_layer: str | None = _key(_TEXT)
    observation: ObservationInfo = _key(_OBSERVATION, _NO_OBSERVATION)  # noqa: RUF009 - a field
    device: str | None = _key(_TEXT)
    optimizer: str | None = _key(_TEXT)
    threads: int | None = _key(_THREADS)
    processes: int | None = _key(_WHOLE)
    reassembly: str | None = _key(_TEXT)
    versions: Mapping[str, Any] = _key(_OBJECT, _NO_VALUES)
    data: StoredData = _key(_DATA, _NO_DATA)  # noqa: RUF009 - a field
    layers: Mapping[str, LayerInfo] = _key(_LAYERS, _NO_VALUES)
    notes: tuple[str, ...] = _key(_TEXTS, ())
    status: str | None = _key(_TEXT)
    message: str | None = _key(_TEXT)
    last_step: int | None = _key(_WHOLE)
    seconds: Mapping[str, float] = _key(_NUMBERS, _NO_VALUES)
    result: Mapping[str, float] = _key(_NUMBERS, _NO_VALUES)
    class_metrics: Mapping[str, tuple[float | None, ...]] = _key(_NUMBERS_BY_CLASS, _NO_VALUES)
    errors: tuple[Mapping[str, Any], ...] = _key(_OBJECTS, ())
    imported: str | None = _key(_TEXT)
    writer: str | None = _key(_TEXT)
    extra: Mapping[str, Any] = field(default_factory=dict)
    order: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def object_name(self, image: int) -> str:
        """The name of the class that is the object of an observed image; empty for two classes without names."""
        chosen = self.observation.foreground
        if chosen is not None and image < len(chosen) and ((self.classes or 2) > 2 or self.data.classes):
            return self.data.class_name(chosen[image])
        # Otherwise every class but 0 is inside: of two, that is class 1.
        return self.data.class_name(1) if chosen is None and len(self.data.classes) == 2 else ""

    @property
    def flat_settings(self) -> dict[str, Any]:
        """The settings of a user's own training, those of dicts in dicts by dotted names: ``optimizer.lr``."""
        return dict(_flat(self.settings, ""))

    @classmethod
    def from_json(cls, text: bytes, where: str) -> RunInfo:
        """Parse the text of a run.json. Strings come back without control characters.

        Args:
            text: the file's content.
            where: the run's folder or address, for errors.

        Raises:
            FadevizError: if it is damaged, or of a newer format.
        """
        remedy = "Record the run again with overwrite=True"
        try:
            values = json.loads(text.decode())
            version, run_id = int(values["format"]), values["run_id"]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise FadevizError(f"{where}/run.json is damaged ({error}). {remedy}") from error
        if version > FORMAT:
            raise FadevizError(
                f"{where} has format {version}, this fadeviz reads up to {FORMAT}. Upgrade: pip install -U fadeviz"
            )
        try:
            if not isinstance(run_id, str):
                raise ValueError("run_id is not a string")
            return cls.from_dict(_printable(values))
        except ValueError as error:
            raise FadevizError(f"{where}/run.json is damaged ({error}). {remedy}") from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunInfo:
        """The inverse of :meth:`to_dict`.

        Args:
            values: JSON values by the keys of run.json.

        Raises:
            ValueError: if one of them is not what it has to be.
        """
        return _parse(cls, {key: value for key, value in values.items() if key != "crc32"}, "")

    def over(self, earlier: RunInfo, *, without: Sequence[str] = ()) -> RunInfo:
        """This description of a run that is resumed, completed with what is known from its earlier part alone.

        Args:
            earlier: what its run.json holds; its keys keep their places.
            without: keys that described the earlier part alone.
        """
        known = [one for one in dataclasses.fields(self) if "kind" in one.metadata]
        unset = [one.name for one in known if getattr(self, one.name) is one.metadata["default"]]
        kept = {name: getattr(earlier, name) for name in unset if name not in without}
        order = tuple(key for key in earlier.order if key not in without)
        return dataclasses.replace(self, **kept, extra={**earlier.extra, **self.extra}, order=order)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values, with the keys in the file's order."""
        return {"format": self.format, "run_id": self.run_id, **_to_dict(self)}

    def to_json(self) -> bytes:
        """The text of run.json, with a checksum."""
        values = self.to_dict()
        text = json.dumps({**values, "crc32": _checksum(values)}, indent=2, ensure_ascii=False, default=json_value)
        # Half a character, as in a path that is not UTF-8, has to be escaped; JSON's escapes are Python's.
        return (text + "\n").encode(errors="backslashreplace")


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


_Part = TypeVar("_Part", bound="RunInfo | ObservationInfo | LayerInfo")


def _parse(cls: type[_Part], values: dict[str, Any], prefix: str) -> _Part:
    known = {}
    for one in dataclasses.fields(cls):
        kind: _Kind | None = one.metadata.get("kind")
        if kind is None or one.name not in values:
            continue
        value = values[one.name]
        if not kind.fits(value):
            raise ValueError(f"{prefix}{one.name} is not {kind.name}")
        if value is not None:
            known[one.name] = kind.parse(value, f"{prefix}{one.name}")
    extra = {key: value for key, value in values.items() if key not in known}
    return cls(**known, extra=extra, order=tuple(values))


def _parse_layer(entry: Any, name: str) -> LayerInfo:
    if not isinstance(entry, dict):
        raise ValueError(f"{name} is not an object")
    return _parse(LayerInfo, entry, f"{name}.")


def _to_dict(info: RunInfo | ObservationInfo | LayerInfo) -> dict[str, Any]:
    values = dict(info.extra)
    for one in dataclasses.fields(info):
        kind: _Kind | None = one.metadata.get("kind")
        value = getattr(info, one.name)
        if kind is not None and value is not one.metadata["default"]:
            values[one.name] = kind.store(value)
    names = [one.name for one in dataclasses.fields(info)]
    return {key: values[key] for key in dict.fromkeys([*info.order, *names, *values]) if key in values}


def _runs_within(path: Path, address: str) -> str:
    """What to give instead of a folder that is no run: the runs in it, as a sweep leaves them."""
    with contextlib.suppress(OSError):
        count = sum(os.path.isfile(os.path.join(one, "run.json")) for one in os.scandir(path))
        if count:
            return f"It holds {count} run{'s' * (count > 1)}: give {address.rstrip('/')}/*/"
    return "Give the folder of a run"


def read_info(path: Path, address: str) -> RunInfo:
    """Read the run.json of a folder.

    Args:
        path: the folder.
        address: how messages name it.

    Raises:
        FadevizError: if there is no such folder, or its run.json is missing, damaged, or of a newer format.
    """
    if not os.path.isdir(path):  # False as well for what can be no path
        raise FadevizError(f"no run folder {address}. Make one: fadeviz record --out {address} ...")
    try:
        text = read_regular(path / "run.json")
    except FileNotFoundError:
        raise FadevizError(f"{address} is not a run: it has no run.json. {_runs_within(path, address)}") from None
    except OSError as error:
        if reason := unreadable(error):
            raise FadevizError(f"{address}/run.json {reason}. Fix that, or choose another folder") from error
        raise FadevizError(
            f"{address}/run.json is damaged ({error}). Record the run again with overwrite=True"
        ) from error
    return RunInfo.from_json(text, address)


def check_sum(file: Path) -> str:
    """Compare a run.json with its checksum; returns what is wrong, or an empty string."""
    try:
        values = json.loads(read_regular(file).decode())
        if "crc32" in values and values["crc32"] != _checksum(values):
            return "not what was written (checksum): damaged, or changed by hand"
    except (OSError, ValueError, TypeError, RecursionError) as error:
        return f"damaged: {error}"  # since it was opened
    return ""


def _checksum(values: Mapping[str, object]) -> int:
    # As they are read: lists for tuples, strings for numbers as names.
    kept = {key: value for key, value in values.items() if key != "crc32"}
    return zlib.crc32(json.dumps(json.loads(json.dumps(kept, default=json_value)), sort_keys=True).encode())


def json_value(value: object) -> object:
    """The JSON value of a numpy number or array, or of a single-element tensor.

    Raises:
        TypeError: if it is anything else.
    """
    if isinstance(value, np.ndarray):
        return value.tolist()
    if callable(item := getattr(value, "item", None)):
        return item()
    raise TypeError(f"{type(value).__name__} cannot be stored in a run's JSON files. Give numbers, strings or lists")


def _printable(value: Any) -> Any:
    """The value with every string as one line that does nothing to a terminal, whoever wrote it."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_printable(one) for one in value]
    if isinstance(value, dict):
        return {printable(key): _printable(one) for key, one in value.items()}
    return value
