"""A policy whose steps are replayed as a graph acts as one whose steps are not; the graph is a stand-in here."""

import copy
from unittest.mock import Mock

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from sb3_npg.acting import FastForward, Recorder, acting
from tests.agents import TargetEnv, make_agent
from tests.linalg.emulator import emulated_capture


def target_env(actions):
    return TargetEnv(spaces.Box(-1.0, 1.0, (3,), np.float32, seed=0), actions)


#: What is recorded.
RECORDABLE = {
    "Gaussian": ("vector", {}),
    "categorical": (lambda: target_env(spaces.Discrete(3)), {}),
    "categoricals": (lambda: target_env(spaces.MultiDiscrete([3, 2])), {}),
    "images": ("image", {}),
    "images, continuous": ("image, Box", {}),
    "two extractors": ("image", {"policy_kwargs": {"share_features_extractor": False}}),
}
#: What is not: bits, noise that is drawn elsewhere, observations that are looked up.
OTHERS = {
    "bits": (lambda: target_env(spaces.MultiBinary(2)), {}),
    "gSDE": ("vector", {"use_sde": True}),
    "Discrete observations": ("Discrete", {}),
    "Dict": ("Dict", {}),
}


class Camera:
    """Records, and keeps the replays of all recordings."""

    def __init__(self):
        self.replays = []

    def __call__(self, run):
        graph, found = emulated_capture(run)
        watched = Mock(wraps=graph)
        self.replays.append(watched.replay)
        return watched, found


def agent_of(case, recorder=None, **kwargs):
    env, options = (RECORDABLE | OTHERS)[case]
    env = env if isinstance(env, str) else env()
    agent = make_agent(env, n_steps=16, **options, **kwargs)
    agent._recorder = recorder
    return agent


def collected(agent):
    buffer = agent.rollout_buffer
    return [np.array(part) for part in (buffer.actions, buffer.values, buffer.log_probs, buffer.observations)]


@pytest.mark.parametrize("case", RECORDABLE)
def test_a_rollout_is_the_same_when_its_steps_are_replayed(case):
    camera = Camera()
    agents = [agent_of(case), agent_of(case, Recorder(camera))]
    for agent in agents:
        th.manual_seed(0)
        agent.learn(agent.n_steps)
    for one, other in zip(*map(collected, agents), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert [replay.call_count for replay in camera.replays] == [16]


@pytest.mark.parametrize("case", RECORDABLE)
def test_one_recording_serves_all_rollouts_of_a_training(case):
    camera = Camera()
    agent = agent_of(case, Recorder(camera))
    agent.learn(3 * agent.n_steps)
    assert [replay.call_count for replay in camera.replays] == [3 * 16]
    observations = th.as_tensor(agent.rollout_buffer.observations)
    before = camera.replays[0].call_count
    with th.no_grad(), acting(agent.policy, recorder=agent._recorder):
        values = agent.policy(observations[:1])[1]  # by parameters that three updates have moved
    assert camera.replays[0].call_count == before + 1
    assert th.allclose(values, agent.policy.predict_values(observations[:1]), rtol=1e-4)


@pytest.mark.parametrize("case", OTHERS)
def test_what_a_graph_cannot_hold_is_not_recorded(case):
    camera = Camera()
    agent_of(case, Recorder(camera)).learn(16)
    assert camera.replays == []


def replace_tensors(policy):
    for parameter in policy.parameters():
        parameter.data = parameter.data.clone()


def replace_activation(policy):
    policy.mlp_extractor.policy_net[1] = nn.ReLU()


@pytest.mark.parametrize("change", [replace_tensors, replace_activation])
def test_a_policy_of_other_tensors_or_modules_is_recorded_anew(change):
    camera = Camera()
    agent = agent_of("Gaussian", Recorder(camera))
    agent.learn(16)
    change(agent.policy)
    agent.learn(16)
    assert [replay.call_count for replay in camera.replays] == [16, 16]


def test_loaded_parameters_are_those_that_act(tmp_path):
    camera = Camera()
    agent = agent_of("Gaussian", Recorder(camera))
    agent.save(tmp_path / "agent")
    agent.learn(16)
    agent.set_parameters(tmp_path / "agent")
    observations = th.ones(1, 3)
    with th.no_grad(), acting(agent.policy, recorder=agent._recorder):
        values = agent.policy(observations)[1]
    assert th.equal(values, agent.policy.predict_values(observations))


def test_a_graph_that_cannot_be_recorded_ends_no_training():
    attempts = []

    def refuse(run):
        attempts.append(run)
        raise RuntimeError("operation not permitted when stream is capturing")

    agents = [agent_of("Gaussian"), agent_of("Gaussian", Recorder(refuse))]
    for agent in agents:
        th.manual_seed(0)
        agent.learn(agent.n_steps)
    for one, other in zip(*map(collected, agents), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    agents[1].learn(agents[1].n_steps)
    assert len(attempts) == 1


class Curious(BaseCallback):
    """Calls the policy in the middle of a step, on other rows and on as many."""

    def _on_step(self):
        with th.no_grad():
            for n_rows in (1, 4):
                found = self.model.policy(th.full((n_rows, 3), 0.5))
                assert all(len(tensor) == n_rows for tensor in found)
        return True


def test_somebody_who_calls_the_policy_between_steps_changes_nothing_that_was_returned():
    agent = agent_of("Gaussian", Recorder(Camera()))
    before = copy.deepcopy(agent.policy)
    agent.learn(16, Curious())
    buffer = agent.rollout_buffer
    with th.no_grad():
        values = before.predict_values(th.as_tensor(buffer.observations))
    np.testing.assert_allclose(buffer.values.flatten(), values.flatten().numpy(), rtol=1e-4, atol=1e-6)


def test_gradients_and_likely_actions_are_not_replayed():
    camera = Camera()
    agent = agent_of("Gaussian", Recorder(camera))
    observations = th.ones(1, 3)
    with acting(agent.policy, recorder=agent._recorder):
        assert agent.policy(observations)[1].requires_grad
        with th.no_grad():
            assert th.equal(
                agent.policy(observations, deterministic=True)[0],
                agent.policy.get_distribution(observations).mode(),
            )
    assert not camera.replays


def test_observation_of_nan_is_replayed_as_zeros():
    agent = agent_of("Gaussian", Recorder(Camera()))
    with th.no_grad(), acting(agent.policy, recorder=agent._recorder):
        values = agent.policy(th.full((1, 3), th.nan))[1]
        assert th.equal(values, agent.policy(th.zeros(1, 3))[1])


def test_a_copy_records_for_itself():
    camera = Camera()
    agent = agent_of("Gaussian", Recorder(camera))
    observations = th.ones(1, 3)
    with th.no_grad(), acting(agent.policy, recorder=agent._recorder):
        agent.policy(observations)
        copied = copy.deepcopy(agent.policy)
        for parameter in agent.policy.parameters():
            parameter.add_(1.0)
        assert th.equal(copied(observations)[1], copied.predict_values(observations))
        assert th.equal(agent.policy(observations)[1], agent.policy.predict_values(observations))


def test_a_copy_of_an_agent_has_a_recorder_and_no_recording():
    """A graph cannot be copied."""
    agent = agent_of("Gaussian", Recorder(emulated_capture))
    with th.no_grad(), acting(agent.policy, recorder=agent._recorder):
        agent.policy(th.ones(1, 3))
    assert agent._recorder._recording is not None
    assert copy.deepcopy(agent._recorder)._recording is None
    assert agent._recorder._recording is not None


def test_there_is_nothing_to_record_on_a_processor():
    assert Recorder.on(th.device("cpu")) is None
    assert agent_of("Gaussian")._recorder is None


@pytest.mark.parametrize("case", RECORDABLE)
def test_the_signature_names_every_tensor_that_is_read(case):
    policy = agent_of(case).policy
    forward = FastForward.of(policy)
    named = set(forward.signature())
    assert {parameter.data_ptr() for parameter in policy.parameters()} <= named


def test_observations_of_another_type_are_not_squeezed_into_a_recording():
    agent = agent_of("Gaussian", Recorder(Camera()))
    observations = th.full((1, 3), 0.5)
    with th.no_grad(), acting(agent.policy, recorder=agent._recorder):
        agent.policy(th.ones(1, 3, dtype=th.long))
        values = agent.policy(observations)[1]
    assert th.equal(values, agent.policy.predict_values(observations))


@pytest.mark.parametrize("changed", [th.ones(2, 3), th.ones(1, 3, dtype=th.float64)], ids=["shape", "type"])
def test_observations_of_another_shape_or_type_are_recorded_anew(changed):
    camera = Camera()
    agent = agent_of("Gaussian", Recorder(camera))
    for observations in (th.ones(1, 3), changed):
        with th.no_grad(), acting(agent.policy, recorder=agent._recorder):
            agent.policy(observations)
    assert [replay.call_count for replay in camera.replays] == [1, 1]


def test_images_that_are_prepared_otherwise_are_recorded_anew():
    camera = Camera()
    agent = agent_of("images", Recorder(camera))
    agent.learn(16)
    agent.policy.normalize_images = False
    agent.learn(16)
    assert [replay.call_count for replay in camera.replays] == [16, 16]


def test_a_critic_whose_features_do_not_learn_is_not_recorded():
    """Where its extractor keeps its tensors is not looked at."""
    camera = Camera()
    agent = agent_of("two extractors", Recorder(camera))
    agent.policy.vf_features_extractor.requires_grad_(False)
    agent.learn(16)
    assert camera.replays == []
