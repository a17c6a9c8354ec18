"""What sweeps will take: runs, time, disk, and the memory of the run that needs the most."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.analysis.memory.estimate import KEPT_FREE, estimate_of
from sparta_bench.analysis.run_cost import Cost, cost_of, race_share, rows_at_once, time_key
from sparta_bench.config.presets import Lengths
from sparta_bench.config.schema import Config
from sparta_bench.models.counts import ParameterCounts, Shapes, count_parameters, shapes_for
from sparta_bench.models.dtypes import precision_of
from sparta_bench.tables.table import Table, table_of
from sparta_bench.text import as_bytes
from sparta_bench.training.step_time import DEVICES, Range, basis_of

RECORD_BYTES = 8_200  # a record's, the mean of the 192 in results/tiny
WEIGHT_BYTES = 2  # of the base models, which are stored in bfloat16
SCALARS_IN_CHECKPOINT = 4  # for each trained one: itself, the best so far, two moments


@dataclass(frozen=True)
class Price:
    """Of a sweep, as a grid and with `search=race`. `peak` is that of the run that needs the most
    memory, with its description."""

    runs: int
    seconds: Range | None
    race_seconds: Range | None
    disk_bytes: int
    peak_bytes: int
    peak_of: str
    sources: tuple[str, ...]  # of the lengths: measured, assumed


@dataclass(frozen=True)
class Priced:
    """One job of a sweep, and its task's lengths."""

    config: Config
    data: Lengths


def price_of(
    jobs: Sequence[Priced],
    device: str | None,
    peaks: dict[str, int] | None = None,
    gpus: int = 1,
) -> Price:
    """Of all jobs of a sweep, one after the other on one device; the peak is that of each of
    `gpus`, among which FSDP cuts the model. `peaks` holds what `step_peaks` found for other sweeps.
    Raises InputError if a model's shape cannot be had, or a method does not fit it."""
    shapes: dict[str, Shapes] = {}
    costs: dict[str, Cost] = {}
    counted: dict[str, ParameterCounts] = {}
    cells: dict[str, list[Config]] = defaultdict(list)  # what a race compares
    checkpoint, kept = 0, RECORD_BYTES * len(jobs)
    for job in jobs:
        config, name = job.config, job.config.model.name
        if name not in shapes:
            shapes[name] = shapes_for(config.model)
        key = time_key(config)
        if key not in costs:
            costs[key] = cost_of(config, shapes[name], job.data, device)
            labels = len(config.task.labels)
            counted[key] = counts = count_parameters(shapes[name], labels, config.method)
            scalar = precision_of(config, torch.device("cuda")).trained_dtype.itemsize
            checkpoint = max(checkpoint, SCALARS_IN_CHECKPOINT * scalar * counts.trainable)
        counts = counted[key]
        if config.save == "full":
            kept += WEIGHT_BYTES * counts.total
        elif config.save == "adapter":  # a scalar takes four bytes, and its index as many
            kept += 4 * counts.trainable + 4 * (counts.sampled or 0)
        cells[repr((name, config.task.name, config.method))].append(config)
    scalars = sum(math.prod(size) for one in shapes.values() for size in one.tensors.values())
    needs = step_peaks(((job.config, job.data.shared) for job in jobs), "cuda", peaks, gpus)
    return Price(
        len(jobs),
        _seconds(costs, cells, race=False),
        _seconds(costs, cells, race=True),
        WEIGHT_BYTES * scalars + checkpoint + kept,
        *max(needs),
        tuple(sorted({job.data.source for job in jobs})),
    )


def _seconds(
    costs: Mapping[str, Cost], cells: Mapping[str, Sequence[Config]], race: bool
) -> Range | None:
    total = Range(0.0, 0.0)
    for configs in cells.values():
        settings, confirm = len({config.train for config in configs}), configs[0].search.confirm
        share = race_share(settings, len(configs) / settings, confirm) if race else 1.0
        for config in configs:
            seconds = costs[time_key(config)].seconds
            if seconds is None:
                return None
            total = total.plus(seconds.times(share if settings > 1 else 1.0))
    return total


def step_peaks(
    runs: Iterable[tuple[Config, int]],
    kind: str,
    known: dict[str, int] | None = None,
    gpus: int = 1,
) -> list[tuple[int, str]]:
    """The bytes that a training step takes at its peak on `cpu` or `cuda`, and of which run: of
    runs that differ in nothing else that decides it, of the one with the most tokens.

    Each run has the number of tokens that all its inputs begin with. `known` holds what was found
    before on this kind and number of devices, since a dry run takes seconds. Raises InputError if
    a model cannot be run dry, or a method does not fit it.
    """
    known = {} if known is None else known
    largest: dict[str, tuple[Config, int]] = {}
    for run in runs:
        train, model = run[0].train, run[0].model
        ways = (train.gradient_checkpointing, train.trained_dtype, train.share_prefix)
        # base and instruction models may be of one shape
        shape = model.shape or model.name
        decides = repr((shape, model.dtype, run[0].method, ways, train.dropout))
        largest[decides] = max(largest.get(decides, run), run, key=lambda one: _tokens_of(*one))
    found = []
    for decides, (config, shared) in largest.items():
        key = f"{decides} {_tokens_of(config, shared)}"
        if key not in known:
            known[key] = step_peak(config, shared, kind, gpus)
        density = getattr(config.method, "density", None)
        method = config.method.name if density is None else f"{config.method.name} {density:g}"
        rows, tokens = rows_at_once(config), config.task.max_train_tokens
        found.append((known[key], f"{method} on {config.model.name}, {rows} × {tokens} tokens"))
    return found


def _tokens_of(config: Config, shared: int) -> int:
    """The most that go through a layer in training."""
    rows, tokens = rows_at_once(config), config.task.max_train_tokens
    return rows * (tokens - shared) + shared


def step_peak(config: Config, shared: int, kind: str, gpus: int = 1) -> int:
    """Bytes of a training step whose inputs are all as long as training allows, on each of `gpus`,
    among which FSDP cuts the model."""
    on, tokens = config.train.gradient_checkpointing, config.task.max_train_tokens
    rows, shared = rows_at_once(config), min(shared, tokens - 1)
    setting = Setting((), config, torch.device(kind), rows, tokens, shared)
    return estimate_of("", setting, ways=(on,), gpus=gpus).peak_bytes(setting.rows, on)


# -------------------------------------------------------------------------------- for people
def fits(peak_bytes: int, device: str | None) -> bool | None:
    """Whether a step fits a device of `step_time.DEVICES`; None where its memory is not known."""
    gib = DEVICES[device].memory_gib if device else None
    return None if gib is None else peak_bytes <= (gib << 30) - KEPT_FREE


def table_of_prices(prices: dict[str, Price], device: str | None, gpus: int = 1) -> Table:
    """A row for each sweep, as Markdown, CSV or LaTeX may show it."""
    gib = DEVICES[device].memory_gib if device else None
    rows = [
        [
            name,
            f"{price.runs:,}",
            _hours(price.seconds),
            _hours(price.race_seconds),
            as_bytes(price.disk_bytes),
            as_bytes(price.peak_bytes),
            price.peak_of,
            {None: "-", True: "yes", False: "no"}[fits(price.peak_bytes, device)],
        ]
        for name, price in prices.items()
    ]
    title = DEVICES[device].title if device else "this device"
    heads = ["sweep", "runs", "hours, grid", "hours, race", "disk", "peak of a step", "of"]
    heads.append("fits" if gib is None else f"fits {gib} GiB")
    assumed = any("assumed" in price.sources for price in prices.values())
    notes = [
        f"Hours on one {title}, an estimate {basis_of(device)}."
        if device
        else "No time is known for this device; --gpu names one that is.",
        "Training and evaluation alone; where training may stop early, to its end.",
        "Lengths are those of conf/lengths.csv" + (", some of them assumed." if assumed else "."),
        "disk: the base models, the records, one checkpoint, and what runs save. peak: the longest "
        "inputs that training allows, estimated as memory does. What does not fit may with "
        "train.accumulation_steps, which cuts a batch into parts.",
    ]
    if gpus > 1:
        notes.append(
            f"peak and fits are those of each of {gpus} GPUs that share the model "
            "(train.sharding=fsdp), hours those of one."
        )
    notes.append(
        "hours, race: with search=race, by the share of a grid's steps that races over full grids "
        "of tiny models took (results/race). A table without a grid has nothing to race."
    )
    return table_of("price", f"What sweeps take on one {title}", heads, rows, *notes)


def as_dict(price: Price) -> dict[str, Any]:
    values = asdict(price)
    for name in ("seconds", "race_seconds"):
        values[name] = values[name] and Range(*values[name])._asdict()
    return values


def _hours(seconds: Range | None) -> str:
    if seconds is None:
        return "-"
    low, high = (value / 3600 for value in seconds)
    digits = 0 if low >= 10 else 1
    return f"{low:,.{digits}f} to {high:,.{digits}f}"
