"""The command line of `merge`. Nothing heavy is imported before it is read."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparta_bench.cli.options import Parser, add_base, add_sources, check_settings, check_there
from sparta_bench.config.schema import METHODS
from sparta_bench.errors import InputError, log
from sparta_bench.records.record import DEFAULT

if TYPE_CHECKING:
    from sparta_bench.adapters.merging import Rule

VERBS = {  # what each makes, and its description
    "bake": ("a plain transformers folder, which needs none of this project",
      "Write a plain transformers folder: AutoModelForSequenceClassification and\n"
      "AutoTokenizer load it. The texts of an instruction model need its prompt,\n"
      "which is in classifier_config.json."),
    "export": ("a SpaRTA adapter in another program's layout",
      "Write a SpaRTA adapter for another program."),
    "multi-head": ("several adapters in one backbone, each with its own head (section 8)",
      "Add the changes of several models of one base up in one backbone, and keep\neach head on "
      "top: one forward pass, a prediction for each task. predict and\nevaluate take the folder."),
    "combine": ("the same, weighted, with TIES' sign election, or DARE's drop and rescale",
      "As multi-head, by another rule than the plain sum."),
    "overlap": ("how many entries several models changed alike, and what chance would give",
      "Where several models of one base changed the same entries, with which signs."),
    "pairs": ("what merging costs: every two tasks' runs below a folder, alone and merged "
      "(Table 6)",
      "Merge the best runs of every two tasks, model by model and method by method,\nand score "
      "them alone and merged. A record for each goes to FOLDER/merges;\n"
      "`tables` makes Table 6 and a table of losses from these. What is done is skipped."),
}  # fmt: skip
SETTINGS = (
    "Settings: task.*, device, cache_dir, train.eval_tokens, train.eval_batch_size, for all tasks."
)
OF_ONE, OF_SEVERAL = ("bake", "export"), ("multi-head", "combine", "overlap")
WRITING = (*OF_ONE, "multi-head", "combine")


def main(arguments: list[str]) -> int:
    """`sparta-bench merge`; returns the exit code."""
    options = _read(arguments)
    if options.verb == "pairs":
        return _pairs(options)
    verb = {"overlap": _overlap, "bake": _of_one, "export": _of_one}.get(options.verb, _merge)
    verb(options)
    return 0


def _read(arguments: list[str]) -> Namespace:
    parser, verbs = _merge_parser()
    if arguments[:1] and arguments[0] in verbs:
        # by itself: options may stand between the words of a list then
        options = verbs[arguments[0]].parse_intermixed_args(arguments[1:])
        options.verb = arguments[0]
        return options
    return parser.parse_args(arguments)  # help, or a fault


def _merge_parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser, and that of each verb."""
    parser = Parser(
        prog="sparta-bench merge", description="Make something else of what a run has trained."
    )
    made = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True)
    verbs: dict[str, Parser] = {
        name: made.add_parser(name, help=makes, description=description)
        for name, (makes, description) in VERBS.items()
    }
    verbs["pairs"].epilog = SETTINGS
    for name in OF_ONE:
        add_sources(verbs[name])
    for flag, names, settings in FIRST:
        for name in names:
            verbs[name].add_argument(flag, **settings)
    for name in (*OF_SEVERAL, "pairs"):
        add_base(verbs[name])
    for flag, names, settings in OPTIONS:
        for name in names:
            verbs[name].add_argument(flag, **settings)
    return parser, verbs


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(abs(number) < 1e6 for number in numbers):
        raise ArgumentTypeError(f"{text} is no list of numbers, such as 0.5,0.5")
    return numbers


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ArgumentTypeError(f"{text} is no number inside (0, 1)")
    return share


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**63):
        raise ArgumentTypeError(f"{text} is no whole number from 0 to 2^63 - 1")
    return int(text)


# flags, the verbs that have them, and what argparse is to know; the first before --base
Flag = tuple[str, tuple[str, ...], dict[str, Any]]
FIRST: list[Flag] = [
    ("adapters", OF_SEVERAL, {"metavar": "ADAPTER", "nargs": "+", "type": Path,
     "help": "folders of adapters or whole classifiers (save=full) of one base model"}),
    ("folder", ("pairs",), {"metavar": "FOLDER", "type": Path,
     "help": "where the runs' records are"}),
    ("settings", ("pairs",), {"metavar": "key=value", "nargs": "*", "help": "see below"}),
    ("--seeds", ("pairs",), {"choices": ("different", "same"), "default": "different",
     "help": "same: pairs of one seed, where SpaRTA's indices coincide (different)"}),
    ("--model", ("pairs",), {"metavar": "NAME", "help": "only runs of this one (all)"}),
    ("--method", ("pairs",), {"choices": METHODS, "help": "only runs of this one (all)"}),
    ("--json", ("pairs",), {"action": "store_true", "help": "print the records as a JSON list"}),
]  # fmt: skip
OPTIONS: list[Flag] = [
    ("--names", ("multi-head", "combine"), {"metavar": "A,B",
     "help": "what the heads are called (their tasks' names)"}),
    ("--out", WRITING, {"metavar": "DIR", "type": Path, "required": True, "help": "where to"}),
    ("--force", WRITING, {"action": "store_true",
     "help": "replace the folder DIR, whatever is in it"}),
    ("--how", ("combine", "pairs"), {"choices": ("sum", "ties"), "default": "sum",
     "help": "sum (the default); ties: of each entry the mean of the changes that have the sign "
     "of their sum"}),
    ("--dare", ("combine", "pairs"), {"metavar": "SHARE", "type": _share,
     "help": "keep each changed entry with this probability, and divide it by that"}),
    ("--seed", ("combine", "pairs"), {"type": _seed, "default": 0, "help": "of that draw (0)"}),
    ("--weights", ("combine",), {"metavar": "W,W", "type": _numbers,
     "help": "one for each model (1 each)"}),
    ("--json", ("overlap",), {"action": "store_true", "help": "print a JSON list, a pair each"}),
    ("--layout", ("export",), {"choices": ("peft-sparta", "patch"), "required": True,
     "help": "that of the authors' package, or one file with the entries that change, their values "
     "and those before (sparta_bench.apply_patch writes and reverts it)"}),
    ("--base-name", ("export",), {"metavar": "NAME_OR_PATH",
     "help": "of peft-sparta: what it is to load the base model from: a hub name or a folder"}),
]  # fmt: skip


# ----------------------------------------------------------------------------------- verbs
def _of_one(options: Namespace) -> None:
    if options.verb == "export" and (options.layout == "patch") != (options.base_name is None):
        needs = "is for peft-sparta" if options.layout == "patch" else "is needed"
        raise InputError(f"merge export: --layout {options.layout}: --base-name {needs}")
    check_there([options.adapter])
    from sparta_bench.adapters.export import bake, export, export_patch

    common = {
        name: getattr(options, name) for name in ("base", "tokenizer", "allow_pickle", "force")
    }
    if options.verb == "bake":
        print(bake(options.adapter, options.out, **common))
    elif options.layout == "patch":
        print(export_patch(options.adapter, options.out, **common))
    else:
        print(export(options.adapter, options.out, options.base_name, **common))


def _merge(options: Namespace) -> None:
    count = len(options.adapters)
    names = None if options.names is None else options.names.split(",")
    if names is not None and (len(set(names)) != len(names) or "" in names or len(names) != count):
        raise InputError(
            f"merge: --names {options.names}: must be {count} different names, one for each adapter"
        )
    check_there(options.adapters)
    rule = _rule(options)
    from sparta_bench.adapters.merging import multi_head_of

    sources = options.base, options.tokenizer
    line, warnings = multi_head_of(
        options.adapters, options.out, rule, *sources, names, options.force
    )
    log(*warnings)
    print(line)


def _rule(options: Namespace) -> Rule:
    from sparta_bench.adapters.merging import Rule

    if options.verb == "multi-head":
        return Rule()
    if options.verb == "pairs":
        return Rule(options.how, None, options.dare, options.seed if options.dare else 0)
    if options.weights is not None and len(options.weights) != len(options.adapters):
        raise InputError(
            f"merge: --weights: {len(options.weights)} numbers for {len(options.adapters)} models; "
            "one for each is needed"
        )
    return Rule(options.how, options.weights, options.dare, options.seed)


def _pairs(options: Namespace) -> int:
    check_there([options.folder])
    check_settings("merge pairs", options.settings, with_task=False)
    from sparta_bench.analysis.measure_pairs import measure_pairs

    measured = measure_pairs(
        options.folder,
        _rule(options),
        options.seeds == "same",
        options.model,
        options.method,
        options.base,
        options.tokenizer,
        options.settings,
    )
    refusals = measured.refusals()
    if not measured.records:
        raise InputError(*refusals)
    if options.json:
        print(json.dumps(measured.records, allow_nan=False))
    else:
        pairs = f"{len(measured.records):,} pairs, {measured.done_before:,} of them there already"
        folder = "" if options.folder == DEFAULT else f" {options.folder}"
        print(f"{pairs} → {options.folder / 'merges'}; see sparta-bench tables{folder}")
    log(*refusals)
    return 1 if refusals else 0


def _overlap(options: Namespace) -> None:
    if len(options.adapters) < 2:
        raise InputError("merge overlap: at least two models are needed")
    check_there(options.adapters)
    from sparta_bench.adapters.merging import as_text, open_task_vectors, overlaps_of

    base, vectors = open_task_vectors(options.adapters, options.base, options.tokenizer)
    overlaps = overlaps_of(vectors, base)
    rows = [overlap.as_dict() for overlap in overlaps]
    print(json.dumps(rows, allow_nan=False) if options.json else as_text(overlaps))
