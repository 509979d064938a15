"""The claims about pruning with a teacher, each with its own verdict, and the sweep that they are read off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

from stillroom.claim import Claim, Rule
from stillroom.method import Method
from stillroom.predictors.labels.data_pruning_kd.controls import OwnTeacher
from stillroom.predictors.labels.data_pruning_kd.method import DataPruningKD, KeptAlone
from stillroom.predictors.labels.data_pruning_kd.task import PrunedClassification
from stillroom.reports.pruning_figures import Figure, accuracy_by_fraction

RULES: tuple[Literal["random", "el2n", "forgetting"], ...] = ("random", "el2n", "forgetting")
FRACTIONS = (0.05, 0.25, 0.5)
ALPHAS = (0.0, 0.5, 0.9, 1.0)
"""What auto tries in the claims; the paper tuned alpha for each fraction, its grid is not known."""


# -- the sweep ----------------------------------------------------------------------------------------------------


def named(rule: str, fraction: float, alpha: float | str) -> str:
    """What an arm of a sweep is called: the rule, the kept percentage and the teacher's weight."""
    return f"{rule} {fraction:.0%} {'alone' if alpha == 0 else f'alpha {alpha}'}".replace(
        "alpha auto", "taught"
    )


def sweep(
    rules: Sequence[Any],
    fractions: Sequence[float],
    weights: Sequence[float | Literal["auto"]],
    **options: Any,
) -> dict[str, Method]:
    """Arms for every (rule, fraction, alpha of `weights`), with further options of the method.

    Alpha 0 is the student alone; auto chooses among the option `alphas`.
    """
    arms: dict[str, Method] = {}
    for rule in rules:
        for fraction in fractions:
            for alpha in weights:
                kind = KeptAlone if alpha == 0 else DataPruningKD
                arms[named(rule, fraction, alpha)] = kind(rule, fraction, alpha=alpha, **options)
    return arms


def table(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a claim's evidence as a sweep: rule, fraction, alpha, and the scores over seeds of each arm."""
    keys = ("rule", "fraction", "alpha")
    return [
        {key: arm["options"][key] for key in keys} | {"scores": arm["scores"]}
        for arm in entry["arms"].values()
        if all(key in arm["options"] for key in keys)
    ]


def sweep_figure(entry: Mapping[str, Any]) -> Figure:
    """Accuracy against the kept fraction of a claim's evidence, a line for each rule, alone and taught.

    Of a single rule there is a line for each alpha, fixed ones too.
    """
    rows = table(entry)
    several = len({row["rule"] for row in rows}) > 1
    words = {0: "alone", "auto": "taught" if several else "alpha chosen"}
    lines: dict[str, dict[float, Sequence[float]]] = {}
    for row in rows:
        if row["alpha"] in words or not several:
            how = words.get(row["alpha"], f"alpha {row['alpha']}")
            lines.setdefault(f"{row['rule']}, {how}", {})[row["fraction"]] = row["scores"]
    points = [(label, sorted(found), [found[f] for f in sorted(found)]) for label, found in lines.items()]
    return accuracy_by_fraction(points, "test split")


def drawn(entry: Mapping[str, Any]) -> list[Figure]:
    """What the page of a claim about fractions shows beside its comparisons."""
    return [sweep_figure(entry)]


# -- the claims ---------------------------------------------------------------------------------------------------

NOTES = (
    "8x8 digits, 800 training images of which 15 % have another class's label, for teacher and students alike; "
    "validation (97) and test labels (900) are right, and alpha is chosen on validation. MLP 64-64-10 for both unless "
    "said; 400 steps of batch 50 for every training, whatever is kept."
)


def digits(**changes: Any) -> PrunedClassification:
    """The digits with 15 % wrong training labels."""
    return PrunedClassification(label_noise=0.15).but(**changes)


def helps() -> Claim:
    """The whole sweep; a teacher helps in each cell of rule and fraction below 1."""
    arms = sweep(RULES, FRACTIONS, (0.0, 0.5, 1.0, "auto"), alphas=ALPHAS)
    arms |= sweep(("random",), (1.0,), (0.0, 0.5, 1.0, "auto"), alphas=ALPHAS)
    cells = [(rule, f) for rule in RULES for f in FRACTIONS]
    own = named("random", 0.5, "auto")
    return Claim(
        name="data-pruning-kd-digits",
        says="A teacher of all data makes every rule of pruning better at every fraction below 1, and a random half "
        "with it is better than all data without (ImageNet, 50 %).",
        task=digits(),
        engine=DataPruningKD.default_engine(),
        arms=arms,
        rules=(
            *(Rule(named(rule, f, "auto"), named(rule, f, 0.0)) for rule, f in cells),
            Rule(own, named("random", 1.0, 0.0), headline=False),
            *(Rule(named("random", f, "auto"), named("el2n", f, "auto"), headline=False) for f in FRACTIONS),
        ),
        seeds=10,
        notes=NOTES,
        draw=drawn,
    )


def random_suffices() -> Claim:
    """With a teacher a random choice is at most a point worse than scores, at every fraction."""
    scored = ("el2n", "forgetting")
    arms = sweep(("random", *scored), FRACTIONS, ("auto",), alphas=ALPHAS)
    rules = [
        Rule(named("random", f, "auto"), named(rule, f, "auto"), margin=0.01)
        for f in FRACTIONS
        for rule in scored
    ]
    return Claim(
        name="data-pruning-kd-digits-random",
        says="With a teacher, random pruning matches or beats pruning by score at every fraction.",
        task=digits(),
        engine=DataPruningKD.default_engine(),
        arms=arms,
        rules=rules,
        seeds=10,
        notes=f"{NOTES} Random may be a point worse. Alpha is tuned for every arm alike.",
        draw=drawn,
    )


def weight_falls() -> Claim:
    """The alpha that validation chooses is larger the less is kept."""
    fractions = (0.05, 0.25, 0.5, 1.0)
    arms = sweep(("random",), fractions, (0.0, 0.5, 1.0, "auto"), alphas=ALPHAS)
    pairs = [(named("random", a, "auto"), named("random", b, "auto")) for a, b in pairwise(fractions)]
    ends = named("random", fractions[0], "auto"), named("random", fractions[-1], "auto")
    low, high = (named("random", 0.05, a) for a in (0.5, 1.0))
    return Claim(
        name="data-pruning-kd-digits-weight",
        says="The best weight of the teacher rises as the kept fraction falls (CIFAR-100: more than 8 points between "
        "weights of .5 and 1 at small fractions).",
        task=digits(),
        engine=DataPruningKD.default_engine(),
        arms=arms,
        rules=(
            Rule(*ends, metric="alpha", higher_is_better=True),
            *(Rule(a, b, headline=False, metric="alpha", higher_is_better=True) for a, b in pairs),
            Rule(high, low, headline=False),
            Rule(named("random", 1.0, 0.5), named("random", 1.0, 1.0), headline=False),
        ),
        seeds=10,
        notes=f"{NOTES} What decides is the alpha that was chosen at 5 % against that at 100 %.",
        draw=drawn,
    )


def small_teacher() -> Claim:
    """At a small fraction a teacher smaller than the student is better than a large one."""
    sizes = ("mlp:16", "mlp:64-64", "mlp:512")
    arms: dict[str, Method] = {
        f"{f:.0%} from {size}": OwnTeacher(fraction=f, network=size) for f in (0.05, 0.25) for size in sizes
    }
    return Claim(
        name="data-pruning-kd-digits-teacher",
        says="Where little is kept, a teacher smaller than the student is better than a larger one.",
        task=digits(),
        engine=DataPruningKD.default_engine(),
        arms=arms,
        rules=(
            Rule("5% from mlp:16", "5% from mlp:512"),
            Rule("5% from mlp:16", "5% from mlp:64-64", headline=False),
            Rule("25% from mlp:16", "25% from mlp:512", headline=False),
        ),
        seeds=10,
        notes=f"{NOTES} Random choice, alpha 1; teachers with 16, 64-64 and 512 hidden units, trained on all data.",
    )


def teacher_of_all() -> Claim:
    """The more data the teacher has seen, the better its student of few (the theory's statement, for networks)."""
    shares = (0.05, 0.25, 0.5, 1.0)
    arms: dict[str, Method] = {
        f"teacher of {share:.0%}": OwnTeacher(fraction=0.05, alpha=0.9, teacher_fraction=share)
        for share in shares
    }
    return Claim(
        name="data-pruning-kd-digits-teacher-data",
        says="A student of few samples is the better the more of the data its teacher has seen, of the same "
        "architecture as itself.",
        task=digits(),
        engine=DataPruningKD.default_engine(),
        arms=arms,
        rules=(
            Rule("teacher of 100%", "teacher of 5%"),
            Rule("teacher of 100%", "teacher of 25%"),
            Rule("teacher of 25%", "teacher of 5%", headline=False),
            Rule("teacher of 100%", "teacher of 50%", headline=False),
        ),
        seeds=10,
        notes=f"{NOTES} Random 5 %, alpha .9; every teacher's samples hold the student's.",
    )


def on_mnist() -> Claim:
    """Right labels, a residual network: does a teacher help."""
    fractions = (0.05, 0.25)
    alphas = (0.0, 0.5, 1.0)
    arms = sweep(("random", "el2n"), fractions, (0.0, "auto"), alphas=alphas)
    arms |= sweep(("random",), (1.0,), (0.0, "auto"), alphas=alphas)
    random = [named("random", f, "auto") for f in (*fractions, 1.0)]
    return Claim(
        name="data-pruning-kd-mnist",
        says="A teacher of all data makes random pruning and pruning by score better.",
        task=PrunedClassification(
            data="mnist", image_size=14, train_samples=5000, student="resnet:8-16", teacher="resnet:8-16"
        ).but(teacher_epochs=6),
        engine=replace(DataPruningKD.default_engine(), epochs=6),
        arms=arms,
        rules=(
            *(Rule(named(r, f, "auto"), named(r, f, 0.0)) for r in ("random", "el2n") for f in fractions),
            *(Rule(random[i], named("el2n", f, "auto"), headline=False) for i, f in enumerate(fractions)),
            Rule(random[0], random[-1], headline=False, metric="alpha", higher_is_better=True),
        ),
        seeds=5,
        data="mnist",
        notes="MNIST at 14x14 pixels, 5,000 training images with their own labels; a small residual network for "
        "both; 600 steps of batch 50 for every training. Alpha is chosen on the 5,000 validation images.",
        draw=drawn,
    )


def claims() -> tuple[Claim, ...]:
    """All of them."""
    return (helps(), random_suffices(), weight_falls(), small_teacher(), teacher_of_all(), on_mnist())
