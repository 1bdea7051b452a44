"""Overviews: upsampling operators with their cost, and a network's layers with their maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .models import all_networks, build_network, find_network
from .models.costs import Cost, operator_cost
from .recording.layer_names import find_layers
from .recording.layer_tree import layers
from .upsamplers import all_upsamplers, find_upsampler, parse_upsampler

_READS = {"feature": "encoder", "indices": "indices"}


@dataclass(frozen=True)
class UpsamplerInfo:
    """One row of :func:`list_upsamplers`.

    Attributes:
        name: the operator, with the options that were given.
        needs: what it reads from the encoder: ``feature``, ``indices``, or nothing.
        costs: parameters and multiply-adds of all operators of a network for one image, by network.
        year: year of the paper; None if there is none.
        paper: the paper's authors and venue.
        what: the first line of its documentation.
    """

    name: str
    needs: str
    costs: Mapping[str, Cost]
    year: int | None
    paper: str
    what: str


@dataclass(frozen=True, repr=False)
class UpsamplerTable:
    """The operators and their costs; iterating gives a row for each, printing the table.

    Attributes:
        rows: a row for each operator.
        networks: title and image size by the name of each network whose costs are listed.
    """

    rows: tuple[UpsamplerInfo, ...]
    networks: Mapping[str, str]

    def __iter__(self) -> Iterator[UpsamplerInfo]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_dicts(self) -> list[dict[str, Any]]:
        """A JSON-serialisable dictionary for each operator; the costs are under the networks' names."""
        return [
            {
                "name": row.name,
                "needs": row.needs,
                **{network: cost._asdict() for network, cost in row.costs.items()},
                "year": row.year,
                "paper": row.paper,
                "what": row.what,
            }
            for row in self.rows
        ]

    def __str__(self) -> str:
        wide = max(len("name"), *(len(row.name) for row in self.rows)) + 2
        lines = [
            f"{'':{wide}}{'':9}" + "".join(f"{title:>21}" for title in self.networks.values()),
            f"{'name':{wide}}{'reads':9}" + f"{'parameters':>11}{'M mul-add':>10}" * len(self.networks) + "  source",
        ]
        for row in self.rows:
            costs = [row.costs[name] for name in self.networks]
            numbers = "".join(f"{cost.parameters:>11,}{cost.multiply_adds / 1e6:>10,.1f}" for cost in costs)
            source = "" if row.year is None else f"{row.paper} {row.year}"
            lines.append(f"{row.name:{wide}}{_READS.get(row.needs, ''):9}{numbers}  {source}".rstrip())
        return "\n".join([*lines, "", _LEGEND])

    __repr__ = __str__


_LEGEND = """\
reads: besides the decoder map. The numbers are for all operators of a network and one image: SegNet's
and U-Net's five (512, 512, 256, 128, 64 channels), six of 256 channels in SegFormer's head, four of the
matting network's decoder (256, 128, 64, 64). M mul-add: millions of multiply-adds, which the papers' tables
give as FLOPs. With options: fadeviz upsamplers indexnet:kind=m2o"""


def list_upsamplers(names: Sequence[str] = (), *, networks: Sequence[str] = ("segnet", "segformer")) -> UpsamplerTable:
    """The upsampling operators and what they cost, as ``fadeviz upsamplers`` prints them.

    Args:
        names: operators, which may have options: ``"indexnet:kind=m2o"``; all if empty.
        networks: names of the networks whose costs are listed; if empty, all that have them.

    Returns:
        The table: print it, or iterate over its rows.

    Raises:
        FadevizError: if there is no operator, option or network of that name.

    Example:
        >>> (row,) = list_upsamplers(["carafe"])
        >>> row.costs["segnet"].parameters
        383028
    """
    listed = [name for name, network in all_networks().items() if network.sites] if not networks else []
    titles = {}
    for name in networks or listed:
        network = find_network(name)
        titles[name] = f"{network.title} {network.reference_size}x{network.reference_size}"
    rows = []
    for name in names or all_upsamplers():
        entry = find_upsampler(parse_upsampler(name)[0])
        what = (entry.build.__doc__ or "").partition("\n")[0]  # none under python -OO
        costs = {network: operator_cost(name, network) for network in titles}
        rows.append(UpsamplerInfo(name, entry.needs, costs, entry.year or None, entry.paper, what))
    return UpsamplerTable(tuple(rows), titles)


@dataclass(frozen=True)
class LayerInfo:
    """One row of :func:`list_layers`.

    Attributes:
        name: the layer's name: a module's, or ``decoder.up1:cat`` for calls of a function in it.
        module: the class of its module, or the function.
        channels: number of channels of its maps; 0 if its output is not a map.
        stride: how many times smaller than the image its maps are, per side; 0 if its output is not a map.
        recorded: whether it is recorded by default.
        shown: whether figures show it by default.
    """

    name: str
    module: str
    channels: int
    stride: float
    recorded: bool
    shown: bool


@dataclass(frozen=True, repr=False)
class LayerTable:
    """The layers of a network; iterating gives a row for each, printing the table."""

    rows: tuple[LayerInfo, ...]

    def __iter__(self) -> Iterator[LayerInfo]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_dicts(self) -> list[dict[str, Any]]:
        """A JSON-serialisable dictionary for each layer."""
        return [asdict(row) for row in self.rows]

    def __str__(self) -> str:
        first, second = (max(len(getattr(row, field)) for row in self.rows) + 2 for field in ("name", "module"))
        lines = [f"{'layer':{first}}{'module':{second}}{'channels':14}by default"]
        for row in self.rows:
            maps = f"{row.channels} at 1/{row.stride:g}" if row.channels else ""
            mark = "recorded" * row.recorded + ", figures show this one" * row.shown
            lines.append(f"{row.name:{first}}{row.module:{second}}{maps:14}{mark}".rstrip())
        return "\n".join(lines)

    __repr__ = __str__


def list_layers(network: str, upsampler: str = "fade") -> LayerTable:
    """The layers of a network that can be recorded, as ``fadeviz layers`` prints them.

    Args:
        network: a network, which may have options: ``"segformer:backbone=b1"``.
        upsampler: the operator at every stage, which may have options.

    Returns:
        The table: print it, or iterate over its rows.

    Raises:
        FadevizError: if there is no network, operator or option of that name.

    Example:
        >>> [row.name for row in list_layers("segnet", "bilinear") if row.shown]
        ['decoder.3.upsample']
    """
    model = build_network(network, upsampler)
    recorded = set(find_layers(dict(model.named_modules()), model.layers, model.title))
    side = 2 * model.stride
    rows = []
    for row in layers(model, torch.zeros(1, model.image_channels, side, side)).rows[1:]:
        shape = row.shapes[0] if row.shapes and len(row.shapes[0]) == 4 else (0, 0, 0, 0)
        module = f"{row.function}()" if row.function else row.module
        stride = side / shape[2] if shape[2] else 0
        rows.append(LayerInfo(row.name, module, shape[1], stride, row.name in recorded, row.name == model.figure_layer))
    return LayerTable(tuple(rows))


__all__ = ["LayerInfo", "LayerTable", "UpsamplerInfo", "UpsamplerTable", "list_layers", "list_upsamplers"]
