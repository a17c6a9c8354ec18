"""What `sparta-bench --help` prints: usage and the subcommands first, then what can be chosen. No
torch, and nothing is composed."""

from __future__ import annotations

from textwrap import fill

from sparta_bench.config.compose import GROUPS, choices

BEGIN = """\
usage: sparta-bench [key=value ...]       one experiment
       sparta-bench -m [key=value,value]  a grid, run after run; the same again goes on
       sparta-bench COMMAND ...           see below; COMMAND --help tells more

Fine-tune a language model with SpaRTA, LoRA, the head alone or all weights, and leave a result
that can be checked. Without a word: the embedded default, offline, on a CPU, in about a minute.
"""
COMMANDS = {
    "plan [key=value ...]": "what would run: counts, lengths, steps, memory; no weights needed",
    "status": "how far the sweeps of each table are",
    "tables": "the paper's tables from the records, beside the paper's",
    "report": "tables, curves and pictures as one HTML file",
    "predict ADAPTER": "label texts with what a run has trained",
    "evaluate ADAPTER": "dev and test scores of it",
    "merge VERB": "bake it into a plain model, export it, merge several",
    "ranks BASE TUNED": "ranks of what fine-tuning changed",
    "bench": "step time, FLOPs and memory, beside other packages",
    "memory": "Table 1; what training takes, part by part; what fits",
}
MORE = {
    "--cfg job [key=value ...]": "all settings with their values, as one experiment has them",
    "--version": "the version",
    "--hydra-help": "Hydra's own options, shell completion among them",
}


def text() -> str:
    """The help, with the choices that the files of `conf/` offer."""
    parts = [
        BEGIN,
        "Commands:\n" + _rows(COMMANDS),
        "Options:\n" + _rows(MORE),
        "Groups (choose with GROUP=NAME; a sweep with -m +sweep=NAME):\n"
        + "\n".join(_group(name) for name in GROUPS),
        "Settings (change with key=value, such as seed=1 train.learning_rate=1e-3):\n"
        "  `sparta-bench --cfg job` shows all, and the files of conf/ say what each means.",
    ]
    return "\n\n".join(part.strip("\n") for part in parts)


def _rows(rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"  {name:{width}}  {what}" for name, what in rows.items())


def _group(name: str) -> str:
    return fill(
        ", ".join(choices(name)),
        width=100,
        initial_indent=f"  {name:8}",
        subsequent_indent=" " * 10,
        break_on_hyphens=False,
    )
