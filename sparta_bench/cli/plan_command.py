"""The command line of `sparta-bench plan`. Nothing heavy is imported before it is read."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from functools import partial

from sparta_bench.cli import options as shared
from sparta_bench.config.compose import compose, compose_all
from sparta_bench.config.presets import lengths_for
from sparta_bench.config.schema import Config
from sparta_bench.config.sweeps import sweep_jobs
from sparta_bench.errors import InputError, fitted


def _parser() -> shared.Parser:
    parser = shared.Parser(
        prog="sparta-bench plan",
        usage="sparta-bench plan [options] [key=value ...]\n"
        "       sparta-bench plan -m [options] +sweep=NAME,NAME [key=value ...]",
        description="Parameter counts, data counts, lengths, steps, work, time and memory of an\n"
        "experiment, without weights. With -m a table of what sweeps take: a row for each\n"
        "NAME, with runs, hours, disk and memory, without data as well.",
    )
    shared.add_overrides(parser)
    shared.add_outputs(parser, json="print one JSON object and nothing else")
    parser.add_argument("-m", "--multirun", action="store_true", help="price sweeps")
    text = "the device that the time is for: h100, h200, a100, 4090 or cpu (this machine's)"
    parser.add_argument("--gpu", metavar="NAME", help=text)
    parser.add_argument(
        "--gpus",
        metavar="N",
        type=shared.positive,
        default=1,
        help="GPUs, among which train.sharding=fsdp cuts the model: the peak of a step is that of "
        "each, times are those of one (1)",
    )
    return parser


def main(arguments: list[str]) -> None:
    """Print the plan, for people or as JSON.

    Raises
    ------
    InputError
        For an unknown option, or an experiment that cannot be planned.
    """
    options = _parser().parse_intermixed_args(arguments)
    if options.multirun:
        _sweeps(options)
        return
    config = compose(options.overrides)
    _check_gpus(options.gpus, [config])
    from sparta_bench.analysis.plan import as_json, as_text, plan
    from sparta_bench.data.splits import complete
    from sparta_bench.runs.time_estimates import recorded_seconds

    planned = plan(complete(config), options.gpu, partial(recorded_seconds, config), options.gpus)
    if options.json:
        print(as_json(planned))
    else:
        print("\n".join(fitted(line, sys.stdout) for line in as_text(planned).splitlines()))


def _check_gpus(gpus: int, configs: Iterable[Config]) -> None:
    if gpus > 1 and any(config.train.sharding == "none" for config in configs):
        raise InputError(
            f"plan: --gpus {gpus}: give train.sharding=fsdp too, which cuts the model among GPUs"
        )


def _sweeps(options: argparse.Namespace) -> None:
    named = [word for word in options.overrides if word.lstrip("+").startswith("sweep=")]
    others = [word for word in options.overrides if word not in named]
    names = [name for word in named for name in word.partition("=")[2].split(",")]
    jobs = {name: sweep_jobs([f"+sweep={name}", *others]) for name in names}
    jobs = jobs or {"-m": sweep_jobs(others)}
    configs = {name: compose_all(of_sweep) for name, of_sweep in jobs.items()}
    _check_gpus(options.gpus, (config for some in configs.values() for config in some))
    tasks = {c.task.name: c for some in configs.values() for c in some}
    unknown = sorted(task for task, config in tasks.items() if lengths_for(config) is None)
    if unknown:
        raise InputError(
            f"plan -m: conf/lengths.csv has no row for task={', task='.join(unknown)}, and no time "
            "comes out without one"
        )
    from sparta_bench.analysis.price import Priced, as_dict, price_of, table_of_prices
    from sparta_bench.devices import device_kind
    from sparta_bench.tables.table import as_markdown
    from sparta_bench.training.step_time import device_named

    first = next(iter(configs.values()))[0]
    device = device_named(options.gpu, device_kind(first.device, f"device={first.device}"))
    peaks: dict[str, int] = {}
    prices = {
        name: price_of(
            [Priced(config, length) for config in configs[name] if (length := lengths_for(config))],
            device,
            peaks,
            options.gpus,
        )
        for name in jobs
    }
    if options.json:
        values = {name: as_dict(price) for name, price in prices.items()}
        print(json.dumps({"device": device, "gpus": options.gpus, "sweeps": values}, indent=2))
    else:
        print(as_markdown(table_of_prices(prices, device, options.gpus)).rstrip("\n"))
