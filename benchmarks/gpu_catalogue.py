"""The cases of the GPU benchmark, in the order in which they are measured."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks import gpu_accuracy, gpu_cases, gpu_eigen, gpu_pong, gpu_precision, gpu_train, pong
from benchmarks.gpu_timing import Contestant, Race, Row, Setting
from benchmarks.speed_peers import ACTION_DIM, CG_STEPS
from benchmarks.speed_products import operations

#: Does a case; is given the setting, what to tell each contestant's name to, and the contestants to leave out.
Measure = Callable[[Setting, Callable[[str], None], dict[str, str]], list[Row]]


@dataclass(frozen=True)
class Case:
    """
    Contestants that are compared.

    :param title: of the table
    :param measure: returns a row for each
    :param goal: what the first of them should reach
    :param flop: floating-point operations that it cannot do without; 0 if they are not counted
    :param floor: the row that takes as long as what it cannot do without, and how many times
    :param tf32: let convolutions use TF32, as torch does when nothing is said
    """

    title: str
    measure: Measure
    goal: str = ""
    flop: float = 0.0
    floor: tuple[str, int] | None = None
    tf32: bool = False


def race(contestants: Callable[[Setting], list[Contestant]]) -> Measure:
    """Return what times contestants in turn."""

    def measure(setting: Setting, starting: Callable[[str], None], without: dict[str, str]) -> list[Row]:
        return Race(contestants(setting), setting, starting).run(without)

    return measure


def _cg(width: int, rows: int, goal: str = "", against_trpo: bool = True) -> Case:
    return Case(
        f"CG {CG_STEPS}, MLP {width}×{width}, N = {rows:,}",
        race(partial(gpu_cases.cg, [width, width], rows, against_trpo=against_trpo)),
        goal,
        flop=rows * operations(width, ACTION_DIM, CG_STEPS)["solve"],
    )


#: The device's rate, which the floors of the others are computed with.
RATE = "rate"
CASES: dict[str, Case] = {
    RATE: Case(
        "Rate of float32 matrix products",
        race(gpu_cases.gemm),
        flop=2.0 * gpu_cases.GEMM_EDGE**3,
    ),
    "cg-64-2048": _cg(64, 2048, "0.35 ms, 15 times as fast as TRPO's"),
    "kfac": Case(
        "K-FAC, update and solve, MLP 64×64, N = 2,048",
        race(partial(gpu_cases.kfac, {})),
        "0.3 ms, 10 times as fast as torch",
    ),
    "kfac-cholesky": Case(
        "K-FAC by Cholesky (largest_eigen = 0), update and solve, MLP 64×64, N = 2,048",
        race(partial(gpu_cases.kfac, {"largest_eigen": 0})),
        "0.3 ms, 10 times as fast as torch",
    ),
    "accuracy": Case(
        f"Relative error of float32 against float64, MLP 64×64, N = {gpu_accuracy.ROWS}", gpu_accuracy.accuracy
    ),
    "cg-64-65536": _cg(64, 65_536, "half of the floor's rate"),
    "cg-256-2048": _cg(256, 2048),
    "cg-256-8192": _cg(256, 8192),
    "cg-1024-8192": _cg(1024, 8192, "60 % of the floor's rate", against_trpo=False),
    "train-mlp": Case(
        "train(), MLP 64×64, N = 2,048",
        race(partial(gpu_train.updates, "MlpPolicy", 2048)),
        "8 times as fast as TRPO and PPO",
        tf32=True,
    ),
    "train-cnn": Case(
        "train(), NatureCNN, N = 1,024",
        race(partial(gpu_train.updates, "CnnPolicy", 1024)),
        "8 times as fast as TRPO and PPO",
        tf32=True,
    ),
    "act-mlp": Case(
        f"{gpu_train.ACTING_STEPS} steps of a rollout without the environments, MLP 64×64",
        race(partial(gpu_train.steps, "MlpPolicy")),
    ),
    "act-cnn": Case(
        f"{gpu_train.ACTING_STEPS} steps of a rollout without the environments, NatureCNN",
        race(partial(gpu_train.steps, "CnnPolicy")),
        tf32=True,
    ),
    "cnn-kfac": Case("K-FAC, update and solve, NatureCNN, N = 2,048", race(partial(gpu_cases.images, "kfac", {}))),
    "eigen": Case(
        f"Eigendecompositions in float64, factors of {', '.join(map(str, gpu_eigen.SIZES))} rows",
        race(gpu_eigen.eigendecompositions),
    ),
    "cnn-cg": Case(
        f"CG {CG_STEPS}, NatureCNN, N = 2,048",
        race(partial(gpu_cases.images, "cg", gpu_cases.CG)),
        floor=(gpu_cases.ONE_PRODUCT, CG_STEPS),
    ),
}
#: Only on demand: half a minute, a minute and a half, minutes; all but the second need ale-py.
ATARI, PRECISION, PONG = "atari", "precision", "pong"
ON_DEMAND: dict[str, Case] = {
    ATARI: Case(
        f"Pong, {pong.N_ENVS} environments of ale-py's vector, {gpu_train.ATARI_SECONDS:.0f} s each",
        gpu_train.frames,
        tf32=True,
    ),
    PRECISION: Case(
        f"{gpu_precision.TASK}, {gpu_precision.STEPS:,} steps, final policies over 20 deterministic episodes",
        gpu_precision.returns,
    ),
    PONG: Case(
        f"Pong, {pong.N_ENVS} environments of ale-py's vector, {len(gpu_pong.SEEDS)} trainings at once",
        gpu_pong.trainings,
        f"{gpu_pong.POINTS:.0f} points, mean of the last 100 episodes of the training",
        tf32=True,
    ),
}
