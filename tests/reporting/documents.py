"""A verification and a benchmark, made up."""

import hashlib
from pathlib import Path

import numpy as np

from mechrl.ablation.intact.attention import Aligned, Attention, DrawnPrompt, HeadAttention, Slot
from mechrl.cache.reader import Cache
from mechrl.cache.top import TopHead, top_heads
from mechrl.intervals import Estimate
from mechrl.search.bench.result import Benchmark, Fingerprints, MethodSummary, SearchedTask, Verdict
from mechrl.verification.result import (
    Complete,
    Curves,
    Faithful,
    FaithfulTask,
    Joint,
    Ranking,
    Replicates,
    Specific,
    Verification,
    VerifiedHead,
    VerifiedTask,
)


def around(mean: float, by: float = 0.25) -> Estimate:
    return Estimate(mean, mean - by, mean + by)


def verification(cache: Cache, checkpoint: Path | None = None) -> Verification:
    """A verification of a cache: the two best heads of each task hold, the third does not.

    On the first task the heads stand in for one another, on the others their damages add up.
    """
    a = cache.attributes
    return Verification(
        command="mechrl-verify checkpoint.zip --json", mechrl_version="0.1.0", library_versions={"torch": "2.13.0"},
        model=a["model"], model_sha256=a["model_sha256"], cache_sha256=cache.sha256,
        checkpoint_sha256=hashlib.sha256(checkpoint.read_bytes()).hexdigest() if checkpoint else None,
        ablation=a["ablation"], control_weight=1.0, seed=0, confirmed=False,
        faithful=Faithful(answer=True, tolerance=0.001, control_difference=6e-7),
        tasks={task: verified_task(cache, task, i) for i, task in enumerate(cache.tasks)},
    )  # fmt: skip


def verified_task(cache: Cache, task: str, i: int) -> VerifiedTask:
    top = top_heads(cache, task, 3)
    clean = float(cache.clean(task).mean())
    counts = [0, 1, 2, 4, 8, cache.n_sites]
    kept = np.linspace(0.2, clean, len(counts)).tolist()
    names = [head.head for head in top]
    areas = {"cpr": 0.61, "cmd": 0.42, "mib_cpr": 0.58, "mib_cmd": 0.44, "necessity": 0.7}
    return VerifiedTask(
        trained=i < 2, confirmed=False, runs=13.7, search={"ratio@3": 0.97},
        faithful=FaithfulTask(answer=True, difference=2e-6),
        replicates=Replicates(
            answer=False, fresh_from="generator", prompts=128, groups=64, known_answers=(0, 13), clean=clean,
            swept=True, searched_answers=13, measured=cache.n_sites, best=9, rank_limit=3,
        ),
        specific=Specific(
            answer=True, permuted=True, passed=[], clean=0.01, random_failed=(20, 20), random_passed=[]
        ),
        complete=Complete(answer=i != 1, coverage=around(0.9, 0.05), ratio=around(0.97, 0.02), best=names),
        heads=[verified_head(head, n, clean) for n, head in enumerate(top)],
        joint=[joint(top[: n + 1], 2.5 if i == 0 and n else 0.0) for n in range(3)],
        curves=Curves(
            counts=counts, full=clean, empty=0.2, refused=None,
            rankings={
                "the cache's scores": Ranking(heads=names, kept=kept, ablated=kept[::-1], **areas),
                "random": Ranking(heads=[], kept=[v**2 / clean for v in kept], ablated=kept[::-1], **areas),
            },
        ),
    )  # fmt: skip


def verified_head(head: TopHead, n: int, clean: float) -> VerifiedHead:
    """The n-th best head of a task."""
    return VerifiedHead(
        head=head.head, cached=head.score.mean, live=head.score.mean, difference=1e-6, damage=head.damage,
        share=head.damage.mean / clean, score=head.score, p=0.001, p_adjusted=0.003, top_share=0.99,
        rank=Estimate(n + 1, 1, n + 2), direct=around(0.1, 0.02), elsewhere=around(0.3, 0.1), answer=n < 2,
        why="" if n < 2 else "its interval reaches zero", placebo=None,
    )  # fmt: skip


def joint(top: list[TopHead], more: float) -> Joint:
    """Some heads together, with so much more damage than the sum of theirs."""
    summed = sum(head.damage.mean for head in top)
    return Joint(heads=[head.head for head in top], joint=around(summed + more), summed=around(summed),
                 interaction=around(more))  # fmt: skip


METHOD = MethodSummary(
    track="reference", exploratory=False, cost=8.0, cost_low=6.0, cost_high=9.0, cost_by_family={"copying": 8.0},
    censored=1.0, cost_with_control=16.0, set_up_runs=0.0, set_up_seconds=0.1, coverage_at_2_runs=0.2,
    coverage_at_5_runs=0.6, coverage_at_10_runs=1.0, ratio_at_1=0.3, ratio_at_3=0.5, ratio_at_5=0.7, ratio_at_10=0.9,
    ratio_at_25=None, ratio_at_50=None,
)  # fmt: skip
FAMILIES = {"copying": ["induction"], "names": ["ioi"]}


def bench(caches: dict[str, Cache], agent: str = "agent") -> Benchmark:
    """A benchmark of two methods on two tasks of each cache; the agent is twice as cheap."""
    methods = {agent: METHOD.model_copy(update={"track": "scores", "cost": 4.0, "censored": 0.0}), "random": METHOD}
    curves = {agent: [0.0, 0.5, 0.95, 1.0], "random": [0.0, 0.2, 0.5, 0.95]}
    return Benchmark(
        by_protocol=False,
        caches={
            path: Fingerprints(
                model=cache.attributes["model"], model_sha256=cache.attributes["model_sha256"],
                cache_sha256=cache.sha256,
            )
            for path, cache in caches.items()
        },
        families=dict.fromkeys(caches, FAMILIES),
        methods=methods,
        tasks=[
            SearchedTask(
                cache=path, family=family, task=task, method=name, seed=0, cost=method.cost,
                cost_interval=(method.cost / 2, method.cost * 2), censored=bool(method.censored), ratios={"1": 0.3},
                coverage=curves[name],
            )
            for path in caches
            for family, tasks in FAMILIES.items()
            for task in tasks
            for name, method in methods.items()
        ],
        cost_grid=[1.0, 2.0, 4.0, 8.0],
        pairs={},
        verdicts=[
            Verdict(
                track="scores", agent=agent, sentence="undecided", too_few_families=True, censored=0.0,
                cost_ratio=0.5, low=0.3, high=1.1, p=0.2, p_adjusted=0.25, comparators={}, family_cost_ratios={},
            )
        ],
    )  # fmt: skip


def attention(cache: Cache, heads: tuple[str, ...] = ("0.1", "1.0"), token: str = " Mary") -> Attention:
    """The attention of some heads of a cache's model: one prompt of three tokens, of which the second is the answer."""
    a = cache.attributes
    return Attention(
        mechrl_version="0.1.0", model=a["model"], model_sha256=a["model_sha256"], task="ioi", seed=0, bos="<bos>",
        prompts=20, groups=10, with_answer=20, with_wrong=0,
        heads=[HeadAttention(head=head, first=around(0.7), answers=around(0.25), wrongs=None) for head in heads],
        aligned=[
            Aligned(
                prompts=20, groups=10,
                slots=[
                    Slot(token="<bos>", share=1, answer=0, wrong=0), Slot(token=token, share=0.3, answer=1, wrong=0),
                    Slot(token=" to", share=1, answer=0, wrong=0),
                ],
                attention={head: [around(0.7), around(0.25), around(0.05, 0.01)] for head in heads},
            )
        ],
        drawn=[
            DrawnPrompt(
                text=f"{token} to", tokens=["<bos>", token, " to"],
                patterns={head: [[1.0], [0.875, 0.125], [0.625, 0.25, 0.125]] for head in heads},
            )
        ],
    )  # fmt: skip
