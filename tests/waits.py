"""What of an update would wait for a GPU."""

import traceback
from collections import Counter
from pathlib import Path

import torch as th
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_npg import NPG

PACKAGE = Path(__file__).parent.parent / "sb3_npg"
#: Operations whose result goes to the host, or has a shape that depends on what is on the device.
WAITING = {
    "aten._local_scalar_dense.default",
    "aten.nonzero.default",
    "aten.equal.default",
    "aten.masked_select.default",
}
#: The functions of the package that only log.
LOGGING = {"_log_update", "policy_step_figures"}


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU, by the function of the package that asks for it."""

    def __init__(self):
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_masked = "aten.index" in str(func) and any(index is not None and index.dtype == th.bool for index in args[1])
        if str(func) in WAITING or is_masked:
            self.note()
        return func(*args, **(kwargs or {}))

    def note(self):
        """Count one, if it is ours and not for the log."""
        ours = [frame.name for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(PACKAGE)]
        if ours and not LOGGING.intersection(ours):
            self.found[next(name for name in reversed(ours) if not name.startswith("<"))] += 1


class Lists(TorchFunctionMode):
    """Counts tensors that become lists or arrays, which no dispatcher sees."""

    def __init__(self, waits: Waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (th.Tensor.tolist, th.Tensor.numpy, th.Tensor.cpu):
            self.waits.note()
        return func(*args, **(kwargs or {}))


def waits_of(agent: NPG) -> Counter[str]:
    """Train on a second rollout, and count."""
    for _ in range(2):
        waits = Waits()
        _, callback = agent._setup_learn(agent.n_steps)
        agent.collect_rollouts(agent.get_env(), callback, agent.rollout_buffer, agent.n_steps)
        with Lists(waits), waits:
            agent.train()
    return waits.found
