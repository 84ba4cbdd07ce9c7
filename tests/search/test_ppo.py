"""The lean PPO against sb3-contrib's: the same rollouts, the same update, the same policy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy

from mechrl.envs.episodes import ParallelEpisodes
from mechrl.envs.table import ScoreTable
from mechrl.envs.vec import HeadVecEnv
from mechrl.search.ppo.lean_ppo import LeanPPO, Tanh
from mechrl.search.ppo.training import PRESETS, PlanningPolicy, train

N_SITES, PICKS, ENVS = 12, 5, 6
SETTINGS = {
    "n_steps": PICKS, "batch_size": 13, "n_epochs": 3, "learning_rate": 3e-3, "gamma": 0.9, "gae_lambda": 0.8,
    "ent_coef": 0.03, "vf_coef": 0.4, "max_grad_norm": 0.3, "seed": 4, "device": "cpu",
}  # fmt: skip


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    damage, control = (rng.normal(size=(n, N_SITES)).astype(np.float32) for n in (8, 3))
    return ScoreTable(("a", "b"), damage, np.array([0, 4]), np.array([4, 4]), control)


class SameDraws(PlanningPolicy):
    """Draws as sb3-contrib does, so that the rollouts of one seed are the same."""

    def sample(self, log_probs):
        return log_probs.exp().multinomial(1)[:, 0]


def both(table):
    """The lean one and the slow reference, which gets a policy without any code of ours."""
    kinds = ((LeanPPO, SameDraws), (MaskablePPO, MaskableActorCriticPolicy))
    return [
        kind(policy, HeadVecEnv(ParallelEpisodes(table, ENVS, PICKS, drop_signal=0.25), 4),
             policy_kwargs={"net_arch": [16, 16]}, **SETTINGS)
        for kind, policy in kinds
    ]  # fmt: skip


def parameters(ppo):
    return torch.cat([p.detach().flatten() for p in ppo.policy.parameters()])


def test_the_lean_policy_equals_sb3_contribs(table):
    lean, slow = both(table)
    rng = np.random.default_rng(1)
    obs = torch.as_tensor(rng.normal(size=(40, 2 + 2 * N_SITES)).astype(np.float32))
    untried = rng.random((40, N_SITES)) < 0.5
    untried[:, 3] = True
    log_probs, values = lean.policy.log_probs_and_values(obs, torch.as_tensor(untried))
    expected = slow.policy.get_distribution(obs, untried).distribution
    np.testing.assert_allclose(log_probs[untried].detach(), expected.logits[untried].detach(), atol=1e-6)
    assert (log_probs[~untried] < -1e7).all()
    np.testing.assert_allclose(values.detach(), slow.policy.predict_values(obs)[:, 0].detach(), atol=1e-6)
    actions, _, log_prob = lean.policy(obs, action_masks=untried)
    assert untried[np.arange(40), actions].all()
    np.testing.assert_allclose(log_prob.detach(), expected.log_prob(actions).detach(), atol=1e-6)


@pytest.mark.parametrize("plan_k", [1, 3])
def test_heads_are_drawn_as_often_as_the_policy_says_and_never_a_tried_one(table, plan_k):
    torch.manual_seed(0)
    policy = both(table)[0].policy
    policy.plan_k = plan_k
    policy.query = lambda sites: np.tile(np.arange(plan_k)[:, None], (1, sites.shape[1]))  # the last is always the best
    probabilities = torch.tensor([0, 0.5, 0, 0.1, 0.15, 0.25, 0])
    log_probs = probabilities.log().clamp(min=-1e8).expand(20_000, -1)
    counts = torch.bincount(PlanningPolicy.sample(policy, log_probs), minlength=7) / 20_000
    assert (counts[probabilities == 0] == 0).all()
    np.testing.assert_allclose(counts, probabilities, atol=0.015)


def test_tanh_is_tanh():
    x = torch.linspace(-20, 20, 10001, requires_grad=True)
    (slow,) = torch.autograd.grad(torch.tanh(x).sum(), x)
    (fast,) = torch.autograd.grad(Tanh()(x).sum(), x)
    assert (Tanh()(x) - torch.tanh(x)).abs().max() < 2e-7
    assert (fast - slow).abs().max() < 5e-7


@pytest.mark.parametrize("rows_at_once", [None, 4])
def test_one_update_on_the_same_rollout_gives_the_same_parameters(table, rows_at_once):
    """At once, or a minibatch in parts of 4, 4, 4 and 1."""
    lean, slow = both(table)
    lean.policy.rows_at_once = rows_at_once
    start = parameters(lean)
    assert torch.equal(start, parameters(slow))
    for ppo in (lean, slow):
        _, callback = ppo._setup_learn(10**4)
        torch.manual_seed(8)
        for _ in range(2):  # the second begins where episodes end
            ppo.collect_rollouts(ppo.env, callback, ppo.rollout_buffer, PICKS)
    fast, buffer = lean.rollout_buffer, slow.rollout_buffer
    for name in ("observations", "rewards", "values", "log_probs", "advantages", "returns"):
        expected = getattr(buffer, name).swapaxes(0, 1)
        np.testing.assert_allclose(getattr(fast, name), expected, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(fast.actions, buffer.actions[:, :, 0].T)
    np.testing.assert_array_equal(fast.untried, buffer.action_masks.swapaxes(0, 1))
    for ppo in (lean, slow):
        np.random.seed(6)
        ppo.train()
    np.testing.assert_allclose(parameters(lean), parameters(slow), atol=1e-5)
    assert (parameters(lean) - start).abs().max() > 1e-3
    assert lean.num_timesteps == slow.num_timesteps
    logged, expected = lean.logger.name_to_value, slow.logger.name_to_value
    assert set(logged) == set(expected)
    for name in expected:
        assert logged[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


def test_whole_trainings_stay_together(table):
    lean, slow = both(table)
    for ppo in (lean, slow):
        ppo.set_random_seed(4)
        ppo.learn(10 * ENVS * PICKS)
    np.testing.assert_allclose(parameters(lean), parameters(slow), atol=1e-3)
    assert lean.ep_info_buffer == slow.ep_info_buffer


def test_training_takes_another_policy(table):
    class Counting(PlanningPolicy):
        calls = 0

        def log_probs_and_values(self, obs, untried):
            Counting.calls += 1
            return super().log_probs_and_values(obs, untried)

    preset = replace(PRESETS["default"], n_envs=4, epochs=1, minibatches=2)
    ppo = train(
        ParallelEpisodes(table, 4, PICKS), preset, steps=40, policy_class=Counting, policy_kwargs={"net_arch": [7]}
    )
    assert isinstance(ppo.policy, Counting)
    assert ppo.policy.action_net.weight.shape == (N_SITES, 7)
    assert Counting.calls == 2 * (PICKS + 1 + 2)
