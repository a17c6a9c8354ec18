"""How many examples of each label a set has, and what training needs of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from sparta_bench.errors import InputError, shown


def class_counts(labels: Sequence[int], names: Sequence[str]) -> dict[str, int]:
    """Return the number of examples by the label's name, in the order of the names."""
    counts = Counter(labels)
    return {name: counts[number] for number, name in enumerate(names)}


def check_classes(task: str, labels: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return warnings about `data.labels` of a record. Raises InputError if training has one class
    only: nothing could be learnt, and the loss would say that all is well."""
    train = labels["train"]
    used = [name for name, count in train.items() if count]
    if len(used) == 1:
        raise InputError(
            f"task={task}: take training examples of at least two labels; all "
            f"{train[used[0]]:,} have the label {shown(used[0])}"
        )
    rare = [f"{shown(name)} ({count})" for name, count in train.items() if count < 2]
    if not rare:
        return []
    more = f" and {len(rare) - 5} others" if len(rare) > 5 else ""
    return [
        f"task={task}: training has fewer than two examples of {', '.join(rare[:5])}{more}, from "
        "which little can be learnt"
    ]


def as_line(counts: Mapping[str, int]) -> str:
    """`negative 50, positive 48`, for people."""
    return ", ".join(f"{shown(name)} {count:,}" for name, count in counts.items())
