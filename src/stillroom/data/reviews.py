"""A made-up set of one-sentence opinions, in which no word alone tells the label."""

from __future__ import annotations

import random

GOOD = ("good", "brilliant", "moving", "funny", "clever", "fresh", "gripping", "charming", "superb", "honest")
BAD = ("bad", "dull", "clumsy", "boring", "stale", "awful", "lazy", "tedious", "hollow", "dreary")
THINGS = (
    "acting", "story", "script", "music", "ending", "cast", "dialogue", "camera", "pace", "humour", "plot",
    "setting", "sound", "opening", "hero", "villain",
)  # fmt: skip
STRONG = ("very ", "really ", "quite ", "simply ", "truly ", "")
NEGATION = ("not ", "never ", "hardly ", "far from ")
WAYS = (
    "{a}, but {b}",
    "{a}; in the end, though, {b}",
    "although {a}, {b}",
    "{b}, even though {a}",
    "{b}, despite what some say: {a}",
    "people complain that {a}, yet {b}",
)


def reviews(count: int = 6000, seed: int = 0) -> tuple[list[str], list[int]]:
    """`count` sentences and their labels (1 positive, 0 negative), half of each; a function of `seed`.

    A sentence has two clauses about two things, one clause for the thing and one against it, and the way they are
    joined says which one decides: "the acting was not very good, but the script was hardly dull" is positive. A
    clause is turned round by a negation in half of the cases. Each sentence is written with both choices of
    deciding clause, so that its twin has the same words and the other label: whatever counts words is right for
    half of them.
    """
    draw = random.Random(seed)
    texts: list[str] = []
    labels: list[int] = []
    for _ in range(-(-count // 2)):
        way, things = draw.choice(WAYS), draw.sample(THINGS, 2)
        good, bad = _clause(draw, things[0], True), _clause(draw, things[1], False)
        texts += [way.format(a=bad, b=good), way.format(a=good, b=bad)]
        labels += [1, 0]
    return texts[:count], labels[:count]


def _clause(draw: random.Random, thing: str, positive: bool) -> str:
    turned = draw.random() < 0.5
    word = draw.choice(GOOD if positive != turned else BAD)
    return f"the {thing} was {draw.choice(NEGATION) if turned else ''}{draw.choice(STRONG)}{word}"
