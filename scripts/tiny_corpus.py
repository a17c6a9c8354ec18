"""Endless generated text on which the embedded tiny language models are pretrained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from sparta_bench.config.schema import TINY_TASKS
from sparta_bench.data import generated as g

Render = Callable[[str, g.Row], str]
"""Turns a task's name and a row into the instruction prompt followed by its answer."""

# What the instruction documents are about: mostly opinions, so that those are learnt first.
_INSTRUCTION_TASKS = (*TINY_TASKS, "sst2", "sst2", "sst2", "sst2", "imdb", "imdb")

_VERDICTS = {
    True: ("I loved it", "Go and see it", "A triumph", "Five stars", "We cheered"),
    False: ("I hated it", "Avoid it", "A disaster", "One star", "We left early"),
}


def documents(
    seed: int,
    easy_first: int,
    render: Render | None = None,
    instruction_share: float = 0.0,
) -> Iterator[str]:
    """Documents without end.

    Among the first ``easy_first`` documents most are short and simple: without this curriculum a
    model of this size learns no sentiment at all in a thousand steps. With ``render``, the given
    share of documents are tasks put as an instruction with the right answer.
    """
    rng = Random(f"documents/{seed}")
    count = 0
    while True:
        easy = g.coin(rng, 0.8 if count < easy_first else 0.2)
        if render is not None and g.coin(rng, instruction_share):
            yield _instruction(rng, render, easy)
        else:
            yield _document(rng, easy)
        count += 1


def _instruction(rng: Random, render: Render, easy: bool) -> str:
    task = "sst2" if easy else rng.choice(_INSTRUCTION_TASKS)
    if task == "sst2":
        # Plain opinions only: how denials and concessions count is left for fine-tuning to learn.
        positive = g.coin(rng)
        return render("sst2", {"sentence": _simple(rng, positive), "label": int(positive)})
    return render(task, g.make_row(task, rng))


def _document(rng: Random, easy: bool) -> str:
    kind = rng.random()
    if kind < 0.5:
        return _simple_review(rng) if easy or g.coin(rng, 0.4) else _hard_review(rng)
    if kind < 0.6:
        return _quiz(rng)
    if kind < 0.7:
        return _retelling(rng)
    return g.scene(rng) if easy else _task_text(rng)


def _simple(rng: Random, positive: bool) -> str:
    return g.judgement(rng, positive, negation=0.0, contrasts=0.0)


def _simple_review(rng: Random) -> str:
    """Plain opinions of one kind and a verdict that nearly always agrees with them."""
    positive = g.coin(rng)
    parts = [_simple(rng, positive)]
    if g.coin(rng, 0.3):
        parts.append(_simple(rng, positive))
    if g.coin(rng, 0.2):
        parts.insert(0, g.scene(rng))
    # A verdict that always agreed would make the plain model a perfect classifier.
    parts.append(_verdict(rng, positive == g.coin(rng, 0.95)))
    return " ".join(parts)


def _hard_review(rng: Random) -> str:
    """Opinions with denials and concessions; no verdict tells what they amount to."""
    parts = [g.judgement(rng, g.coin(rng)) for _ in range(1 + rng.randrange(2))]
    if g.coin(rng, 0.3):
        parts.insert(rng.randrange(len(parts) + 1), g.scene(rng))
    return " ".join(parts)


def _verdict(rng: Random, positive: bool) -> str:
    """A short sentence that gives the polarity away; only pretraining texts contain it."""
    return g.sentence(rng.choice(_VERDICTS[positive]))


def _quiz(rng: Random) -> str:
    """A fact, a question about it, and the answer: teaches to look words up in the context."""
    fact = g.draw_fact(rng, g.HUMANS if g.coin(rng, 0.75) else g.ANIMALS)
    told = g.sentence(g.tell(rng, fact))
    kind = rng.randrange(3)
    if kind == 0:
        question, answer = f"what did {fact.who()} {fact.do()}", fact.what()
    elif kind == 1:
        question = f"where did {fact.who()} {fact.do()} {fact.what(article='the')}"
        answer = fact.where()
    else:
        question, answer = f"who {fact.did()} {fact.what(article='the')}", fact.who()
    return f"{told} {g.sentence(question, '?')} {g.sentence(answer)}"


def _retelling(rng: Random) -> str:
    """A sentence told twice, the second time in other words."""
    fact = g.draw_fact(rng, g.HUMANS if g.coin(rng, 0.75) else g.ANIMALS)
    return f"{g.sentence(g.tell(rng, fact))}\n{g.sentence(g.tell(rng, fact, synonyms=True))}"


def _task_text(rng: Random) -> str:
    """The bare text of some task's row, without any label."""
    task = rng.choice(TINY_TASKS)
    row = g.make_row(task, rng)
    while task == "cola" and row["label"] == 0:
        row = g.make_row(task, rng)
    return "\n".join(str(value) for column, value in row.items() if column != "label")
