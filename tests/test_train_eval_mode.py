"""Dropout and BatchNorm: the policy that acts is the one in evaluation mode, and only its rollouts renew it."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_npg.critic import GaussNewtonSolver, MinibatchSolver
from sb3_npg.policy_parts import refresh_running_statistics
from tests.agents import N_STEPS, NormalizingExtractor, make_agent, make_env, same, snapshot, train


def normalizing_agent(
    env: str = "Box", *, shared: bool = True, momentum: float = 0.1, critic_solver: str = "adam", **kwargs: Any
) -> Any:
    """Build an agent of that extractor, whose optimizer decays what it gets hold of."""
    policy_kwargs = {
        "features_extractor_class": NormalizingExtractor,
        "features_extractor_kwargs": {"momentum": momentum},
        "share_features_extractor": shared,
        "net_arch": [8],
    }
    if critic_solver == "adam":
        policy_kwargs |= {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}}
    return make_agent(env, policy_kwargs=policy_kwargs, critic_solver=critic_solver, **kwargs)


def averages(extractor: nn.Module) -> dict[str, th.Tensor]:
    return {name: buffer.clone() for name, buffer in extractor.named_buffers()}


def outputs(agent: Any) -> list[th.Tensor]:
    """Return what the agent's action distribution is made of, at fixed observations."""
    observations, _ = agent.policy.obs_to_tensor(make_env("Box", n_envs=16, seed=9).reset())
    with th.no_grad():
        distribution = agent.policy.get_distribution(observations).distribution
    return [distribution.mean, distribution.stddev]


both_extractors = pytest.mark.parametrize("shared", [True, False], ids=["shared", "apart"])


@both_extractors
def test_predictions_repeat_before_and_after_training(shared):
    agent = normalizing_agent(shared=shared)
    observations = make_env("Box", n_envs=16, seed=9).reset()
    for _ in range(2):
        first, second = (agent.predict(observations, deterministic=True)[0] for _ in range(2))
        assert np.array_equal(first, second)
        train(agent, 1)


@both_extractors
def test_every_module_is_left_in_evaluation_mode(shared):
    agent = normalizing_agent(shared=shared)
    train(agent, 1)
    assert not [name for name, module in agent.policy.named_modules() if module.training]


@both_extractors
def test_averages_of_the_actor_are_those_of_the_last_rollout(shared):
    # With a momentum of 1 and one batch, the running average is the last batch's.
    agent = normalizing_agent("vector", shared=shared, momentum=1.0)
    for _ in range(2):
        train(agent, 1)
        normalize = agent.policy.pi_features_extractor.normalize
        observations = agent.rollout_buffer.observations.astype(np.float64)
        assert np.allclose(normalize.running_mean, observations.mean(0), atol=1e-6)
        assert np.allclose(normalize.running_var, observations.var(0, ddof=1), atol=1e-6)


class LeftInTrainingMode(BaseCallback):
    """Does what a callback of the user's own may do."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.model.policy.set_training_mode(True)


def test_update_does_not_depend_on_the_mode_that_a_callback_leaves():
    ends = []
    for callback in (None, LeftInTrainingMode()):
        agent = normalizing_agent()
        agent.learn(2 * N_STEPS, callback)
        ends.append(snapshot(agent))
    assert same(*ends)


class Averages(BaseCallback):
    """Keeps the actor's averages at the start and at the end of each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[dict[str, th.Tensor]] = []

    def _keep(self) -> None:
        self.kept.append(averages(self.model.policy.pi_features_extractor))

    def _on_rollout_start(self) -> None:
        self._keep()

    def _on_rollout_end(self) -> None:
        self._keep()

    def _on_step(self) -> bool:
        return True


@both_extractors
def test_averages_of_the_actor_change_once_an_update_and_by_nothing_else(shared):
    agent = normalizing_agent(shared=shared, n_critic_updates=3, batch_size=8)
    callback = Averages()
    agent.learn(3 * N_STEPS, callback)
    starts, ends = callback.kept[::2], callback.kept[1::2]
    assert all(map(same, starts, ends))  # collecting does nothing
    counts = [int(kept["normalize.num_batches_tracked"]) for kept in ends]
    assert counts == [0, N_STEPS // 8, 2 * N_STEPS // 8]  # one pass over the rollout, not one an epoch of the critic
    before = averages(agent.policy.pi_features_extractor)
    agent.predict(make_env("Box", n_envs=16).reset())
    agent.policy.predict_values(th.zeros(3, 1))
    assert same(averages(agent.policy.pi_features_extractor), before)


@pytest.fixture
def fit_critic_watched(monkeypatch):
    """Let a test look at the agent just before and just after the critic's regression."""

    def watch(look: Any) -> list[Any]:
        seen: list[Any] = []
        fit = MinibatchSolver.fit

        def watched(*args: Any, **kwargs: Any) -> float:
            seen.append(look())
            loss = fit(*args, **kwargs)
            seen.append(look())
            return loss

        monkeypatch.setattr(MinibatchSolver, "fit", watched)
        return seen

    return watch


@both_extractors
@pytest.mark.parametrize(("use_sde", "fast_paths"), [(False, True), (True, True), (False, False)])
def test_critic_leaves_the_action_distribution_bit_for_bit(fit_critic_watched, shared, use_sde, fast_paths):
    options = {"use_sde": use_sde, "fast_paths": fast_paths}
    agent = normalizing_agent(shared=shared, n_critic_updates=5, batch_size=8, **options)
    seen = fit_critic_watched(lambda: (outputs(agent), averages(agent.policy.pi_features_extractor)))
    values = fit_critic_watched(lambda: agent.policy.predict_values(th.linspace(-1, 1, 16).unsqueeze(1)).detach())
    train(agent, 2)
    assert len(seen) == len(values) == 4
    assert same(seen[0], seen[1])
    assert same(seen[2], seen[3])
    assert not same(seen[1], seen[2])  # the policy's own step
    assert not same(values[0], values[1])


def test_critic_renews_its_own_averages_alone(fit_critic_watched):
    agent = normalizing_agent(shared=False)
    policy = agent.policy
    critic = fit_critic_watched(lambda: averages(policy.vf_features_extractor))
    train(agent, 1)
    assert float(critic[0]["normalize.num_batches_tracked"]) == 0
    assert float(critic[1]["normalize.num_batches_tracked"]) == agent.n_critic_updates


@pytest.mark.parametrize("fast_paths", [True, False], ids=["by hand", "autograd"])
@both_extractors
def test_gauss_newton_renews_the_critics_own_averages_and_runs_in_evaluation_mode(shared, fast_paths, monkeypatch):
    agent = normalizing_agent(shared=shared, critic_solver="gauss_newton", fast_paths=fast_paths)
    policy = agent.policy
    seen = []
    fit = GaussNewtonSolver.fit

    def watched(*args: Any, **kwargs: Any) -> float:
        seen.append((outputs(agent), averages(policy.pi_features_extractor), averages(policy.vf_features_extractor)))
        loss = fit(*args, **kwargs)
        seen.append((outputs(agent), averages(policy.pi_features_extractor), averages(policy.vf_features_extractor)))
        return loss

    monkeypatch.setattr(GaussNewtonSolver, "fit", watched)
    train(agent, 1)
    assert same(seen[0][:2], seen[1][:2])
    assert same(seen[0][2], seen[1][2]) is shared
    assert not any(module.training for module in policy.modules())


@both_extractors
def test_critic_trains_its_own_modules_and_no_module_of_the_actor(fit_critic_watched, shared):
    agent = normalizing_agent(shared=shared)
    policy = agent.policy
    phase = ["policy"]
    flags: set[tuple[str, str, bool]] = set()
    fit_critic_watched(lambda: phase.append("critic") if phase[-1] == "policy" else phase.append("policy"))
    for name, module in policy.named_modules():
        if isinstance(module, (nn.Dropout, nn.Linear)):
            module.register_forward_hook(lambda module, *_, name=name: flags.add((phase[-1], name, module.training)))
    train(agent, 1)

    trained = {name for when, name, training in flags if when == "critic" and training}
    evaluated = {name for when, name, training in flags if when == "critic" and not training}
    own = {"value_net", "mlp_extractor.value_net.0"}
    own |= set() if shared else {"vf_features_extractor.dropout", "vf_features_extractor.linear"}
    assert trained == own
    assert evaluated == ({"features_extractor.dropout", "features_extractor.linear"} if shared else set())
    assert not any(training for when, _, training in flags if when == "policy")


class SpectralExtractor(BaseFeaturesExtractor):
    """Keeps the largest singular value of its weights at 1 by a vector that is renewed in training mode alone."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, 8)
        self.linear = nn.utils.parametrizations.spectral_norm(nn.Linear(observation_space.shape[0], 8))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.linear(observations)


class CountingExtractor(SpectralExtractor):
    """Counts the rows that it has seen in training mode."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space)
        self.register_buffer("n_rows", th.zeros(()))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        if self.training:
            self.n_rows += len(observations)
        return super().forward(observations)


@both_extractors
def test_spectral_norm_of_what_acts_holds(shared):
    kwargs = {"features_extractor_class": SpectralExtractor, "share_features_extractor": shared, "net_arch": [8]}
    agent = make_agent("vector", target_kl=0.1, policy_kwargs=kwargs)
    linear = agent.policy.pi_features_extractor.linear
    original = linear.parametrizations.weight.original.detach()
    before = original.clone()
    train(agent, 20)
    assert float(th.linalg.matrix_norm(original - before, 2)) > 0.5
    assert float(th.linalg.matrix_norm(linear.weight.detach(), 2)) == pytest.approx(1.0, abs=0.05)


@both_extractors
def test_what_counts_in_a_buffer_sees_each_rollout_once(shared):
    kwargs = {"features_extractor_class": CountingExtractor, "share_features_extractor": shared, "net_arch": [8]}
    agent = make_agent("vector", policy_kwargs=kwargs)
    train(agent, 3)
    assert float(agent.policy.pi_features_extractor.n_rows) == 3 * N_STEPS


@both_extractors
def test_averages_in_a_compiled_extractor_are_renewed_by_whose_it_is(shared):
    """Its modules call no hooks, by which modules that act are told from others."""
    agent = normalizing_agent("vector", shared=shared, n_critic_updates=3)
    extractors = {agent.policy.pi_features_extractor, agent.policy.vf_features_extractor}
    for extractor in extractors:
        extractor.compile(backend="eager")
    train(agent, 2)
    n_batches = -(-N_STEPS // agent.batch_size)
    actor, critic = agent.policy.pi_features_extractor, agent.policy.vf_features_extractor
    assert int(actor.normalize.num_batches_tracked) == 2 * n_batches
    if not shared:
        assert int(critic.normalize.num_batches_tracked) == 2 * 3 * n_batches


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_scripted_extractor_trains():
    class Scripted(BaseFeaturesExtractor):
        def __init__(self, observation_space: spaces.Box):
            super().__init__(observation_space, 8)
            self.net = th.jit.script(nn.Sequential(nn.Linear(3, 8), nn.Tanh()))

        def forward(self, observations: th.Tensor) -> th.Tensor:
            return self.net(observations)

    agent = make_agent("vector", policy_kwargs={"features_extractor_class": Scripted, "net_arch": [8]})
    for update in train(agent, 2):
        assert update["train/skipped_updates"] == 0
        assert 0.0 < update["train/kl"] <= 0.01


@pytest.mark.parametrize("batch_size", [N_STEPS - 1, 1])
@pytest.mark.filterwarnings("ignore:The critic's minibatches")
@both_extractors
def test_rest_of_one_row_ends_no_run(shared, batch_size):
    # The variance of one row is not defined, and BatchNorm refuses it.
    agent = normalizing_agent(shared=shared, batch_size=batch_size)
    train(agent, 2)
    assert agent._n_updates == 2


@both_extractors
def test_rollout_of_one_row_has_no_variance_to_renew_averages_by(shared):
    agent = normalizing_agent("vector", shared=shared, n_steps=1, batch_size=1, normalize_advantage=False)
    before = averages(agent.policy.pi_features_extractor)
    train(agent, 2)
    assert agent._n_updates == 2
    assert same(averages(agent.policy.pi_features_extractor), before)


@pytest.mark.parametrize("compiled", [False, True])
def test_critic_of_a_compiled_policy_renews_its_own_averages(compiled):
    agent = normalizing_agent(shared=False)
    critic = agent.policy.vf_features_extractor
    if compiled:
        agent.policy = th.compile(agent.policy, backend="eager")
    train(agent, 1)
    assert int(critic.normalize.num_batches_tracked) == agent.n_critic_updates


class Pinned(NormalizingExtractor):
    """Stays in evaluation mode whatever it is told, as a pretrained one does."""

    def train(self, mode: bool = True) -> "Pinned":
        return super().train(False)


@both_extractors
@pytest.mark.parametrize("critic_solver", ["adam", "gauss_newton"])
def test_what_keeps_itself_in_evaluation_mode_is_left_there(shared, critic_solver):
    kwargs = {"features_extractor_class": Pinned, "share_features_extractor": shared, "net_arch": [8]}
    agent = make_agent("Box", policy_kwargs=kwargs, critic_solver=critic_solver)
    before = averages(agent.policy)
    train(agent, 2)
    after = averages(agent.policy)
    assert before
    assert all(th.equal(before[name], after[name]) for name in before)


class Around(nn.Module):
    """Notes its mode beside a module that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize, self.modes = nn.BatchNorm1d(2), []

    def forward(self, observations: th.Tensor) -> th.Tensor:
        self.modes.append(self.training)
        return self.normalize(observations)


def test_what_is_around_a_module_that_remembers_stays_in_evaluation_mode():
    around = Around().eval()
    refresh_running_statistics(around, around.modules(), th.randn(12, 2), 6)
    assert around.modes == [False, False]
    assert int(around.normalize.num_batches_tracked) == 2
