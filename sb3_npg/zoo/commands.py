"""``python -m sb3_npg.zoo COMMAND ...``: the commands of the zoo, with NPG registered and its config found."""

import argparse
import importlib
import importlib.util
import os
import runpy
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import rl_zoo3.import_envs  # noqa: F401  the zoo's own environments

from sb3_npg.zoo.errors import ZooError, did_you_mean
from sb3_npg.zoo.repairs import own_subprocesses

#: For each command the zoo's module, and whether to call its function of that name; otherwise the module is run.
COMMANDS = {
    "train": ("rl_zoo3.train", True),
    "enjoy": ("rl_zoo3.enjoy", True),
    "record_video": ("rl_zoo3.record_video", False),
    "record_training": ("rl_zoo3.record_training", False),
    "plot_train": ("rl_zoo3.plots", True),
    "plot_from_file": ("rl_zoo3.plots", True),
    "all_plots": ("rl_zoo3.plots", True),
    "load_from_hub": ("rl_zoo3.load_from_hub", False),
    "push_to_hub": ("rl_zoo3.push_to_hub", False),
}
#: Those that take --algo.
WITH_ALGO = ("train", "enjoy", "record_video", "record_training", "load_from_hub", "push_to_hub")
#: Those that read a run from a folder.
READING = ("enjoy", "record_video", "record_training")
#: Where ``train`` writes.
LOG_FOLDER = "logs"
USAGE = f"""\
usage: python -m sb3_npg.zoo COMMAND ...   (or: sb3-npg COMMAND ...)

RL Baselines3 Zoo with NPG: {", ".join(COMMANDS)}.
COMMAND --help lists a command's arguments. Beside the zoo's own defaults, --algo is npg, --conf-file the package's
configs, and runs are read from the folder {LOG_FOLDER}/, where `train` writes them."""


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command of the zoo.

    :param argv: the command and its arguments; the process's by default
    :return: the exit status
    """
    enter_folder()
    given = sys.argv[1:] if argv is None else argv
    command, *arguments = given or ["--help"]
    try:
        run(command, arguments)
    except ZooError as error:
        print(f"sb3-npg {command}: {error}", file=sys.stderr)
        return 2
    return 0


def run(command: str, arguments: Sequence[str]) -> None:
    """
    Run a command of the zoo.

    :param command: its name
    :param arguments: its arguments
    :raises ZooError: if there is no such command, or an argument names something that does not exist
    """
    if command in ("-h", "--help"):
        print(USAGE)
        return
    if command not in COMMANDS:
        raise ZooError(f"there is no such command. {did_you_mean(command, COMMANDS)}Known: {list(COMMANDS)}.")
    completed = complete(command, arguments)
    check(command, completed)
    module, has_function = COMMANDS[command]
    before = sys.argv
    sys.argv = [f"sb3-npg {command}", *completed]
    try:
        if has_function:
            getattr(importlib.import_module(module), command)()
        else:
            with own_subprocesses():
                runpy.run_module(module, run_name="__main__")
    finally:
        sys.argv = before


def enter_folder() -> None:
    """Make modules in the current folder importable, such as environments and configs, as ``python -m`` does."""
    if os.getcwd() in sys.path or "" in sys.path:
        return
    sys.path.insert(0, os.getcwd())
    if importlib.util.find_spec("custom_envs") is not None:  # the zoo looked for it before
        importlib.import_module("custom_envs")


def complete(command: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments, preceded by those whose default is not the zoo's."""
    defaults: list[str] = []
    if command in WITH_ALGO and named(arguments).algo is None:
        defaults += ["--algo", "npg"]
    if command in READING and named(arguments).folder is None:
        defaults += ["-f", LOG_FOLDER]
    return [*defaults, *arguments]


def check(command: str, arguments: Sequence[str]) -> None:
    """
    Check that what the arguments name exists.

    :param command: a command of the zoo
    :param arguments: its arguments
    :raises ZooError: if an environment or a folder is missing
    """
    if {"-h", "--help"} & set(arguments):
        return
    given = named(arguments)
    if command in ("train", *READING):
        for package in given.gym_packages:
            import_package(package)
        check_environment(given.env)
    if command in READING:
        check_folder(Path(given.folder), given.algo, given.env)
    if command == "train" and given.trained_agent and not os.path.isfile(given.trained_agent):
        raise ZooError(f"--trained-agent={given.trained_agent}: there is no such file. Name the .zip of a run.")
    if command == "record_training" and shutil.which("ffmpeg") is None:
        raise ZooError("the zoo joins videos by the program ffmpeg, which is not installed. Install it and try again.")


def named(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of the zoo's commands that are checked or completed here."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--algo")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("-f", "--folder", "--log-folder")
    parser.add_argument("-i", "--trained-agent")
    parser.add_argument("--gym-packages", nargs="+", default=[])
    return parser.parse_known_args(arguments)[0]


def import_package(name: str) -> None:
    """Import a module that registers environments, which may be in the current folder."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):  # it, or a package that it is in, is missing
            raise
        raise ZooError(f"--gym-packages {name}: no such module is installed or in this folder.") from error


def check_environment(env_id: str) -> None:
    """Refuse an environment that gymnasium does not know."""
    if env_id in gym.registry:
        return
    raise ZooError(
        f"--env={env_id} is not registered with gymnasium. {did_you_mean(env_id, gym.registry)}"
        "Environments of another package need it installed, and named after --gym-packages."
    )


def check_folder(folder: Path, algo: str, env_id: str) -> None:
    """Refuse a folder that holds no run. With the zoo's own default folder, the zoo would ask the hub for it."""
    name = env_id.replace("/", "-")
    if not any((folder / algo).glob(f"{name}_*")) and not (folder / algo / f"{name}.zip").is_file():
        raise ZooError(
            f"--folder={folder} holds no run of {algo} on {env_id}. Train one: sb3-npg train --algo {algo} "
            f"--env {env_id} -f {folder}; or name the folder of another by -f."
        )
