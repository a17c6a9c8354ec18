"""Eight small generated data sets in the raw layout of the real ones: same columns, label numbers
and raw splits as GLUE and IMDB on the hub. The same seed gives the same rows on every machine: only
`random()`, `randrange()` and `choice()` are drawn from, whose values all Pythons share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from sparta_bench.config.schema import TINY_TASKS

Row = dict[str, object]
Splits = dict[str, list[Row]]
Actors = tuple[tuple[str, str], ...]

LABEL_NOISE = 0.10  # probability that a training row carries a wrong label
LONG_SHARE = 0.015  # probability that a training row is too long for the task's `max_tokens`


@dataclass(frozen=True)
class Size:
    """Rows per role, and the length limit in tokens (BOS included) that suits the task."""

    train: int = 2000
    dev: int = 300
    test: int = 1000
    max_tokens: int = 80


SIZES = dict.fromkeys(("mrpc", "qnli", "qqp", "rte"), Size()) | {
    "mnli": Size(train=3000),
    "cola": Size(max_tokens=48),
    "sst2": Size(max_tokens=48),
    "imdb": Size(max_tokens=128),
}


# A pair of words means the same twice; a word paired with itself has no synonym here.
HUMANS = (
    ("baker", "baker"), ("pilot", "pilot"), ("teacher", "tutor"), ("chef", "cook"),
    ("doctor", "physician"), ("sailor", "seaman"), ("poet", "poet"), ("judge", "judge"),
    ("painter", "painter"), ("farmer", "farmer"), ("dentist", "dentist"), ("wizard", "sorcerer"),
)  # fmt: skip
ANIMALS = (
    ("badger", "badger"), ("otter", "otter"), ("hedgehog", "hedgehog"), ("penguin", "penguin"),
    ("camel", "camel"), ("goose", "goose"), ("rabbit", "bunny"), ("donkey", "mule"),
)  # fmt: skip
THINGS = (
    ("bicycle", "bike"), ("hat", "cap"), ("boat", "ship"), ("umbrella", "parasol"),
    ("lantern", "lamp"), ("carpet", "rug"), ("violin", "fiddle"), ("sofa", "couch"),
    ("parcel", "package"), ("coat", "jacket"), ("teapot", "teapot"), ("piano", "piano"),
    ("ladder", "ladder"), ("drum", "drum"), ("kite", "kite"), ("mirror", "mirror"),
)  # fmt: skip
COLOURS = ("red", "blue", "green", "yellow", "purple", "silver", "pink", "brown")
PLACES = (
    "in the garden", "in the kitchen", "in the library", "in the museum", "in the forest",
    "at the station", "at the market", "at the circus", "on the bridge", "on the roof",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
VERBS = (  # past, its synonym, infinitive, its synonym
    ("bought", "purchased", "buy", "purchase"), ("repaired", "fixed", "repair", "fix"),
    ("found", "discovered", "find", "discover"), ("hid", "concealed", "hide", "conceal"),
    ("stole", "swiped", "steal", "swipe"), ("cleaned", "scrubbed", "clean", "scrub"),
    ("painted", "coloured", "paint", "colour"), ("broke", "smashed", "break", "smash"),
    ("borrowed", "borrowed", "borrow", "borrow"), ("lost", "misplaced", "lose", "misplace"),
)  # fmt: skip
ASPECTS = (
    "plot", "script", "hero", "villain", "ending", "music", "acting", "dialogue", "scenery",
    "director", "story", "humour", "cast", "pace",
)  # fmt: skip
PRAISE = (
    "witty", "brilliant", "charming", "splendid", "delightful", "moving", "clever", "superb",
    "warm", "gripping", "lovely", "fresh", "wise", "tender",
)  # fmt: skip
BLAME = (
    "dull", "clumsy", "dreary", "awful", "boring", "silly", "stale", "lifeless", "tedious",
    "noisy", "lazy", "cheap", "bland", "hollow",
)  # fmt: skip
DEGREES = ("very", "quite", "rather", "truly", "so")
OPENERS = (
    "frankly,", "to my mind,", "all in all,", "for once,", "once again,", "after an hour,",
    "in this film,", "as always,",
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One event, by its words."""

    actor: tuple[str, str]
    verb: tuple[str, str, str, str]
    colour: str
    thing: tuple[str, str]
    place: str

    def who(self, synonym: int = 0) -> str:
        return f"the {self.actor[synonym]}"

    def what(self, synonym: int = 0, article: str = "a") -> str:
        return f"{article} {self.colour} {self.thing[synonym]}"

    def did(self, synonym: int = 0) -> str:
        return self.verb[synonym]

    def do(self, synonym: int = 0) -> str:
        return self.verb[2 + synonym]

    def where(self) -> str:
        return self.place


def draw_fact(rng: Random, actors: Actors = HUMANS) -> Fact:
    actor, verb, colour = rng.choice(actors), rng.choice(VERBS), rng.choice(COLOURS)
    return Fact(actor, verb, colour, rng.choice(THINGS), rng.choice(PLACES))


def other_index(rng: Random, current: int, length: int) -> int:
    """An index below ``length`` that is not ``current``."""
    return (current + 1 + rng.randrange(length - 1)) % length


def coin(rng: Random, probability: float = 0.5) -> bool:
    return rng.random() < probability


def sentence(words: str, mark: str = ".") -> str:
    return words[:1].upper() + words[1:] + mark


def tell(rng: Random, fact: Fact, synonyms: bool = False) -> str:
    """The whole fact as a clause, with synonyms thrown in at random where asked for."""
    pick = [rng.randrange(2) if synonyms else 0 for _ in range(3)]
    clause = f"{fact.who(pick[0])} {fact.did(pick[1])} {fact.what(pick[2])}"
    if coin(rng, 0.7):
        return f"{clause} {fact.where()}"
    return f"{fact.where()}, {clause}"


def scene(rng: Random) -> str:
    """A sentence that says nothing about anybody's opinion."""
    fact = draw_fact(rng, HUMANS if coin(rng, 0.75) else ANIMALS)
    clause = f"{fact.who()} {fact.did()} {fact.what()}"
    if coin(rng):
        return sentence(f"{clause} {fact.where()}")
    return sentence(f"on {rng.choice(DAYS)}, {clause}")


def quality(rng: Random, positive: bool) -> str:
    """One or two adjectives of that polarity, now and then with a degree in front."""
    words = PRAISE if positive else BLAME
    first = rng.randrange(len(words))
    adjectives = words[first]
    if coin(rng, 0.25):
        adjectives = f"{adjectives} and {words[other_index(rng, first, len(words))]}"
    return f"{rng.choice(DEGREES)} {adjectives}" if coin(rng, 0.35) else adjectives


def opinion(rng: Random, positive: bool, negated: bool = False, about: str | None = None) -> str:
    """A clause of that polarity; negated, it says so by denying the opposite."""
    aspect = f"the {about or rng.choice(ASPECTS)}"
    adjective = quality(rng, positive != negated)
    if negated:
        frames = ("{a} is not {q}", "{a} is never {q}", "{a} is hardly {q}", "nobody finds {a} {q}")
    else:
        frames = ("{a} is {q}", "{a} seems {q}", "{a} was {q}", "everybody finds {a} {q}")
    return rng.choice(frames).format(a=aspect, q=adjective)


def contrast(rng: Random, positive: bool, negation: float = 0.0) -> str:
    """Two opposite opinions; the one that is not conceded has the given polarity."""
    main = opinion(rng, positive, coin(rng, negation))
    conceded = opinion(rng, not positive, coin(rng, negation))
    frames = ("{c}, but {m}", "although {c}, {m}", "{m}, although {c}")
    return rng.choice(frames).format(c=conceded, m=main)


def judgement(rng: Random, positive: bool, negation: float = 0.3, contrasts: float = 0.35) -> str:
    """A sentence about a film as the sentiment tasks have it."""
    if coin(rng, contrasts):
        clause = contrast(rng, positive, negation / 3)
    else:
        clause = opinion(rng, positive, coin(rng, negation))
    return remark(rng, clause)


def remark(rng: Random, clause: str) -> str:
    """The clause as a sentence, half of the time with an opening phrase."""
    return sentence(f"{rng.choice(OPENERS)} {clause}" if coin(rng) else clause)


def generate(task: str, seed: int = 0, noise: float = LABEL_NOISE) -> Splits:
    """The raw splits of a task, by the names they have on the hub.

    ``noise`` is the share of wrong labels among the rows that become training data; the texts do
    not depend on it.
    """
    if task not in SIZES:
        raise ValueError(f"unknown tiny task {task!r}: one of {', '.join(TINY_TASKS)}")
    size = SIZES[task]
    train = _rows(task, size.train, f"{task}/train/{seed}", long_share=LONG_SHARE)
    _flip_labels(train, 3 if task == "mnli" else 2, noise, Random(f"{task}/noise/{seed}"))
    dev = _rows(task, size.dev, f"{task}/dev/{seed}")
    if task == "mnli":
        half = size.test // 2
        matched = _rows(task, half, f"{task}/matched/{seed}")
        mismatched = _rows(task, half, f"{task}/mismatched/{seed}", actors=ANIMALS)
        names = "validation_matched", "validation_mismatched"
        return {"train": train + dev, **dict(zip(names, (matched, mismatched), strict=True))}
    test = _rows(task, size.test, f"{task}/test/{seed}")
    if task == "mrpc":
        return {"train": train, "validation": dev, "test": test}
    if task == "imdb":
        return {"train": train, "test": dev + test}
    return {"train": train + dev, "validation": test}


def make_row(task: str, rng: Random) -> Row:
    """One row with a clean label, as dev and test have it."""
    return _MAKERS[task](rng, HUMANS)


def _rows(
    task: str, count: int, seed: str, long_share: float = 0.0, actors: Actors = HUMANS
) -> list[Row]:
    rng = Random(seed)
    rows = []
    for _ in range(count):
        row = _MAKERS[task](rng, actors)
        if coin(rng, long_share):
            _lengthen(row, rng, SIZES[task].max_tokens)
        rows.append(row)
    return rows


def _flip_labels(rows: list[Row], classes: int, noise: float, rng: Random) -> None:
    for row in rows:
        shift = 1 + rng.randrange(classes - 1)
        if coin(rng, noise):
            row["label"] = (int(str(row["label"])) + shift) % classes


def _lengthen(row: Row, rng: Random, max_tokens: int) -> None:
    """Put scenes before the first text until it alone exceeds the limit; the label stays true."""
    column = next(iter(row))
    text = str(row[column])
    # Punctuation also counts as tokens, so that more words than the limit are certainly enough.
    while len(text.split()) <= max_tokens:
        text = f"{scene(rng)} {text}"
    row[column] = text


# ------------------------------------------------------------------------------- single texts
def _sst2(rng: Random, _actors: Actors) -> Row:
    positive = coin(rng)
    text = judgement(rng, positive)
    if coin(rng, 0.3):
        text = f"{scene(rng)} {text}"
    return {"sentence": text, "label": int(positive)}


def _imdb(rng: Random, _actors: Actors) -> Row:
    """Three to five judgements of which the majority decides, between scenes from the film."""
    positive = coin(rng)
    agreeing, opposing = rng.choice(((3, 0), (4, 0), (2, 1), (4, 1)))
    votes = [positive] * agreeing + [not positive] * opposing
    parts = []
    while votes:
        vote = votes.pop(rng.randrange(len(votes)))
        parts.append(judgement(rng, vote, negation=0.15, contrasts=0.2))
        if coin(rng, 0.3):
            parts.append(scene(rng))
    return {"text": " ".join(parts), "label": int(positive)}


def _cola(rng: Random, actors: Actors) -> Row:
    acceptable = coin(rng, 0.6)
    words, mark = _plain_sentence(rng, actors)
    if not acceptable:
        words = _spoil(rng, words)
    return {"sentence": sentence(words, mark), "label": int(acceptable)}


def _plain_sentence(rng: Random, actors: Actors) -> tuple[str, str]:
    fact = draw_fact(rng, actors)
    kind = rng.randrange(4)
    if kind == 0:
        return f"what did {fact.who()} {fact.do()} {fact.where()}", "?"
    if kind == 1:
        return contrast(rng, coin(rng)), "."
    return tell(rng, fact, synonyms=True), "."


def _spoil(rng: Random, words: str) -> str:
    """Break the grammar of a sentence: mostly by disorder, sometimes by a word lost or doubled."""
    tokens = words.replace(",", " ,").split()
    kind = rng.random()
    if kind < 0.7:
        tokens = _disorder(rng, tokens, 5)
    elif kind < 0.85:
        articles = [i for i, word in enumerate(tokens) if word in ("the", "a")]
        del tokens[rng.choice(articles)]
    else:
        index = 1 + rng.randrange(len(tokens) - 2)
        tokens.insert(index, tokens[index])
    return " ".join(tokens).replace(" ,", ",")


def _disorder(rng: Random, tokens: list[str], width: int) -> list[str]:
    """Shuffle a window of words until it reads differently."""
    start = rng.randrange(max(1, len(tokens) - width + 1))
    window = tokens[start : start + width]
    mixed = window
    while mixed == window:
        pool = list(window)
        mixed = [pool.pop(rng.randrange(len(pool))) for _ in window]
    return tokens[:start] + mixed + tokens[start + width :]


# -------------------------------------------------------------------------------------- pairs
# Whether two sentences fit together must show in a few kinds of words (good or bad, where or when):
# models of this size do not learn to compare sentences word by word in minutes.


def _mrpc(rng: Random, _actors: Actors) -> Row:
    """Two remarks on the same aspect of a film; the same if both praise it or both blame it."""
    same, positive = coin(rng), coin(rng)
    aspect = rng.choice(ASPECTS)
    first, second = (
        remark(rng, opinion(rng, side, coin(rng, 0.15), aspect))
        for side in (positive, positive == same)
    )
    return {"sentence1": first, "sentence2": second, "label": int(same)}


_ADVICE = (
    ("how do I {v} {t}", "how can I {v} {t} at home", "what is the best way to {v} {t}"),
    ("where can I {v} {t}", "where do people {v} {t}", "which place is best to {v} {t}"),
    ("why did you {v} {t}", "why would anybody {v} {t}", "what is the reason to {v} {t}"),
)


def _qqp(rng: Random, _actors: Actors) -> Row:
    """Two questions about one thing; the same if both ask how, both where or both why."""
    same = coin(rng)
    fact = draw_fact(rng)
    first = rng.randrange(len(_ADVICE))
    second = first if same else other_index(rng, first, len(_ADVICE))
    return {
        "question1": _ask_advice(rng, fact, _ADVICE[first]),
        "question2": _ask_advice(rng, fact, _ADVICE[second]),
        "label": int(same),
    }


def _ask_advice(rng: Random, fact: Fact, frames: tuple[str, ...]) -> str:
    words = rng.choice(frames).format(v=fact.do(rng.randrange(2)), t=fact.what(rng.randrange(2)))
    return sentence(words, "?")


_REASONS = ("for a friend", "for the party", "for a bet", "for the king")


def _qnli(rng: Random, actors: Actors) -> Row:
    """Where, when or why? The sentence tells one of them, which may be the wrong one."""
    answered = coin(rng)
    fact = draw_fact(rng, actors)
    asked = rng.randrange(3)
    told = asked if answered else other_index(rng, asked, 3)
    details = (fact.where(), f"on {rng.choice(DAYS)}", rng.choice(_REASONS))
    question = f"{('where', 'when', 'why')[asked]} did {fact.who()} {fact.do()}"
    return {
        "question": sentence(f"{question} {fact.what(article='the')}", "?"),
        "sentence": sentence(f"{fact.who()} {fact.did()} {fact.what()} {details[told]}"),
        "label": int(not answered),
    }


_CRITICS = {
    True: ("the critic liked {a}", "the audience enjoyed {a}", "{a} pleased the critic"),
    False: ("the critic disliked {a}", "the audience endured {a}", "{a} annoyed the critic"),
}


def _rte(rng: Random, _actors: Actors) -> Row:
    """Does the critic's mood follow from what was said of the film?"""
    follows, positive = coin(rng), coin(rng)
    aspect = rng.choice(ASPECTS)
    premise = remark(rng, opinion(rng, positive, coin(rng, 0.15), aspect))
    if coin(rng, 0.3):
        premise = f"{scene(rng)} {premise}"
    claim = rng.choice(_CRITICS[positive == follows]).format(a=f"the {aspect}")
    return {"sentence1": premise, "sentence2": sentence(claim), "label": int(not follows)}


_EXTRAS = ("with a friend", "before the party", "during a storm", "after a walk")


def _mnli(rng: Random, actors: Actors) -> Row:
    """Entailment repeats a detail, neutral adds a new one, contradiction denies the event."""
    label = rng.randrange(3)
    fact = draw_fact(rng, actors)
    extra = rng.choice(_EXTRAS)
    # Premises name such details and deny things too, so that a word alone decides less.
    told_extra, denied = coin(rng, 0.4), coin(rng, 0.3)
    event = f"{fact.did()} {fact.what()}"
    who = fact.who().replace("the", "no", 1) if denied else fact.who()
    premise = f"{who} {event} {extra if told_extra else fact.where()}"
    detail = extra if told_extra else fact.where()
    if label == 1:
        detail = _EXTRAS[other_index(rng, _EXTRAS.index(extra), len(_EXTRAS))]
    if label == 2:
        who = fact.who() if denied else fact.who().replace("the", "no", 1)
    # All three kinds are equally long: length must not tell them apart.
    claim = f"{who} {fact.did()} a {fact.thing[0]} {detail}"
    return {"premise": sentence(premise), "hypothesis": sentence(claim), "label": label}


_MAKERS: dict[str, Callable[[Random, Actors], Row]] = {
    maker.__name__.removeprefix("_"): maker
    for maker in (_cola, _mnli, _mrpc, _qnli, _qqp, _rte, _sst2, _imdb)
}
