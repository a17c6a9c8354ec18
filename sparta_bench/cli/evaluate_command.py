"""The command line of `sparta-bench evaluate`. Nothing heavy is imported before it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sparta_bench.cli import options as shared
from sparta_bench.cli.adapter_options import add_compute, open_adapter
from sparta_bench.errors import InputError

if TYPE_CHECKING:
    from sparta_bench.adapters.manifest import Manifest


def _parser() -> shared.Parser:
    parser = shared.Parser(
        prog="sparta-bench evaluate",
        usage="sparta-bench evaluate ADAPTER [task=NAME] [key=value ...] [options]",
        description="Loss, accuracy and mcc of what a run has trained, or `merge` made, on dev\n"
        "and test set of its own task, or of another with the same labels. Of a\n"
        "multi-head model every head is scored on its own task.",
        epilog="Settings: task, task.*, limit, device, cache_dir, train.eval_tokens and\n"
        "train.eval_batch_size, as in a run.",
    )
    shared.add_sources(parser)
    add_compute(parser)
    parser.add_argument("settings", metavar="key=value", nargs="*", help="see below")
    json_text = "print a JSON list, an object for each head"
    shared.add_outputs(parser, json_text, out="also write the JSON there", metavar="FILE")
    return parser


def main(arguments: list[str]) -> None:
    """`sparta-bench evaluate`: print the scores of a classifier, or of each head of one."""
    options = _parser().parse_intermixed_args(arguments)
    shared.check_settings("evaluate", options.settings)
    shared.check_there([options.adapter])
    if options.out is not None:
        shared.check_folder("evaluate: --out", options.out.parent)
        if options.out.is_dir():
            raise InputError(f"evaluate: --out {options.out}: is a folder, and a file is written")
    from sparta_bench.devices import device_kind, heavy_imports

    device_kind(options.device, f"evaluate: --device {options.device}")
    with heavy_imports():
        from sparta_bench.adapters.multi_head import MultiHead
        from sparta_bench.config.compose import compose
        from sparta_bench.data.splits import complete
        from sparta_bench.files import write_json
        from sparta_bench.inference.evaluate import as_text, evaluation_of, settings_for

    settings = options.settings
    if options.device != "auto":
        settings = [*settings, f"device={options.device}"]
    opened = open_adapter(options)
    if isinstance(opened, MultiHead):
        chosen = {name: opened.one(name) for name in _of_task(opened.about, settings)}
    else:
        chosen = {options.head or opened.about.task or "": opened}
    configs = [
        complete(compose(settings_for(loaded.about, settings, options.adapter)))
        for loaded in chosen.values()
    ]
    found = [
        {"head": name or config.task.name}
        | evaluation_of(loaded, config, f"{options.adapter}", options.dtype)
        for (name, loaded), config in zip(chosen.items(), configs, strict=True)
    ]
    if options.out is not None:
        write_json(options.out, found)
    print(json.dumps(found, allow_nan=False) if options.json else as_text(found))


def _of_task(heads: Mapping[str, Manifest], settings: Sequence[str]) -> list[str]:
    """The heads that were trained on the task that is asked for; all where none is."""
    asked = [text.partition("=")[2] for text in settings if text.startswith("task=")]
    names = [name for name, about in heads.items() if about.task in asked or not asked]
    if not names:
        raise InputError(
            f"evaluate: task={asked[0]}: no head was trained on it; --head NAME chooses one"
        )
    return names
