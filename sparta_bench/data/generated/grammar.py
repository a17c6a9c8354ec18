"""Words, facts and opinions of the generated data sets.

All of it turns a ``random.Random`` into English. Only ``random()``, ``randrange()`` and
``choice()`` are drawn from, because those give the same values on every supported Python.
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from random import Random

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


@dataclass(frozen=True)
class Fact:
    """One event; every slot is an index into the tuple of words of that name."""

    actor: int
    verb: int
    colour: int
    thing: int
    place: int
    actors: tuple[tuple[str, str], ...] = HUMANS

    def who(self, synonym: int = 0) -> str:
        """The actor with its article: ``the baker``."""
        return f"the {self.actors[self.actor][synonym]}"

    def what(self, synonym: int = 0, article: str = "a") -> str:
        """The coloured thing with an article: ``a red kite``."""
        return f"{article} {COLOURS[self.colour]} {THINGS[self.thing][synonym]}"

    def did(self, synonym: int = 0) -> str:
        """The verb in the past: ``stole``."""
        return VERBS[self.verb][synonym]

    def do(self, synonym: int = 0) -> str:
        """The bare verb: ``steal``."""
        return VERBS[self.verb][2 + synonym]

    def where(self) -> str:
        """The place with its preposition: ``on the roof``."""
        return PLACES[self.place]


def draw_fact(rng: Random, actors: tuple[tuple[str, str], ...] = HUMANS) -> Fact:
    """A fact with every slot drawn evenly."""
    words: tuple[Sized, ...] = (actors, VERBS, COLOURS, THINGS, PLACES)
    actor, verb, colour, thing, place = (rng.randrange(len(choices)) for choices in words)
    return Fact(actor, verb, colour, thing, place, actors)


def other_index(rng: Random, current: int, length: int) -> int:
    """An index below ``length`` that is not ``current``."""
    return (current + 1 + rng.randrange(length - 1)) % length


def coin(rng: Random, probability: float = 0.5) -> bool:
    """True with the given probability."""
    return rng.random() < probability


def sentence(words: str, mark: str = ".") -> str:
    """Capital letter in front, punctuation behind."""
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


# ----------------------------------------------------------------------- opinions about films
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
