"""The command line of `sparta-bench plan`. Nothing heavy is imported before it is read."""

from __future__ import annotations

import sys

from sparta_bench.config.compose import compose
from sparta_bench.errors import InputError, fitted


def main(arguments: list[str]) -> None:
    """Print the plan, for people or as JSON.

    Raises
    ------
    InputError
        For an unknown option, or an experiment that cannot be planned.
    """
    overrides = [argument for argument in arguments if argument != "--json"]
    wrong = [word for word in overrides if word.startswith("-")]
    if wrong in (["--help"], ["-h"]):
        print("usage: sparta-bench plan [--json] [key=value ...]\n\n"
              "Parameter counts, data counts, lengths, steps and memory of an experiment,\n"
              "without weights. --json prints one JSON object and nothing else.")  # fmt: skip
        return
    if wrong:
        raise InputError(
            *(f"{word.partition('=')[0]}: plan knows no option but --json" for word in wrong)
        )
    config = compose(overrides)
    from sparta_bench.analysis.plan import as_json, as_text, plan
    from sparta_bench.data.own_task import complete

    planned = plan(complete(config))
    if "--json" in arguments:
        print(as_json(planned))
    else:
        print("\n".join(fitted(line, sys.stdout) for line in as_text(planned).splitlines()))
