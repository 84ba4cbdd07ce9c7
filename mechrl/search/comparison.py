"""The agent beside the simplest things it has to beat, on the same evaluation episodes."""

from mechrl.cache.reader import Cache
from mechrl.search.methods.orders import random_order, static_order
from mechrl.search.ppo.checkpoint import CheckpointNote
from mechrl.search.ppo.policy_search import policy_search
from mechrl.search.ppo.training import PlanningPolicy
from mechrl.search.problem import Problem, Start
from mechrl.search.protocol import Evaluation, evaluate


def compare(cache: Cache, policy: PlanningPolicy, note: CheckpointNote) -> dict[str, list[tuple[str, Evaluation]]]:
    """(method, evaluation) pairs by task: the agent, told and not told the task; random; the static order.

    The static order of a task comes from the training episodes of the *other* training tasks; where there is none, it
    is left out.
    """
    results = {}
    for task in [*note.tasks, *note.hold_out]:
        problem = Problem(
            cache, task, tuple(other for other in note.tasks if other != task), control_weight=note.control_weight
        )

        def run(search: Start, task: str = task) -> Evaluation:
            return evaluate(cache, task, search, note.picks, control_weight=note.control_weight, seed=note.seed)

        rows = []
        if task in note.signals:
            rows.append(("agent", run(policy_search(policy, note.signals, task, note.plan_k))))
        rows.append(("agent, no task signal", run(policy_search(policy, note.signals, None, note.plan_k))))
        rows.append(("random", run(random_order(problem))))
        if problem.train:
            rows.append(("static order", run(static_order(problem))))
        results[task] = rows
    return results
