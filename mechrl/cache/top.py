"""The heads that matter most on a task, alone and in pairs, with intervals and what settles the first doubts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from mechrl.cache.reader import Cache
from mechrl.display import html_table, shown
from mechrl.errors import UsageError, check_range, unknown_name
from mechrl.intervals import Estimate, bootstrap_means, interval
from mechrl.score import best_first, rank, score
from mechrl.tasks import TRAIN

WEIGHTS = (0.0, 0.5, 1.0, 2.0)  # control weights at which ranks are shown
ROLE = 0.4  # the score from which on a head is said to have a role
GENERAL = "general"
DEPENDS = "depends on the weight"


@dataclass(frozen=True)
class TopHead:
    """A head on a task: means over all prompts in nats, each with its interval.

    Of an imported cache there are the score, over all episodes, and its rank at control weight 1; the rest is None or
    empty.

    :param direct: what the head itself writes for the answers against the wrongs, see `ablation.intact.direct`; None
        where the cache has none.
    :param indirect: damage minus `direct`: what goes through later layers. Negative: the model repairs itself.
    :param specificity: damage minus its mean over the other tasks of the cache; None where there are none.
    :param ranks: by score at the control weights 0, 0.5, 1 and 2, 1 being the best.
    :param marks: `general`: on more than half of three or more tasks its damage is 5 % of the clean logit difference
        and among the highest tenth (3 at least). `depends on the weight`: its rank moves by more than a tenth of all
        heads.
    :param roles: those of its role scores (`Cache.roles`) that are at least 0.4, highest first.
    """

    head: str
    damage: Estimate | None
    control: Estimate | None
    score: Estimate
    direct: Estimate | None
    indirect: Estimate | None
    specificity: Estimate | None
    ranks: list[int]
    marks: list[str]
    roles: dict[str, float]


class TopHeads(list[TopHead]):
    """Heads of a task, best first; a notebook shows them as the table of `mechrl-cache top`.

    :param title: what stands above the table.
    :param columns: the names of its columns, each one of `COLUMNS`.
    :param caption: what stands below it.
    """

    def __init__(self, heads: Iterable[TopHead], title: str, columns: Sequence[str], caption: str = ""):
        super().__init__(heads)
        self.title, self.columns, self.caption = title, list(columns), caption

    @property
    def rows(self) -> list[list[Any]]:
        """The cells of the table, a row for each head."""
        return [[COLUMNS[column](head) for column in self.columns] for head in self]

    def _repr_html_(self) -> str:
        return html_table(self.title, self.columns, self.rows, self.caption)


COLUMNS: Mapping[str, Callable[[TopHead], Any]] = {
    "head": lambda head: head.head,
    "score": lambda head: shown(head.score),
    "damage": lambda head: shown(head.damage),
    "direct": lambda head: shown(head.direct),
    "damage - direct": lambda head: shown(head.indirect),
    "specificity": lambda head: shown(head.specificity),
    "ranks": lambda head: " ".join(map(str, head.ranks)),
    "roles": lambda head: ", ".join(f"{name} {score:.2f}" for name, score in head.roles.items()),
    "marks": lambda head: ", ".join(head.marks),
    "rank": lambda head: head.ranks[0],
}


def top_heads(cache: Cache, task: str, n: int = 10, by: str = "score", control_weight: float = 1.0) -> TopHeads:
    """The heads of a task that matter most, with what settles the first doubts about them.

    :param cache: an open cache.
    :param task: one of its tasks.
    :param n: how many heads, from 1 on.
    :param by: what they are ordered by, the largest first: score, damage or abs, the absolute score.
    :param control_weight: score = damage − this × control damage.
    :raises UsageError: the cache has no such task, or there is no such order; it is imported, and the order is by
        damage, or the weight not 1.
    """
    check_range(n=(n, 1, inf))
    cache.check_control_weight(control_weight)
    if cache.imported:
        return _top_of_import(cache, task, by, n)
    group = cache.prompts(task).group
    damage, control, direct = cache.damage(task), cache.control_damage, cache.direct(task)
    means, drawn = damage.mean(0), bootstrap_means(damage, group)
    control_means, control_drawn = control.mean(0), bootstrap_means(control, np.arange(len(control)), seed=1)
    columns = {
        "damage": (means, drawn),
        "control": (control_means, control_drawn),
        "score": (score(means, control_means, control_weight), score(drawn, control_drawn, control_weight)),
    }
    if direct is not None:
        columns["direct"] = direct.mean(0), bootstrap_means(direct, group)
        columns["indirect"] = (damage - direct).mean(0), bootstrap_means(damage - direct, group)
    if others := [cache.damage(other) for other in cache.tasks if other != task]:
        groups = [cache.prompts(other).group for other in cache.tasks if other != task]
        resampled = [bootstrap_means(d, g, seed=2 + i) for i, (d, g) in enumerate(zip(others, groups, strict=True))]
        columns["specificity"] = (
            means - np.mean([other.mean(0) for other in others], axis=0),
            drawn - np.mean(resampled, axis=0),
        )
    ends = {name: (mean, *interval(resampled)) for name, (mean, resampled) in columns.items()}
    scores = columns["score"][0]
    ranks = np.stack([rank(score(means, control_means, weight)) for weight in WEIGHTS], axis=1)
    moved = np.ptp(ranks, axis=1) > cache.n_sites / 10
    general = general_heads(*([of(name).mean(0) for name in cache.tasks] for of in (cache.damage, cache.clean)))

    def at(name: str, site: int) -> Estimate | None:
        return Estimate(*(float(column[site]) for column in ends[name])) if name in ends else None

    heads = [
        TopHead(
            head=cache.head(site),
            **{name: at(name, site) for name in ("damage", "control", "score", "direct", "indirect", "specificity")},  # type: ignore[arg-type]
            ranks=ranks[site].tolist(),
            marks=[GENERAL] * bool(general[site]) + [DEPENDS] * bool(moved[site]),
            roles=_roles(cache, site),
        )
        for site in _first(by, n, {"score": scores, "damage": means, "abs": np.abs(scores)})
    ]
    columns_shown = [name for name in COLUMNS if name != "rank" and (name != "roles" or cache.roles)]
    clean = cache.clean(task).mean()
    return TopHeads(
        heads, f"{task}: accuracy {cache.accuracy(task):.3f}, clean logit difference {clean:.2f}", columns_shown
    )


def _top_of_import(cache: Cache, task: str, by: str, n: int) -> TopHeads:
    scores = cache.episode_scores(task)
    mean, (low, high) = scores.mean(0), interval(bootstrap_means(scores, np.arange(len(scores))))
    if by == "damage":
        raise UsageError(f"{cache.path} is imported and holds scores alone: order them by score or abs")
    ranks = rank(mean)
    heads = [
        TopHead(
            head=cache.head(site),
            score=Estimate(float(mean[site]), float(low[site]), float(high[site])),
            **dict.fromkeys(("damage", "control", "direct", "indirect", "specificity")),
            ranks=[int(ranks[site])],
            marks=[],
            roles=_roles(cache, site),
        )
        for site in _first(by, n, {"score": mean, "abs": np.abs(mean)})
    ]
    return TopHeads(
        heads,
        f"{task}: scores imported from {cache.attributes['imported']}",
        ["head", "score", "rank"],
        "means over all episodes, with 95 % intervals (bootstrap over episodes)",
    )


def _roles(cache: Cache, site: int) -> dict[str, float]:
    scores = {name: float(values[site]) for name, values in cache.roles.items() if values[site] >= ROLE}
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


def _first(by: str, n: int, keys: Mapping[str, np.ndarray]) -> list[int]:
    """The `n` sites with the largest key."""
    if by not in keys:
        raise unknown_name("order", by, list(keys))
    return [int(site) for site in best_first(keys[by])[:n]]


def general_heads(damage: Sequence[np.ndarray], clean: Sequence[float]) -> np.ndarray:
    """Which heads have high damage on most tasks, bool [site]; of three tasks at least.

    :param damage: the mean of each task, [site].
    :param clean: the mean clean logit difference of each task.
    """
    n_sites = len(damage[0])
    high = [
        (rank(of_task) <= max(3, n_sites // 10)) & (of_task >= 0.05 * abs(measure))
        for of_task, measure in zip(damage, clean, strict=True)
    ]
    return np.sum(high, axis=0) * 2 > len(damage) if len(damage) >= 3 else np.zeros(n_sites, bool)


@dataclass(frozen=True)
class Pair:
    """Two heads on a task: means over the evaluation prompts in nats, each with its 95 % interval.

    :param joint: damage of both ablated together; `summed`: what each costs alone, added.
    :param interaction: `joint` − `summed`; above zero they cost more together, as heads that stand in for another do.
    """

    heads: list[str]
    joint: Estimate
    summed: Estimate
    interaction: Estimate


def top_pairs(cache: Cache, task: str, n: int = 10) -> list[Pair]:
    """The `n` pairs whose joint damage is furthest from the sum on the training prompts; shown is the evaluation.

    :raises UsageError: the cache has no such task, or no pairs.
    """
    found = cache.pairs(task)
    if found is None:
        raise UsageError(f"{cache.path} holds no pairs; build a cache with sets of pairs")
    sites, joint = found
    damage, group, train = cache.damage(task), cache.prompts(task).group, cache.in_split(task, TRAIN)
    interaction = joint[train].mean(0) - damage[train].mean(0)[sites].sum(1)
    joint, damage, group = joint[~train], damage[~train], group[~train]
    order = best_first(np.abs(interaction))[:n]
    columns = {"joint": joint[:, order], "summed": damage[:, sites[order]].sum(2)}
    columns["interaction"] = columns["joint"] - columns["summed"]
    ends = {
        name: np.stack([values.mean(0), *interval(bootstrap_means(values, group))], axis=1).tolist()
        for name, values in columns.items()
    }
    return [
        Pair([cache.head(int(site)) for site in sites[which]], **{name: Estimate(*of[i]) for name, of in ends.items()})
        for i, which in enumerate(order)
    ]
