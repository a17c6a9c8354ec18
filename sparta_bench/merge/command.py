"""The command line of `merge`. Nothing heavy is imported before it is read."""

from __future__ import annotations

from pathlib import Path

from sparta_bench.options import Parser, add_sources

LAYOUTS = ("peft-sparta",)


def _merge_parser() -> Parser:
    parser = Parser(
        prog="sparta-bench merge", description="Make something else of what a run has trained."
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb")
    bake = verbs.add_parser(
        "bake",
        help="a plain transformers folder, which needs none of this project",
        description="Write a plain transformers folder: AutoModelForSequenceClassification and\n"
        "AutoTokenizer load it. The texts of an instruction model need its prompt,\n"
        "which is in classifier_config.json.",
    )
    export = verbs.add_parser(
        "export",
        help="a SpaRTA adapter in another program's layout",
        description="Write a SpaRTA adapter for another program.",
    )
    for verb in (bake, export):
        add_sources(verb)
        verb.add_argument("--out", metavar="DIR", type=Path, required=True, help="where to")
        verb.add_argument(
            "--force", action="store_true", help="replace the folder DIR, whatever is in it"
        )
    export.add_argument("--layout", choices=LAYOUTS, required=True)
    export.add_argument(
        "--base-name",
        metavar="NAME_OR_PATH",
        required=True,
        help="what that program is to load the base model from: a hub name or a folder",
    )
    return parser


def main(arguments: list[str]) -> None:
    """`sparta-bench merge VERB`: write a folder and say what is there."""
    parser = _merge_parser()
    options = parser.parse_args(arguments)
    if options.verb is None:
        parser.print_help()
        return
    from sparta_bench.merge import bake as verbs

    common = {
        "base": options.base,
        "tokenizer": options.tokenizer,
        "allow_pickle": options.allow_pickle,
        "force": options.force,
    }
    if options.verb == "bake":
        print(verbs.bake(options.adapter, options.out, **common))
    else:
        print(verbs.export(options.adapter, options.out, options.base_name, **common))
