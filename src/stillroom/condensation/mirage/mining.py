"""Frequent sets by FP-growth (Han, Pei and Yin, SIGMOD 2000), exact, and thresholds that meet a budget."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from stillroom.errors import UserError

Items = tuple[int, ...]
"""Items of a set, ascending."""

MOST_SETS = 50_000
"""Sets that are looked at for one threshold before it counts as too low."""

STEP = 0.95
"""Factor by which the share of a class's graphs is lowered in the first search."""


class _Prefixes:
    """The FP-tree: transactions as paths from a root, frequent items first, with the nodes of each item listed."""

    def __init__(self, paths: Iterable[tuple[Collection[int], int]], support: int) -> None:
        paths = list(paths)
        counts: Counter[int] = Counter()
        for items, times in paths:
            for item in items:
                counts[item] += times
        frequent = sorted((item for item in counts if counts[item] >= support), key=lambda i: (-counts[i], i))
        self.counts = {item: counts[item] for item in frequent}
        rank = {item: place for place, item in enumerate(frequent)}
        self.nodes: dict[int, list[int]] = {item: [] for item in frequent}
        self._item, self._parent, self._times = [-1], [-1], [0]
        self._below: list[dict[int, int]] = [{}]
        for items, times in paths:
            self._insert(sorted((i for i in items if i in rank), key=rank.__getitem__), times)

    def _insert(self, items: Sequence[int], times: int) -> None:
        at = 0
        for item in items:
            below = self._below[at].get(item)
            if below is None:
                below = self._below[at][item] = len(self._item)
                self._item.append(item)
                self._parent.append(at)
                self._times.append(0)
                self._below.append({})
                self.nodes[item].append(below)
            at = below
            self._times[at] += times

    def above(self, item: int) -> Iterator[tuple[list[int], int]]:
        """What stands before `item` in the transactions that hold it, and how often."""
        for node in self.nodes[item]:
            path, at = [], self._parent[node]
            while at:
                path.append(self._item[at])
                at = self._parent[at]
            yield path, self._times[node]


def fp_growth(
    transactions: Iterable[Collection[int]], support: int, largest: int = 0
) -> Iterator[tuple[Items, int]]:
    """All sets of items that at least `support` >= 1 transactions hold, each once, with how many do.

    A transaction holds an item once or not at all. `largest` limits the items of a set; 0 does not. The frequent
    sets of the rarest items come first.
    """
    yield from _grow(_Prefixes(((set(items), 1) for items in transactions), support), (), support, largest)


def _grow(tree: _Prefixes, suffix: Items, support: int, largest: int) -> Iterator[tuple[Items, int]]:
    for item in reversed(list(tree.counts)):
        found = (item, *suffix)
        yield tuple(sorted(found)), tree.counts[item]
        if len(found) != largest:
            yield from _grow(_Prefixes(tree.above(item), support), found, support, largest)


@dataclass(frozen=True)
class Mined:
    """The frequent sets of one class."""

    threshold: int
    """Fewest graphs of the class that hold a set."""
    sets: list[tuple[Items, int]]
    """Sets and in how many graphs of the class they are; the most frequent first."""
    dropped: int = 0
    """Sets left out because they are frequent in another class too."""


class Miner:
    """The frequent sets of each class under thresholds, and the thresholds that fill a budget.

    `transactions` are, by class, the graphs' sets of items; `cost` what a set costs in an example of its own.
    """

    def __init__(
        self,
        transactions: Sequence[Sequence[Collection[int]]],
        cost: Mapping[int, int],
        overhead: int,
        largest: int = 0,
        prune: bool = False,
    ) -> None:
        self.transactions, self.cost, self.overhead = transactions, cost, overhead
        self.largest, self.prune = largest, prune
        self._holders = [_holders(graphs) for graphs in transactions]

    def price(self, items: Items) -> int:
        """What an example with these trees costs."""
        return self.overhead + sum(self.cost[item] for item in items)

    def support(self, items: Items, label: int) -> int:
        """In how many graphs of class `label` all the items are."""
        holders = self._holders[label]
        common = holders.get(items[0], 0)
        for item in items[1:]:
            common &= holders.get(item, 0)
        return common.bit_count()

    def mine(self, thresholds: Sequence[int], label: int, budget: float = math.inf) -> Mined | None:
        """The sets of class `label`; None as soon as they cost more than the budget, or are too many to look at."""
        sets, spent, dropped = [], 0, 0
        for items, support in fp_growth(self.transactions[label], thresholds[label], self.largest):
            if self.prune and self._elsewhere(items, label, thresholds):
                dropped += 1
            else:
                sets.append((items, support))
                spent += self.price(items)
            if spent > budget or (budget < math.inf and len(sets) + dropped > MOST_SETS):
                return None
        return Mined(thresholds[label], sorted(sets, key=lambda s: (-s[1], s[0])), dropped)

    def _elsewhere(self, items: Items, label: int, thresholds: Sequence[int]) -> bool:
        others = (c for c in range(len(thresholds)) if c != label)
        return any(self.support(items, c) >= thresholds[c] for c in others)

    def at(self, share: float) -> list[int]:
        """The thresholds that ask for this share of each class's graphs."""
        return [max(1, math.ceil(share * len(graphs) - 1e-9)) for graphs in self.transactions]

    def within(self, budgets: Sequence[float]) -> list[Mined]:
        """The sets of all classes under the lowest thresholds whose sets cost no more than each class's budget.

        First one share of the graphs for all classes, lowered until a class is full; then, class by class, as
        far down as its own budget goes. With pruning a class may empty another: its threshold goes no lower than
        where every other class keeps half of what it had. Raises UserError where not even one tree is affordable.
        """
        best = self._together(budgets)
        for label in range(len(budgets)):
            best = self._lowered(best, label, budgets)
        short = [label for label, mined in enumerate(best) if not mined.sets]
        if short:
            raise UserError(self._why(short[0], budgets[short[0]]))
        return best

    def _why(self, label: int, budget: float) -> str:
        least = min((self.price((item,)) for item in self._holders[label]), default=0)
        if self.prune and least <= budget:
            return (
                f"all affordable trees of class {label} are frequent in other classes too: drop --method.prune, or "
                "raise --task.budget"
            )
        return (
            f"the budget leaves class {label} with no tree ({budget:.0f} bytes, the smallest tree takes {least}): "
            "raise --task.budget"
        )

    def _all(self, thresholds: Sequence[int], budgets: Sequence[float]) -> list[Mined] | None:
        mined = []
        for label, budget in enumerate(budgets):
            one = self.mine(thresholds, label, budget)
            if one is None:
                return None
            mined.append(one)
        return mined

    def _together(self, budgets: Sequence[float]) -> list[Mined]:
        above = [len(graphs) + 1 for graphs in self.transactions]
        best = [Mined(threshold, []) for threshold in above]
        share, tried = 1.0, above
        while tried != [1] * len(budgets):
            thresholds = self.at(share)
            share *= STEP
            if thresholds == tried:
                continue
            tried = thresholds
            found = self._all(thresholds, budgets)
            if found is None:
                break
            best = found
        return best

    def _lowered(self, best: list[Mined], label: int, budgets: Sequence[float]) -> list[Mined]:
        """The lowest threshold of one class, the others' as they are, by halving."""
        low, high = 0, best[label].threshold  # `high` fits, `low` does not.
        while high - low > 1:
            middle = (low + high) // 2
            thresholds = [one.threshold for one in best]
            thresholds[label] = middle
            found = self._all(thresholds, budgets)
            if found is not None and all(
                2 * len(new.sets) >= len(old.sets) for new, old in zip(found, best, strict=True)
            ):
                best, high = found, middle
            else:
                low = middle
        return best


def _holders(graphs: Sequence[Collection[int]]) -> dict[int, int]:
    """For each item the graphs that hold it, as bits of a number."""
    found: dict[int, int] = {}
    for place, items in enumerate(graphs):
        for item in items:
            found[item] = found.get(item, 0) | 1 << place
    return found
