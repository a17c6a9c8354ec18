"""What `sparta-bench --help` prints: usage, the subcommands, and what can be chosen; no torch."""

from __future__ import annotations

from textwrap import fill

from sparta_bench.config.conf_folder import GROUPS, choices

COMMANDS = {  # name: what follows it, and what it does
    "plan": (
        "[key=value ...]",
        "what would run: counts, lengths, steps, time, memory; no weights",
    ),
    "help": ("KEY|GROUP", "what a setting means, what a group offers"),
    "status": ("", "how far the sweeps of each table are"),
    "tables": ("", "the paper's tables from the records, beside the paper's"),
    "report": ("", "tables, curves and pictures as one HTML file"),
    "predict": ("ADAPTER", "label texts with what a run has trained"),
    "evaluate": ("ADAPTER", "dev and test scores of it"),
    "merge": ("VERB", "bake it into a plain model, export it, merge several"),
    "export": ("NAME FOLDER", "runs that are done, in trackio or tensorboard"),
    "ranks": ("BASE TUNED", "ranks of what fine-tuning changed"),
    "bench": ("", "step time, FLOPs and memory, beside other packages"),
    "memory": ("", "Table 1; what training takes, part by part; what fits"),
}
TEXT = """\
usage: sparta-bench [key=value ...]       one experiment
       sparta-bench -m [key=value,value]  a grid, run after run; the same again goes on
       sparta-bench COMMAND ...           see below; COMMAND --help says more

Fine-tune a language model with SpaRTA, LoRA, the head alone or all weights, and leave a result
that can be checked. Without a word: the embedded default, offline, on a CPU, in about a minute.

Commands:
{commands}

Options:
  --cfg job [key=value ...]  all settings with their values, as one experiment has them
  --config-dir DIR           a folder with YAML of your own (DIR/task, DIR/model, DIR/sweep)
  --version                  the version
  --hydra-help               Hydra's own options, shell completion among them

Groups (choose with GROUP=NAME):
{groups}

Sweeps (run with -m +sweep=NAME, or NAME_METHOD for one method, such as table4_sparta):
{sweeps}

Settings (change with key=value, such as seed=1 train.learning_rate=1e-3):
  `sparta-bench --cfg job` shows all, `sparta-bench help KEY` says what one means."""


def text() -> str:
    """The help, with the choices that the files of `conf/` offer."""
    return TEXT.format(
        commands="\n".join(
            f"  {f'{name} {rest}':20}  {what}" for name, (rest, what) in COMMANDS.items()
        ),
        groups="\n".join(_names(choices(group), f"  {group:8}") for group in GROUPS),
        sweeps=_names(choices("sweep"), "  "),
    )


def _names(names: list[str], begin: str) -> str:
    return fill(
        ", ".join(names),
        width=100,
        initial_indent=begin,
        subsequent_indent=" " * len(begin),
        break_on_hyphens=False,
    )
