"""What `predict` and `evaluate` have in common: options, and opening what was trained."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from sparta_bench.cli.options import Parser
from sparta_bench.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from sparta_bench.adapters.load_adapter import Loaded
    from sparta_bench.adapters.multi_head import MultiHead


def add_compute(parser: Parser) -> None:
    """Add `--head`, `--device` and `--dtype`."""
    parser.add_argument(
        "--head", metavar="NAME", help="of a multi-head model this head alone (all of them)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="to compute in; left out: that of training, but float32 on a CPU, where bfloat16 "
        "is slow",
    )


def open_adapter(options: Namespace) -> Loaded | MultiHead:
    """Load whatever lies in the folder: one classifier, or, where none is chosen, all heads of a
    multi-head model."""
    from sparta_bench.adapters import load_adapter, multi_head, read_folder

    if read_folder.kind_of(options.adapter) != read_folder.MULTI_HEAD:
        if options.head is not None:
            raise InputError(f"--head {options.head}: {options.adapter} has only one")
        sources = options.base, options.tokenizer
        return load_adapter.load(options.adapter, *sources, options.allow_pickle)
    load_adapter.refuse_sources(options.adapter, options.base, options.tokenizer)
    heads = multi_head.MultiHead.load(options.adapter)
    if options.head is None:
        return heads
    if options.head not in heads.about:
        near = did_you_mean(options.head, heads.about)
        known = ", ".join(heads.about)
        raise InputError(f"--head {options.head}: no such head{near}; there are {known}")
    return heads.one(options.head)
