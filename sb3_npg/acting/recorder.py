"""A policy that acts on a GPU as a CUDA graph: a step's dozens of small kernels for the price of one launch."""

import logging
from functools import partial
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_npg.acting.forward import Acted, FastForward
from sb3_npg.graphs import Capture, Graph, capture


class _Recording(NamedTuple):
    """A recorded forward pass, with the tensors that it reads observations and random numbers from."""

    signature: tuple[object, ...]
    forward: FastForward  # kept alive, so that no other tensor gets a parameter's address
    observations: th.Tensor
    noise: th.Tensor
    graph: Graph
    acted: Acted


class Recorder:
    """
    Records a policy's forward pass at its first step, and keeps the graph while the policy's tensors stay in place.

    Random numbers are drawn outside the graph, so a recorded policy uses the same ones as any other.

    :param record: records a function as a graph
    """

    def __init__(self, record: Capture):
        self._record = record
        self._recording: _Recording | None = None
        self._can_record = True

    @classmethod
    def on(cls, device: th.device) -> "Recorder | None":
        """Return a recorder for a device; None if it has no CUDA graphs."""
        return cls(partial(capture, device)) if device.type == "cuda" else None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the recording: a copy makes its own."""
        return {**vars(self), "_recording": None}

    def recorded(self, forward: FastForward) -> "RecordedForward | FastForward":
        """Return a forward pass that is replayed if possible, else ``forward`` itself."""
        return RecordedForward(self, forward) if self._can_record and forward.is_recordable() else forward

    def recording_of(self, forward: FastForward, observations: th.Tensor) -> _Recording | None:
        """Return the recording of a forward pass, made now if there is none yet; None if it cannot be recorded."""
        signature = (*forward.signature(), observations.shape, observations.dtype, observations.device)
        if self._recording is None or self._recording.signature != signature:
            self._recording = None  # free its memory first
            own, noise = observations.clone(), forward.noise_for(len(observations))
            try:
                graph, acted = self._record(lambda: forward.act(own, noise))
            except RuntimeError as error:
                self._can_record = False
                logging.getLogger(__name__).info("acting is not recorded as a CUDA graph: %s", error)
                return None
            self._recording = _Recording(signature, forward, own, noise, graph, acted)
        return self._recording


class RecordedForward:
    """
    A forward pass by replaying its recording, which the first step of a rollout looks up or makes.

    :param recorder: keeps the recording
    :param forward: the forward pass that is recorded
    """

    def __init__(self, recorder: Recorder, forward: FastForward):
        self._recorder = recorder
        self._forward = forward
        self._recording: _Recording | None = None
        self._has_looked = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Give a copy of the policy SB3's own forward pass."""
        return self._forward.__reduce__()

    def __call__(self, obs: PyTorchObs, deterministic: bool = False) -> Acted:
        """See :class:`~sb3_npg.acting.FastForward`."""
        if deterministic or th.is_grad_enabled() or not isinstance(obs, th.Tensor):
            return self._forward(obs, deterministic)
        if not self._has_looked:
            self._has_looked = True
            self._recording = self._recorder.recording_of(self._forward, obs)
        recording = self._recording
        if recording is None or recording.observations.shape != obs.shape or recording.observations.dtype != obs.dtype:
            return self._forward(obs)
        recording.observations.copy_(obs)
        self._forward.draw(recording.noise)
        recording.graph.replay()
        actions, values, log_prob = recording.acted
        # Copies, as the next step overwrites them and someone may call the policy between two steps.
        return actions.clone(), values.clone(), log_prob.clone()
