"""Natural Policy Gradient on Stable-Baselines3's on-policy algorithm."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule, TensorDict
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv

from sb3_npg.acting import FastForward, Recorder, acting
from sb3_npg.actor import known_observation
from sb3_npg.arguments import (
    HEEDED,
    assertions_as_value_errors,
    check_chosen_once,
    check_device,
    check_features_extractor,
    check_hyperparameters,
    check_policy_class,
    check_policy_kwargs,
    check_policy_name,
    check_spaces,
    copied_dicts,
    is_unchanged,
    make_damping,
    make_step_rule,
    warn_of_uneven_minibatches,
    warn_of_unused_optimizer,
)
from sb3_npg.attention import twice_differentiable_attention
from sb3_npg.critic import CriticSolver, make_critic_solver
from sb3_npg.defaults import DEFAULT_LEARNING_RATE, default_damping, default_fisher_solver, default_gae_lambda
from sb3_npg.exploration import set_initial_noise
from sb3_npg.figures import policy_step_figures
from sb3_npg.linalg import make_linalg
from sb3_npg.local_problem import LocalProblem
from sb3_npg.numerics import NumericalFailure, refusals_as_failures, restored_on_failure
from sb3_npg.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_npg.policy_parts import (
    PolicyParts,
    refresh_running_statistics,
    require_actor,
    split_policy,
    trained_modules,
    warn_without_critic,
)
from sb3_npg.rollout import Samples, normalized, read_rollout, require_finite_rollout
from sb3_npg.schedules import make_schedule
from sb3_npg.search_line import SearchLine
from sb3_npg.solvers import Direction, FisherSolver, find_direction, make_fisher_solver
from sb3_npg.trust_region import LineSearch, StepRule, adapted_damping_factor, backtrack, increased_damping_factor
from sb3_npg.user_warnings import warn_user

#: Attributes that are not saved, as they are derived from the arguments.
_DERIVED = (
    "_critic_solver",
    "_damping_schedule",
    "_has_backend",
    "_heeded",
    "_last_skipped_update",
    "_recorder",
    "_step_rule",
    "fisher",
)

SelfNPG = TypeVar("SelfNPG", bound="NPG")


class NPG(OnPolicyAlgorithm):
    """
    Natural Policy Gradient: the policy moves along F⁻¹g, so that a step is measured by how far the policy
    moves (KL) and not by how far its parameters do.

    ::

        g = ∇L(θ_old)                     L(θ) = E[ratio · advantage], the surrogate
        (F + λI) x = g                    F = E_s[Jᵀ F_out J], the Fisher = Hessian of the mean KL at θ_old
        β = √(2δ / xᵀFx)                  trust region of radius δ, or β = α, a fixed step
        θ ← θ + cβx                       c from a backtracking line search on the measured KL and surrogate

    Papers: Kakade (2001), A Natural Policy Gradient; Schulman et al. (2015), Trust Region Policy Optimization.

    Differences from sb3-contrib's TRPO: the KL is summed over action dimensions (TRPO's ``target_kl`` and
    ``cg_damping`` times the action dimension give ours, for Box and MultiBinary spaces); it is
    KL(π_old ‖ π_new); the step length uses the undamped Fisher; the gradient, the KL and the line search use
    all rows even when the Fisher is sub-sampled.

    :param policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy" or a class derived from SB3's ActorCriticPolicy
    :param env: the environment to learn from, or its id if registered in Gymnasium
    :param learning_rate: of the critic's optimizer, for ``critic_solver="adam"``: a number, a function of the progress
        remaining (1 to 0), or ``"lin_0.001"``, which falls to 0; the policy's step is set by ``target_kl`` or
        ``step_size``
    :param n_steps: environment steps per environment and rollout
    :param batch_size: rows in one minibatch of the critic, and of the renewal of BatchNorm's averages; the policy
        step uses the whole rollout
    :param gamma: discount factor
    :param fisher_solver: how (F + λI) x = g is solved: "cg" (conjugate gradient), "kfac" or "ekfac" (a Kronecker
        product for each layer), "diagonal", "exact" (forms F, small policies), "woodbury" (in sample space, short
        rollouts), "identity" (the plain gradient, to compare with), or a name registered in
        ``sb3_npg.solvers.FISHER_SOLVERS``; "auto" means "kfac" if the policy sees images (a ``Box`` of three
        dimensions) and has up to 64 outputs, else "cg"
    :param fisher_solver_kwargs: arguments of the solver, such as ``{"max_steps": 15, "rtol": 0.01}`` for "cg"
    :param damping: λ ≥ 0, added to F in the solve and nowhere else; number or schedule; None means 0.1 per action
        dimension, as F is a sum over them; 0.01 per dimension if the policy sees images, or 0.001 with K-FAC or EKFAC;
        0.1 in all with ``relative_damping``
    :param adaptive_damping: multiply λ by a factor that follows how well F predicts the measured KL
    :param relative_damping: take λ as a multiple of the mean eigenvalue of each layer's block of F, so that layers of
        every scale are damped alike
    :param line_search_shrinking_factor: the step is multiplied by this until it is accepted
    :param line_search_max_iter: trials of the line search; 0 takes the full step without a search
    :param n_critic_updates: epochs ("adam") or steps ("gauss_newton", at most) of the critic on each rollout; None for
        the solver's default, 10 epochs or up to 8 steps
    :param critic_solver: "adam": minibatches through the policy's optimizer; "gauss_newton": damped Gauss–Newton steps
        on the whole rollout, to which ``learning_rate`` does not apply
    :param critic_solver_kwargs: arguments of the critic's solver, such as ``{"damping": 1.0}`` for "gauss_newton",
        whose damping is 10 by default and falls, to no less than 0.01, as γ rises above 0.99. See
        :class:`~sb3_npg.critic.GaussNewtonSolver`
    :param gae_lambda: trade-off of bias against variance in the advantage estimator; None means 0.95, for
        continuous actions 0.98 up to three dimensions, 0.95 up to six, 0.9 for more
    :param ent_coef: weight of the entropy bonus in the surrogate
    :param use_sde: use generalised state-dependent exploration (gSDE) for Box actions
    :param sde_sample_freq: number of steps between new noise matrices; -1: draw one only at the start of a rollout
    :param rollout_buffer_class: rollout buffer to use, by default SB3's
    :param rollout_buffer_kwargs: keyword arguments of the rollout buffer
    :param normalize_advantage: bring the advantages of a rollout to mean 0 and standard deviation 1
    :param target_kl: δ, radius of the trust region in nats (mean over states, sum over action dimensions);
        number or schedule; None means 0.01
    :param step_size: α of Kakade's fixed step instead of the trust region; number or schedule. The line search then
        only requires the surrogate to improve
    :param sub_sampling_factor: k: the Fisher uses every k-th row of the rollout; everything else uses all rows
    :param backend: what runs the solvers' linear algebra: "torch"; "cupy", on a CUDA device; "auto", which means CuPy
        on a CUDA device if it is installed, and torch otherwise. Results agree to rounding
    :param fast_paths: compute policies of linear layers, and of convolutions before them, by hand, without autograd and
        without distribution objects. Results agree to rounding; False is there for comparison
    :param stats_window_size: number of episodes that the logged reward and length are averaged over
    :param tensorboard_log: folder of the tensorboard log; None for no log
    :param policy_kwargs: keyword arguments of the policy. Without "log_std_init" a Gaussian policy on d action
        dimensions begins at σ = min(1, 2/d); gSDE begins as in SB3
    :param verbose: 0 no output, 1 info, 2 debug
    :param seed: seed of the random number generators
    :param device: "cpu", "cuda" or "auto"
    :param _init_setup_model: whether to build the networks at once
    :raises ValueError: for a bad argument, an unsupported space or policy
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    fisher: FisherSolver
    _critic_solver: CriticSolver
    _damping_schedule: Schedule
    _has_backend: bool
    _heeded: dict[str, Any]
    _last_skipped_update: int | None
    _recorder: Recorder | None
    _step_rule: StepRule

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule | str = DEFAULT_LEARNING_RATE,
        n_steps: int = 1024,
        batch_size: int = 64,
        gamma: float = 0.99,
        fisher_solver: str = "auto",
        fisher_solver_kwargs: dict[str, Any] | None = None,
        damping: float | Schedule | str | None = None,
        adaptive_damping: bool = False,
        relative_damping: bool = False,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        n_critic_updates: int | None = None,
        critic_solver: str = "gauss_newton",
        critic_solver_kwargs: dict[str, Any] | None = None,
        gae_lambda: float | None = None,
        ent_coef: float = 0.0,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        target_kl: float | Schedule | str | None = None,
        step_size: float | Schedule | str | None = None,
        sub_sampling_factor: int = 1,
        backend: str = "auto",
        fast_paths: bool = True,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        check_device(device)
        if env is None and _init_setup_model:
            raise ValueError("`env`=None: an agent is made for an environment. One that was saved is read by NPG.load.")
        with assertions_as_value_errors("env"):
            super().__init__(
                policy,
                env,
                learning_rate=learning_rate,  # type: ignore[arg-type]  # a string until _setup_lr_schedule reads it
                n_steps=n_steps,
                gamma=gamma,
                gae_lambda=gae_lambda,  # type: ignore[arg-type]  # None until _setup_model knows the action space
                ent_coef=ent_coef,
                vf_coef=0.5,  # unused, as is the next: the values that PPO.load() of this agent goes on with
                max_grad_norm=0.5,
                use_sde=False,  # set below and checked in _setup_model, by name
                sde_sample_freq=sde_sample_freq,
                rollout_buffer_class=rollout_buffer_class,
                rollout_buffer_kwargs=rollout_buffer_kwargs,
                stats_window_size=stats_window_size,
                tensorboard_log=tensorboard_log,
                policy_kwargs=policy_kwargs,
                verbose=verbose,
                device=device,
                seed=seed,
                _init_setup_model=False,
            )
        self.use_sde = use_sde
        # load() overwrites these before it calls _setup_model(): plain values only, under the arguments' names.
        self.batch_size = batch_size
        self.fisher_solver = fisher_solver
        self.fisher_solver_kwargs = copied_dicts(fisher_solver_kwargs)
        self.damping = damping
        self.adaptive_damping = adaptive_damping
        self.relative_damping = relative_damping
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        self.n_critic_updates = n_critic_updates
        self.critic_solver = critic_solver
        self.critic_solver_kwargs = copied_dicts(critic_solver_kwargs)
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.step_size = step_size
        self.sub_sampling_factor = sub_sampling_factor
        self.backend = backend
        self.fast_paths = fast_paths
        self._damping_factor = 1.0
        self._n_skipped_updates = 0

        if _init_setup_model:
            self._setup_model()
            self._use_backend()
            if self.critic_solver == "gauss_newton":
                warn_of_unused_optimizer(self.learning_rate, self.policy_kwargs)
            else:
                warn_of_uneven_minibatches(self.batch_size, self.n_steps * self.n_envs)

    def _setup_model(self) -> None:
        """Check the arguments, then build what is derived from them. Called by ``__init__`` and by ``load``."""
        check_policy_class(self.policy_class)
        check_spaces(self.observation_space, self.action_space, self.use_sde)
        self._fill_in_defaults()
        self._heeded = {}
        self._heed_attributes()
        check_policy_kwargs(self.policy_class, self.policy_kwargs)
        check_features_extractor(self.policy_class, self.policy_kwargs, self.observation_space)
        self._critic_solver = make_critic_solver(self.critic_solver, self.critic_solver_kwargs, self.gamma)
        self._has_backend = False
        self._last_skipped_update = None
        self._recorder = Recorder.on(self.device)
        with assertions_as_value_errors("policy_kwargs" if self.policy_kwargs else "policy"):
            super()._setup_model()
        set_initial_noise(self.policy, self.policy_kwargs)
        self.fisher = make_fisher_solver(self.fisher_solver, self.fisher_solver_kwargs).to(self.device)
        self.policy.set_training_mode(False)
        example = known_observation(self.policy)
        parts = split_policy(self.policy, example, self.fast_paths)
        with twice_differentiable_attention:
            require_actor(self.policy, example, parts)
        warn_without_critic(self.policy, parts)
        n_rows = self.n_steps * self.n_envs
        self.fisher.check_size(len(parts.actor_parameters), -(-n_rows // self.sub_sampling_factor))
        self._critic_solver.check_size(sum(p.numel() for p in parts.critic_parameters), n_rows)

    def _fill_in_defaults(self) -> None:
        """Fill in arguments whose defaults depend on the spaces, and print the choice."""
        if self.gae_lambda is None:
            self.gae_lambda = default_gae_lambda(self.action_space)
        if self.fisher_solver == "auto":
            self.fisher_solver = default_fisher_solver(self.observation_space, self.action_space)
        if self.verbose >= 1:
            damping = f"{self._default_damping():g}" if self.damping is None else repr(self.damping)
            print(f"Using fisher_solver={self.fisher_solver!r}, damping={damping}, gae_lambda={self.gae_lambda}")

    def _default_damping(self) -> float:
        """Return the value that None stands for in ``damping``."""
        return default_damping(self.observation_space, self.action_space, self.fisher_solver, self.relative_damping)

    def _heed_attributes(self) -> None:
        """
        Check attributes that were set on the agent, and take λ and the step's length from them from now on.

        :raises ValueError: for a bad value, or a new value of an attribute that is fixed once the agent is made
        """
        attributes = {name: copied_dicts(getattr(self, name)) for name in HEEDED}
        if self._heeded and all(is_unchanged(value, self._heeded[name]) for name, value in attributes.items()):
            return
        check_hyperparameters(attributes, self.n_envs)
        check_chosen_once(self._heeded or attributes, attributes)
        self._damping_schedule = make_damping(self.damping, self.adaptive_damping, self._default_damping())
        self._step_rule = make_step_rule(self.target_kl, self.step_size)
        self._heeded = attributes

    def _get_ready(self) -> None:
        """Check the attributes, and choose the backend if that has not been done yet."""
        self._heed_attributes()
        if not self._has_backend:
            self._use_backend()

    def _use_backend(self) -> None:
        """Choose the backend: at once for a new agent, before it learns for a loaded one, which may just act."""
        linalg = make_linalg(self.backend, self.device)
        self.fisher.use(linalg)
        self._critic_solver.use(linalg)
        self._has_backend = True

    def _setup_lr_schedule(self) -> None:
        self.lr_schedule = make_schedule("learning_rate", self.learning_rate, minimum=0.0)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Collect as SB3 does; a NaN from the environment ends neither rollout nor run."""
        with acting(self.policy, self.fast_paths, self._recorder):
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)

    @twice_differentiable_attention
    def train(self) -> None:
        """
        Improve the policy by one natural gradient step on the rollout, then the critic by regression.

        The symbols are those of the class's docstring. The two phases do not depend on each other: each is skipped on
        its own when it fails numerically, and what it would have moved is left as it was.
        """
        self._get_ready()
        self.policy.set_training_mode(False)
        self._update_learning_rate(self.policy.optimizer)
        rollout = read_rollout(self.rollout_buffer, self.action_space)
        parts = split_policy(self.policy, rollout.observations, self.fast_paths)

        with self._skipped_on_numerical_failure():
            require_finite_rollout(self.rollout_buffer)
            if len(parts.actor_parameters) > 0:  # else the actor is frozen
                problem = self._local_problem(rollout, parts)  # L, F and the mean KL at θ_old
                gradient = problem.surrogate_gradient()  # g
                line = SearchLine(problem, self._step_rule.length(self._current_progress_remaining))  # θ + cβx
                direction = self._find_direction(problem, gradient, line)  # x, with its full step taken
                search = self._search(line)  # θ ← θ + cβx
                self._conclude_step(problem, direction, line.length, search)
        with self._skipped_on_numerical_failure():
            self._fit_critic(rollout, parts)

        self._n_updates += 1
        self._log_update()

    @refusals_as_failures()
    def _local_problem(self, rollout: Samples, parts: PolicyParts) -> LocalProblem:
        """Set up the update at the present policy, after BatchNorm's averages are refreshed on the rollout."""
        policy, observations = self.policy, rollout.observations
        modules = trained_modules(policy, parts.actor_modules)
        refresh_running_statistics(policy.get_distribution, modules, observations, self.batch_size)
        return LocalProblem(
            policy,
            observations,
            rollout.actions,
            normalized(rollout.advantages) if self.normalize_advantage else rollout.advantages,
            ent_coef=self.ent_coef,
            sub_sampling_factor=self.sub_sampling_factor,
            parts=parts,
        )

    def _find_direction(self, problem: LocalProblem, gradient: th.Tensor, line: SearchLine) -> Direction:
        """Solve (F + λI) x = g, and take the full step along x, as the figures of both are read together."""
        damping = self._damping_schedule(self._current_progress_remaining)
        if self.adaptive_damping:
            damping *= self._damping_factor
        if not damping >= 0.0:
            raise NumericalFailure(f"`damping` is {damping:g} at a progress of {self._current_progress_remaining:g}")
        start = time.perf_counter()
        direction = find_direction(self.fisher, problem, gradient, damping, self.relative_damping, line)
        self.logger.record("time/solve", time.perf_counter() - start)
        return direction

    def _search(self, line: SearchLine) -> LineSearch:
        """Move the policy along the step as far as the line search allows."""
        kl_limit = self._step_rule.kl_limit(self._current_progress_remaining)
        try:
            return backtrack(line, kl_limit, self.line_search_shrinking_factor, self.line_search_max_iter)
        except NumericalFailure:
            if self.adaptive_damping:
                self._damping_factor = increased_damping_factor(self._damping_factor)
            raise

    def _conclude_step(self, problem: LocalProblem, direction: Direction, length: float, search: LineSearch) -> None:
        """Adapt the damping to what the step cost, and log the step."""
        if self.adaptive_damping:
            predicted_kl = direction.predicted_kl(length)
            self._damping_factor = adapted_damping_factor(self._damping_factor, search, predicted_kl)
        for name, figure in policy_step_figures(problem, direction, length, search).items():
            self.logger.record(name, figure)

    def _fit_critic(self, rollout: Samples, parts: PolicyParts) -> None:
        """Regress the value function on the returns, and log the loss."""
        start = time.perf_counter()
        n_updates = self._critic_solver.n_updates if self.n_critic_updates is None else self.n_critic_updates
        value_loss = math.nan
        if parts.critic_parameters and n_updates > 0:
            value_loss = self._critic_solver.fit(self.policy, parts, rollout, n_updates, self.batch_size)
        self.logger.record("time/critic", time.perf_counter() - start)
        self.logger.record("train/value_loss", value_loss)

    @contextmanager
    def _skipped_on_numerical_failure(self) -> Iterator[None]:
        """Undo the block at a numerical failure, count it, and warn the first time."""
        try:
            with restored_on_failure(self.policy, self.policy.optimizer):
                yield
        except NumericalFailure as failure:
            if self._last_skipped_update != self._n_updates:
                self._n_skipped_updates += 1
            if self._last_skipped_update is None:
                warn_user(
                    f"NPG skipped an update at {self.num_timesteps} steps: {failure}. What it would have moved is "
                    "as it was before. Later skips are only counted, in train/skipped_updates. If the environment "
                    "sends a NaN, stable_baselines3.common.vec_env.VecCheckNan finds the step; VecNormalize keeps a "
                    "NaN in its averages, and every later update is then skipped.",
                    RuntimeWarning,
                )
            self._last_skipped_update = self._n_updates

    def _log_update(self) -> None:
        buffer = self.rollout_buffer
        with np.errstate(all="ignore"):  # the rollout may hold an infinity
            explained = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
        self.logger.record("train/explained_variance", explained)
        self.logger.record("train/skipped_updates", self._n_skipped_updates)
        if isinstance(log_std := getattr(self.policy, "log_std", None), th.Tensor):
            self.logger.record("train/std", float(log_std.detach().exp().mean()))
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def learn(
        self: SelfNPG,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "NPG",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfNPG:
        """Train as SB3's algorithms do; see ``BaseAlgorithm.learn``."""
        self._get_ready()
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Refuse unsupported spaces of an environment before SB3's wrappers fail on them."""
        if isinstance(getattr(env, "action_space", None), spaces.Space):  # else of old gym, or unknown to SB3
            check_spaces(env.observation_space, env.action_space)
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        check_policy_name(policy_name, self.policy_aliases)
        return super()._get_policy_from_name(policy_name)

    def set_parameters(
        self,
        load_path_or_dict: str | TensorDict,
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """
        Set parameters as SB3's algorithms do, also those of an agent with another solver or none, such as PPO.

        :param load_path_or_dict: a saved agent's path, or what ``get_parameters`` returned
        :param exact_match: refuse parameters of which one is missing or unknown
        :param device: where they are loaded to
        :raises ValueError: if ``exact_match`` and they do not match
        """
        if not isinstance(load_path_or_dict, dict):
            _, load_path_or_dict, _ = load_from_zip_file(load_path_or_dict, device=device, load_data=False)
        # What this solver remembers does not apply to the parameters of an agent that saved no solver state.
        forgetful = make_fisher_solver(self.fisher_solver, self.fisher_solver_kwargs)
        parameters: dict[Any, Any] = {"fisher": forgetful.state_dict(), **load_path_or_dict}
        if not self.fisher.remembers():
            del parameters["fisher"]
        super().set_parameters(parameters, exact_match, device)
        self.fisher.to(self.device)  # its state arrives on the device that it was saved from or loaded to

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        """Save the solver's state, if it has any, besides policy and optimizer."""
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, *(["fisher"] if self.fisher.remembers() else [])], variables

    def _excluded_save_params(self) -> list[str]:
        """Leave out what ``_setup_model`` derives from the arguments."""
        return [*super()._excluded_save_params(), *_DERIVED]

    def _maybe_recommend_cpu(self, mlp_class_name: str = "ActorCriticPolicy") -> None:
        """Advise on the device: where a GPU does not pay, and what to do about it."""
        if self.device.type == "cpu" or self.policy_class.__name__ != mlp_class_name:
            return
        forward = FastForward.of(self.policy) if self.fast_paths else None
        if forward is not None and forward.is_recordable():
            return
        warn_user(
            f"NPG runs on {self.device} with {self.policy_class.__name__}, and a step of this policy is not one CUDA "
            "graph. Acting, one small forward pass for each environment step, is then slower there than on a CPU for a "
            "small network; what the update gains makes up for it only with a wide network or a large rollout. Pass "
            "device='cpu' unless you have measured that the GPU is faster.",
        )
