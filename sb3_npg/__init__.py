"""Natural Policy Gradient for Stable-Baselines3."""

from sb3_npg.npg import NPG
from sb3_npg.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__version__ = "0.1.0"

__all__ = ["NPG", "CnnPolicy", "MlpPolicy", "MultiInputPolicy", "__version__"]
