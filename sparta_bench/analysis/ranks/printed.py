"""The ranks that the paper prints (Tables 7 and 8), for the same matrices of the same models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sparta_bench.analysis.ranks.rank_tables import place_of
from sparta_bench.paper import rows_of

# base and tuned model by their names in conf/model, and the files of the table
TABLES = {("gemma-2b", "gemma-2b-it"): "table7", ("mistral-7b", "mistral-7b-it"): "table8"}
# what they are called on the hub, where that differs
ON_THE_HUB = {"Mistral-7B-v0.3": "mistral-7b", "Mistral-7B-Instruct-v0.3": "mistral-7b-it"}


def printed_ranks(base: str, tuned: str, shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """The paper's rank for each of these matrices (by name in the backbone) that it has in this
    shape; empty where the names are not those of one of its pairs.

    Table 8 prints the vocabulary head's shape turned, so the order of rows and columns is not
    compared.
    """
    table = TABLES.get((ON_THE_HUB.get(base, base), ON_THE_HUB.get(tuned, tuned)))
    if table is None:
        return {}
    printed = {
        (row["matrix"], layer): (sorted((int(row["rows"]), int(row["columns"]))), int(row["rank"]))
        for row in rows_of(table)
        for layer in _layers(row["layers"])
    }
    found = {}
    for key, shape in shapes.items():
        printed_shape, rank = printed.get(place_of(key), (None, 0))
        if sorted(shape) == printed_shape:
            found[key] = rank
    return found


def _layers(text: str) -> Iterator[int | None]:
    """Of "1,3-5"; null, once, for "-"."""
    if text == "-":
        yield None
        return
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
