"""Hyperparameters that may change during training: a float, a callable, or rl-zoo's ``"lin_0.01"``."""

from typing import Any

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule

from sb3_npg.checks import check_number

LINEAR_PREFIX = "lin_"


class ProgressSchedule(FloatSchedule):
    """
    A schedule that is never evaluated beyond the end of training.

    The last rollout is a whole one, so SB3's progress remaining may end below 0, where a schedule such as
    ``lambda progress: 0.1 * progress`` would change its sign.
    """

    def __call__(self, progress_remaining: float) -> float:
        """Return the value at the progress remaining, 1 to 0."""
        return super().__call__(max(progress_remaining, 0.0))


def make_schedule(name: str, value: Any, *, minimum: float | None = None, above: float | None = None) -> Schedule:
    """
    Turn a hyperparameter into a function of the progress remaining, which falls from 1 to 0.

    :param name: the argument's name, as the user writes it
    :param value: a number, a callable of the progress remaining, or ``"lin_x"``, which falls from x to 0
    :param minimum: smallest value allowed at the start of training
    :param above: the value at the start of training must be larger than this
    :return: the schedule
    :raises ValueError: if it is none of these, or out of range at the start of training
    """
    hint = f"`{name}` takes a number, a callable of the progress remaining, or a string like 'lin_0.01'."
    schedule = value
    if isinstance(value, str) and value.startswith(LINEAR_PREFIX):
        try:
            schedule = LinearSchedule(float(value.removeprefix(LINEAR_PREFIX)), 0.0, 1.0)
        except ValueError:
            raise ValueError(f"`{name}`={value!r} has no number after {LINEAR_PREFIX!r}. {hint}") from None
    if not callable(schedule):
        check_number(name, schedule, minimum=minimum, above=above, hint=hint)
        return ProgressSchedule(float(schedule))
    try:
        start = schedule(1.0)
    except TypeError as error:
        raise ValueError(f"`{name}`={value!r} cannot be called with the progress remaining: {error}. {hint}") from error
    check_number(name, start, minimum=minimum, above=above, hint=f"That is its value at the start. {hint}")
    return ProgressSchedule(schedule)
