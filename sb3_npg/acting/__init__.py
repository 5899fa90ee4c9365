"""How a policy acts while it collects."""

from sb3_npg.acting.collecting import acting
from sb3_npg.acting.forward import FastForward
from sb3_npg.acting.recorder import Recorder

__all__ = ["FastForward", "Recorder", "acting"]
