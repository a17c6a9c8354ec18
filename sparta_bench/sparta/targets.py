"""Which tensors scalars are chosen from, and with which probability: from names and sizes alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

PATTERNS = ("scalars", "rows", "block")  # what is drawn together
DENSITY_OF = ("sampled", "backbone")  # what a density is a share of


def chances_of(
    sizes: Mapping[str, int],
    embeddings: Collection[str],
    density: float,
    targets: str | Sequence[str] = "all",
    density_of: str = "sampled",
) -> dict[str, float]:
    """The probability for each scalar of the tensors to choose from, by name.

    `sizes` are the scalars of all tensors of a backbone, `embeddings` the names of those that look
    tokens up. The rest, and what is raised, is that of `sample.sampled_tensors`.
    """
    if density_of not in DENSITY_OF:
        raise ValueError(f"density_of={density_of}: must be {' or '.join(DENSITY_OF)}")
    names = _targeted([name for name in sizes if name not in embeddings], targets)
    chance = density
    if density_of == "backbone":
        backbone, scalars = sum(sizes.values()), sum(sizes[name] for name in names)
        chance = density * backbone / scalars
        if chance > 1:
            raise ValueError(
                f"density={density}: the sampled tensors hold {scalars:,} scalars, "
                f"which is {scalars / backbone:.2%} of the backbone's {backbone:,}"
            )
    return dict.fromkeys(names, chance)


def _targeted(names: list[str], targets: str | Sequence[str]) -> list[str]:
    """Those that `targets` means."""
    if targets == "all":
        if not names:
            raise ValueError(f"targets={targets}: the model has nothing but embeddings")
        return names
    targets = targets if isinstance(targets, str) else list(targets)  # as messages show it
    wanted = {targets} if isinstance(targets, str) else set(targets)
    chosen = [name for name in names if _module_of_weight(name) in wanted]
    missing = sorted(wanted - set(map(_module_of_weight, chosen)))
    if missing or not wanted:
        called = ", ".join(missing) or "nothing"
        raise ValueError(f"targets={targets}: no module of the model is called {called}")
    return chosen


def _module_of_weight(name: str) -> str | None:
    """`v_proj` of `layers.0.self_attn.v_proj.weight`; None where it is no module's weight."""
    path, _, own_name = name.rpartition(".")
    return path.rpartition(".")[2] if path and own_name == "weight" else None
