"""The agent beside the simplest things it has to beat, on the same evaluation episodes."""

from mechrl.agents.checkpoint import CheckpointNote
from mechrl.agents.methods import fixed_order, policy_method, random_order, static_order
from mechrl.agents.ppo import PlanningPolicy
from mechrl.agents.protocol import Evaluation, evaluate
from mechrl.cache.reader import Cache


def compare(cache: Cache, policy: PlanningPolicy, note: CheckpointNote) -> dict[str, list[tuple[str, Evaluation]]]:
    """(method, evaluation) pairs by task: the agent, told and not told the task; random; the static order.

    The static order of a task comes from the training episodes of the *other* training tasks; where there is none, it
    is left out.
    """
    results = {}
    for task in [*note.tasks, *note.hold_out]:

        def run(method, signalled=False, task=task):
            return evaluate(cache, task, method, note.picks, note.signals, signalled, note.control_weight)

        rows = []
        if task in note.signals:
            rows.append(("agent", run(policy_method(policy, note.plan_k), True)))
        rows.append(("agent, no task signal", run(policy_method(policy, note.plan_k))))
        rows.append(("random", run(random_order(note.seed))))
        others = [other for other in note.tasks if other != task]
        if others:
            rows.append(("static order", run(fixed_order(static_order(cache, others, note.control_weight)))))
        results[task] = rows
    return results
