"""How fast the machine is at the moment: a shared one may be twice as fast an hour later."""

import time

import torch as th

#: Seconds that the fixed piece of work counts as, about what it takes on a processor of 2024 that has nothing to share.
STANDARD = 0.025
_REPEATS = 3
_PASSES = 1000


def pace() -> float:
    """
    Return the seconds of the processor that a fixed piece of work takes now, the fastest of a few goes.

    It is what training runs are made of: a small network acts on a few rows, and Python does the rest. It draws no
    random numbers.
    """
    layers = [th.linspace(-1.0, 1.0, 64 * 64).reshape(64, 64) / 64 for _ in range(2)]
    rows = th.linspace(-1.0, 1.0, 8 * 64).reshape(8, 64)
    seconds = []
    for _ in range(_REPEATS):
        start = time.process_time()
        for _ in range(_PASSES):
            hidden = rows
            for layer in layers:
                hidden = th.tanh(hidden @ layer)
            [float(value) for value in hidden[:, 0].tolist()]
            hidden.numpy().clip(-1.0, 1.0).mean(axis=0)
        seconds.append(time.process_time() - start)
    return min(seconds)
