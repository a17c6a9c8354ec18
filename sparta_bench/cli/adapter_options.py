"""What `predict` and `evaluate` have in common: options, and opening what was trained."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from sparta_bench.cli.options import Parser
from sparta_bench.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from sparta_bench.adapters.load_adapter import Loaded
    from sparta_bench.adapters.multi_head import LoadedHeads


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


def heads_of(options: Namespace) -> LoadedHeads:
    """A multi-head model, which needs neither a base nor a tokenizer."""
    from sparta_bench.adapters import multi_head

    for option, name in (("--base", options.base), ("--tokenizer", options.tokenizer)):
        if name is not None:
            raise InputError(f"{option} {name}: {options.adapter} is whole and needs none")
    return multi_head.load(options.adapter)


def one_of(options: Namespace) -> Loaded:
    """Whatever lies in the folder, or one head of it."""
    from sparta_bench.adapters import multi_head
    from sparta_bench.adapters.load_adapter import load

    if multi_head.is_in(options.adapter):
        heads = heads_of(options)
        if options.head not in heads.about:
            near = did_you_mean(options.head, heads.about)
            known = ", ".join(heads.about)
            raise InputError(f"--head {options.head}: no such head{near}; there are {known}")
        return heads.one(options.head)
    if options.head is not None:
        raise InputError(f"--head {options.head}: {options.adapter} has only one")
    return load(options.adapter, options.base, options.tokenizer, options.allow_pickle)
