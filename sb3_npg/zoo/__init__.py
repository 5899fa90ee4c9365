"""
NPG in RL Baselines3 Zoo. Importing this registers it there.

``python -m sb3_npg.zoo train --algo npg --env Hopper-v5`` runs a zoo command with NPG registered. For the zoo's own
commands, write ``import sb3_npg.zoo`` into a file ``custom_envs.py`` of the folder that you call them from.
"""

try:
    from sb3_npg.zoo.registration import register
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"sb3_npg.zoo needs the package {error.name}, which is not installed: install sb3-npg with its extra, "
        "pip install '.[zoo]' in the repository's folder",
        name=error.name,
    ) from error

register()
