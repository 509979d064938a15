"""A made-up set of one-sentence opinions: most cannot be told by their words, only by how these are joined."""

from __future__ import annotations

import random

GOOD = ("good", "brilliant", "moving", "funny", "clever", "fresh", "gripping", "charming")
BAD = ("bad", "dull", "clumsy", "boring", "stale", "awful", "lazy", "tedious")
THINGS = ("acting", "story", "script", "music", "ending", "cast", "plot", "sound", "opening", "hero")
STRONG = ("very ", "really ", "quite ", "")
NEGATION = ("not ", "never ", "hardly ")
WAYS = (
    "{a}, but {b}",
    "although {a}, {b}",
    "{b}, even though {a}",
    "people complain that {a}, yet {b}",
)


def reviews(count: int = 6000, seed: int = 0) -> tuple[list[str], list[int]]:
    """`count` sentences and their labels (1 positive, 0 negative), half of each; a function of `seed`.

    A third have one clause: "the acting was not very good". The others have two, one for its thing and one against
    it, and the way they are joined says which decides: "the acting was good, but the script was hardly moving" is
    negative. Each of these is written with both choices of the deciding clause, so that its twin has the same words
    and the other label: whatever counts words is right for half of them. A negation turns a quarter of the clauses.
    """
    draw = random.Random(seed)
    texts: list[str] = []
    labels: list[int] = []
    while len(texts) < count:
        first, second = draw.sample(THINGS, 2)
        good, bad = _clause(draw, first, True), _clause(draw, second, False)
        way = draw.choice(WAYS) if draw.random() < 2 / 3 else "{b}"
        texts += [way.format(a=bad, b=good), way.format(a=good, b=bad)]
        labels += [1, 0]
    return texts[:count], labels[:count]


def _clause(draw: random.Random, thing: str, positive: bool) -> str:
    turned = draw.random() < 0.25
    word = draw.choice(GOOD if positive != turned else BAD)
    return f"the {thing} was {draw.choice(NEGATION) if turned else ''}{draw.choice(STRONG)}{word}"
