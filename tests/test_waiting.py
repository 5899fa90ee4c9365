"""An update on a GPU waits for the device a few times, whatever the size of the problem."""

import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_npg import NPG
from sb3_npg.linalg.cupy import CupyLinearAlgebra
from tests.agents import TargetEnv, make_agent, seeded
from tests.linalg.emulator import COMPILER, EmulatedDevice, emulated_capture
from tests.waits import waits_of

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


def on_emulated_gpu(space=None, **kwargs) -> NPG:
    agent = make_agent(
        DummyVecEnv([lambda: seeded(TargetEnv(action_space=space))]), policy_kwargs={"net_arch": [8]}, **kwargs
    )
    linalg = CupyLinearAlgebra(EmulatedDevice(), emulated_capture)
    agent.fisher.use(linalg)
    agent._critic_solver.use(linalg)
    return agent


@needs_compiler
@pytest.mark.parametrize(
    "space",
    [None, spaces.Discrete(3), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)],
    ids=["Box", "Discrete", "MultiDiscrete", "MultiBinary"],
)
@pytest.mark.parametrize("kwargs", [{"fisher_solver": "cg"}, {"fisher_solver": "kfac"}], ids=str)
def test_a_policy_step_waits_once_and_once_more_for_each_step_that_was_too_long(kwargs, space):
    agent = on_emulated_gpu(space, n_critic_updates=0, **kwargs)
    waits = waits_of(agent)
    assert agent.logger.name_to_value["train/is_line_search_success"] == 1.0
    assert waits["go"] == agent.logger.name_to_value["train/line_search_steps"] - 1
    del waits["go"]
    assert waits == {"_usable": 1}


@needs_compiler
def test_a_critic_step_waits_for_its_direction_and_for_each_trial():
    agent = on_emulated_gpu(n_critic_updates=1)
    waits = waits_of(agent)
    assert waits["value"] >= 1
    del waits["value"], waits["go"]
    # Two directions, and the loss before the first step with the scale of its damping.
    assert waits == {"_usable": 2, "_fit_intercept": 1}


def test_what_waits_is_counted():
    waits = waits_of(make_agent(n_critic_updates=0, fisher_solver_kwargs={"max_steps": 3}))
    # Torch's conjugate gradient looks at ‖b‖² and ‖r‖², and at four scalars in each step.
    assert waits["conjugate_gradient"] == 2 + 3 * 4
