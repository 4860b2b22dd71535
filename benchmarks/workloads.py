"""The fixed list of workloads that `make bench` times, W1 to W6, W9 to W12, W14; W7 is `solve`, W8 `bench_memory`.

Every workload is a comparison: its rows do the same work, in rounds that are interleaved. The policy is
the untrained one, for all and for as long as is measured, so that all reset equally often: on CartPole
every 22 steps or so, far more often than a trained policy; on Pong every 900.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.contest import Contestant

NUM_ENVS = (64, 256, 1024, 4096)
NUM_STEPS = 16
GAE_SHAPES = ((5, 16), (128, 8), (2048, 1), (2048, 8), (32, 1024), (128, 4096), (32, 16384))  # [T, N]

# `fastac` is in `benchmarks.peers` like the others; `limits` is what bounds them.
FASTAC, SB3, TORCHRL, TIANSHOU, LIMITS = "fastac", "sb3", "torchrl", "tianshou", "limits"
LECTURE_A3C = "lecture_a3c"
A3C_ENVS = (1, 16, 256)  # of each worker
ATARI_ENVS, ATARI_STEPS = 16, 5
MUJOCO_SHAPES = ((4, 8), (16, 5))  # [N, T], of the presets: the library's and the published one
SCALE, SCALE_ENVS = "W14 A2C, separate 64-64 tanh, up to 65,536 envs", (1024, 4096, 16_384, 65_536)
_ENCODERS = {"nature": "Nature CNN", "a3c": "A3C CNN"}
LIBRARIES = {SB3: "stable-baselines3", TORCHRL: "TorchRL", TIANSHOU: "Tianshou"}


def a3c_workers(number: int) -> str:
    return f"A3C, {number} worker{'s' * (number > 1)}"


# Rows of the workloads of A3C.
A3C_ONE, A3C_TWO, A3C_APART = a3c_workers(1), a3c_workers(2), "two runs side by side"
A3C_IN_STEP, A3C_LECTURE = "A2C, 2 workers in step", "the lecture's A3C, 2 processes"


class Workload(NamedTuple):
    """One comparison.

    Attributes:
        name: begins with the workload's number.
        contestants: its rows.
        quick: whether `make bench-quick` has it too.
        pace: how many times longer its rounds are, where an iteration takes longer.
    """

    name: str
    contestants: Sequence[Contestant]
    quick: bool = False
    pace: float = 1.0


def all_workloads() -> list[Workload]:
    return [
        *(_gae(shape) for shape in GAE_SHAPES),
        *(_env(num_envs) for num_envs in NUM_ENVS),
        *(_part("W3 collect", "collect", num_envs) for num_envs in NUM_ENVS),
        *(_part("W4 update", "update", num_envs) for num_envs in NUM_ENVS),
        *(_a2c_lecture(num_envs) for num_envs in NUM_ENVS),
        _same_work(),
        _same_work_ppo(),
        *(_a3c(num_envs) for num_envs in A3C_ENVS),
        _a3c_crowd(),
        _atari_env(),
        _atari_a2c("nature"),
        _atari_a2c("a3c"),
        _atari_ppo(),
        _atari_a3c(),
        *(_mujoco_a2c(*shape) for shape in MUJOCO_SHAPES),
        _recurrent_ppo(),
        scale(),
    ]


def _gae(shape: tuple[int, int]) -> Workload:
    settings = {"num_steps": shape[0], "num_envs": shape[1]}
    rows = [
        Contestant("fastac", FASTAC, "gae", settings),
        Contestant("copy of as many bytes", LIMITS, "copy", settings),
        Contestant("stable-baselines3", SB3, "gae", settings),
        Contestant("Tianshou", TIANSHOU, "gae", settings | {"form": "whole"}),
        Contestant("Tianshou, its kernel alone", TIANSHOU, "gae", settings | {"form": "kernel"}),
        Contestant("TorchRL, vectorized", TORCHRL, "gae", settings | {"form": "vectorized"}),
        Contestant("TorchRL, plain", TORCHRL, "gae", settings | {"form": "plain"}),
        Contestant("fastac's reference", FASTAC, "gae_reference", settings),
    ]
    return Workload(f"W1 GAE {shape}", rows, quick=shape in ((128, 8), (2048, 1), (128, 4096)))


def _env(num_envs: int) -> Workload:
    settings = {"num_envs": num_envs, "num_steps": NUM_STEPS}
    rows = [
        Contestant("fastac, compiled", FASTAC, "env", settings | {"vec": "compiled"}),
        Contestant("fastac, native", FASTAC, "env", settings | {"vec": "native"}),
        Contestant("Gymnasium's batch, bare", LIMITS, "env", settings | {"vec": "gymnasium"}),
        Contestant("EnvPool, bare, 1 thread", LIMITS, "env", settings | {"vec": "envpool"}),
        Contestant("EnvPool, bare, 2 threads", LIMITS, "env", settings | {"vec": "envpool", "num_threads": 2}),
        Contestant("EnvPool in fastac", FASTAC, "env", settings | {"vec": "envpool"}),
    ]
    if num_envs <= 1024:  # one environment after the other: more of them change no rate
        rows.append(Contestant("fastac, sync", FASTAC, "env", settings | {"vec": "sync"}))
        rows.append(Contestant("stable-baselines3's DummyVecEnv", SB3, "env", settings))
    return Workload(f"W2 env alone, {num_envs} envs", rows, quick=num_envs == 256)


def _part(title: str, part: str, num_envs: int) -> Workload:
    settings = {"num_envs": num_envs, "num_steps": NUM_STEPS, "net": "lecture", "part": part}
    rows = [
        Contestant("fastac", FASTAC, "a2c", settings),
        Contestant("fastac, two forwards", FASTAC, "a2c", settings | {"reuse_forward": False}),
    ]
    if num_envs <= 1024:
        rows += [Contestant(title, library, "a2c", settings) for library, title in LIBRARIES.items()]
    return Workload(f"{title}, {num_envs} envs", rows, quick=num_envs == 256)


def _a2c_lecture(num_envs: int) -> Workload:
    settings = {"num_envs": num_envs, "num_steps": NUM_STEPS, "net": "lecture"}
    # What fastac could reach if a run were nothing but environments, forwards and backwards.
    rows = [*_fastac("a2c", settings), Contestant("bound: the parts alone", LIMITS, "bound", settings)]
    if num_envs == 1024:
        # What two cores give at most: two runs that know nothing of each other, half of the envs each.
        half = settings | {"num_envs": num_envs // 2}
        rows.append(Contestant("two runs side by side", FASTAC, "a2c", half, copies=2))
    if num_envs == 256:
        rows.append(Contestant("fastac on EnvPool", FASTAC, "a2c", settings | {"envpool": True}))
    rows += [Contestant(title, library, "a2c", settings) for library, title in LIBRARIES.items()]
    return Workload(f"W5 A2C, shared 128-128 ReLU, {num_envs} envs", rows, quick=num_envs == 1024)


def _same_work() -> Workload:
    settings = {"num_envs": 64, "num_steps": NUM_STEPS, "net": "separate"}
    peers = [row for library in LIBRARIES for row in _threads(library, "a2c", settings)]
    return Workload("W6 A2C, separate 64-64 tanh, 64 envs", [*_fastac("a2c", settings), *peers], quick=True)


def _same_work_ppo() -> Workload:
    settings = {"num_envs": 64, "num_steps": NUM_STEPS, "net": "separate"}
    return Workload(
        "W6 PPO, separate 64-64 tanh, 64 envs", [*_fastac("ppo", settings), *_threads(SB3, "ppo", settings)]
    )


def _a3c(num_envs: int) -> Workload:
    settings = {"num_envs": num_envs, "num_steps": NUM_STEPS, "net": "separate"}
    in_step = settings | {"num_envs": 2 * num_envs, "workers": 2}
    rows = [
        Contestant(A3C_TWO, FASTAC, "a3c", settings | {"workers": 2}),
        Contestant(A3C_ONE, FASTAC, "a3c", settings | {"workers": 1}),
        # What two cores give at most: two runs of a worker each that share nothing.
        Contestant(A3C_APART, FASTAC, "a3c", settings | {"workers": 1}, copies=2),
        Contestant(A3C_IN_STEP, FASTAC, "a2c", in_step),
        Contestant(A3C_LECTURE, LECTURE_A3C, "a3c", {"workers": 2}),
    ]
    return Workload(f"W9 A3C, separate 64-64 tanh, {num_envs} envs per worker", rows, quick=num_envs == 16)


def _a3c_crowd() -> Workload:
    """More workers than cores."""
    settings = {"num_envs": 16, "num_steps": NUM_STEPS, "net": "separate"}
    rows = [Contestant(a3c_workers(k), FASTAC, "a3c", settings | {"workers": k}) for k in (1, 2, 4, 8)]
    return Workload("W9 A3C, 16 envs per worker, more workers than cores", rows)


def _atari_env() -> Workload:
    fastac_settings = {"num_envs": ATARI_ENVS}
    bare = [
        Contestant(
            f"ALE's batch, bare, {num_envs} envs, {_count_threads(n)}",
            LIMITS,
            "atari_env",
            {"num_envs": num_envs, "num_threads": n},
        )
        for num_envs in (8, ATARI_ENVS, 32, 64)
        for n in (1, 2)
    ]
    rows = [
        Contestant(f"fastac, {ATARI_ENVS} envs", FASTAC, "atari_env", fastac_settings),
        *bare,
        Contestant(f"stable-baselines3's wrappers, {ATARI_ENVS} envs", SB3, "atari_env", fastac_settings),
    ]
    return Workload("W10 env alone, Pong", rows, pace=2.0)


def atari_a2c(encoder: str) -> str:
    return f"W10 A2C, Pong, {_ENCODERS[encoder]}, {ATARI_ENVS} envs x {ATARI_STEPS}"


def _atari_a2c(encoder: str) -> Workload:
    settings = {"num_envs": ATARI_ENVS, "num_steps": ATARI_STEPS, "encoder": encoder}
    title = "stable-baselines3, 1 thread, a process per env"
    rows = [
        *_fastac("atari_a2c", settings),
        *_threads(SB3, "atari_a2c", settings),
        Contestant(title, SB3, "atari_a2c", settings | {"processes": True}),
        *_atari_parts(settings),
    ]
    return Workload(atari_a2c(encoder), rows, quick=encoder == "nature", pace=3.0)


def _atari_parts(settings: dict[str, Any]) -> Iterator[Contestant]:
    """The parts of A2C alone, each in both ways to have two cores: two threads, and half of the envs per process."""
    env = {"num_envs": settings["num_envs"]}
    half = settings | {"num_envs": settings["num_envs"] // 2}
    yield Contestant("env, 2 threads", LIMITS, "atari_env", env | {"num_threads": 2}, part="env")
    yield Contestant(
        "env, 2 processes", LIMITS, "atari_env", {"num_envs": half["num_envs"], "num_threads": 1}, copies=2, part="env"
    )
    for part in ("forward", "backward"):
        yield Contestant(f"{part}, 2 threads", LIMITS, f"atari_{part}", settings, threads=2, part=part)
        yield Contestant(f"{part}, 2 processes", LIMITS, f"atari_{part}", half, copies=2, part=part)


def atari_ppo() -> str:
    return "W10 PPO, Pong, Nature CNN, 8 envs x 128"


def _atari_ppo() -> Workload:
    settings = {"num_envs": 8, "num_steps": 128, "encoder": "nature"}
    rows = [_fastac("atari_ppo", settings)[-1], _threads(SB3, "atari_ppo", settings)[-1]]
    return Workload(atari_ppo(), rows)  # an iteration takes seconds: a round is one, and each has its faster row alone


def _atari_a3c() -> Workload:
    """Half of the envs per worker; the A3C paper's network."""
    half, in_step = {"num_envs": ATARI_ENVS // 2, "encoder": "a3c"}, {"num_envs": ATARI_ENVS, "encoder": "a3c"}
    rows = [
        *(
            Contestant(
                f"{a3c_workers(workers)}, {steps} steps",
                FASTAC,
                "atari_a3c",
                half | {"num_steps": steps, "workers": workers},
            )
            for workers, steps in ((2, 5), (2, 20), (1, 5))
        ),
        Contestant(f"{A3C_IN_STEP}, 5 steps", FASTAC, "atari_a2c", in_step | {"num_steps": 5, "workers": 2}),
    ]
    return Workload("W10 A3C, Pong, A3C CNN, 8 envs per worker", rows, pace=3.0)


def mujoco_a2c(num_envs: int, num_steps: int) -> str:
    return f"W11 A2C, HalfCheetah-v5, separate 64-64 tanh, {num_envs} envs x {num_steps}"


def _mujoco_a2c(num_envs: int, num_steps: int) -> Workload:
    settings = {"num_envs": num_envs, "num_steps": num_steps}
    apart = Contestant(
        "stable-baselines3, 1 thread, a process per env", SB3, "mujoco_a2c", settings | {"processes": True}
    )
    pool = settings | {"vectorization": "envpool"}
    rows = [
        *_fastac("mujoco_a2c", settings),
        Contestant("fastac on EnvPool, 1 worker", FASTAC, "mujoco_a2c", pool),
        Contestant("fastac on EnvPool, 2 workers", FASTAC, "mujoco_a2c", pool | {"workers": 2}),
        *_threads(SB3, "mujoco_a2c", settings),
        apart,
    ]
    return Workload(mujoco_a2c(num_envs, num_steps), rows)


def recurrent_ppo() -> str:
    return "W12 PPO, LSTM 64, CartPole without velocities, 16 envs x 128"


def _recurrent_ppo() -> Workload:
    settings = {"num_envs": 16, "num_steps": 128}
    rows = [*_fastac("recurrent_ppo", settings), *_threads(SB3, "recurrent_ppo", settings)]
    return Workload(recurrent_ppo(), rows, quick=True, pace=2.0)


def scale_row(num_envs: int, workers: int) -> str:
    return f"{num_envs:,} envs, {workers} worker{'s' * (workers > 1)}"


def scale() -> Workload:
    """Ever more environments, which should change no rate."""
    settings = {"num_steps": NUM_STEPS, "net": "separate"}
    rows = [
        Contestant(scale_row(n, workers), FASTAC, "a2c", settings | {"num_envs": n, "workers": workers})
        for workers in (1, 2)
        for n in SCALE_ENVS
    ]
    return Workload(SCALE, rows, pace=2.0)


def _count_threads(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


def _fastac(function: str, settings: dict[str, Any]) -> list[Contestant]:
    return [
        Contestant("fastac, 1 worker", FASTAC, function, settings),
        Contestant("fastac, 2 workers", FASTAC, function, settings | {"workers": 2}),
    ]


def _threads(library: str, function: str, settings: dict[str, Any]) -> list[Contestant]:
    """Both ways to give a peer two cores: torch's threads, or none, which is often faster."""
    name = LIBRARIES[library]
    return [Contestant(f"{name}, {_count_threads(n)}", library, function, settings, n) for n in (1, 2)]


def best_settings() -> dict[str, list[Contestant]]:
    """By library, the settings that are tried for the fastest A2C with separate 64-64 tanh nets.

    stable-baselines3's and Tianshou's other vector environments take a process per environment, which
    is slower at every number of them.
    """
    return {
        FASTAC: [_best(FASTAC, n, workers=w) for n in (256, 1024, 4096) for w in (1, 2)],
        SB3: [_best(SB3, n, threads) for n in (64, 256, 1024) for threads in (1, 2)],
        TORCHRL: [
            *(_best(TORCHRL, n, threads) for n in (256, 1024, 4096) for threads in (1, 2)),
            _best(TORCHRL, 1024, vec="parallel"),
        ],
        TIANSHOU: [
            *(_best(TIANSHOU, n, threads) for n in (64, 256, 1024) for threads in (1, 2)),
            *(_best(TIANSHOU, n, vec="envpool") for n in (256, 1024)),
        ],
    }


def _best(library: str, num_envs: int, threads: int = 1, **settings: Any) -> Contestant:
    words = [f"{num_envs} envs", *(f"{name} {value}" for name, value in settings.items())]
    if library != FASTAC:
        words.append(_count_threads(threads))
    name = f"{LIBRARIES.get(library, library)}, {', '.join(words)}"
    settings |= {"num_envs": num_envs, "num_steps": NUM_STEPS, "net": "separate"}
    return Contestant(name, library, "a2c", settings, threads)
