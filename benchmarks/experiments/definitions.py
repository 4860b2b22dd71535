"""The lecture's experiments, as data: arms, budgets, measurements, and how to show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.experiments.definition import Arm, Column, CurvePlot, Experiment, Measure, ValuePlot
from benchmarks.experiments.measures import (
    Horizons,
    advantage_variance,
    exact_critic,
    gradient_variance,
    learn,
    learn_by_episodes,
    learn_dqn,
)
from fastac.config import Config, ConfigValue
from fastac.presets import find

_STEPS, _SECONDS, _EPISODES = "environment steps", "training time (s)", "training episodes"
_RETURN, _RECENT = "greedy mean return", "return, mean of the last 50 episodes"
_BY_STEPS = CurvePlot("return", "by steps", _STEPS, _RETURN)
_BY_SECONDS = CurvePlot("return_by_seconds", "by time", _SECONDS, _RETURN)
_FINAL = Column("final_return", "return at the end", "mean return of greedy episodes after the last step")
_STAYS = Column(
    "stays",
    "later evaluations there (%)",
    "percent of the evaluations after the first at the threshold that are at it too",
    0,
)
_SPS = Column("sps", "steps/s", "environment steps per second of training alone", 0)


def _columns_to(name: str, goals: Mapping[str, float]) -> tuple[Column, Column]:
    """Return columns for the training needed until an evaluation reaches a group's goal, called `name` in labels."""
    told = " or ".join(f"{goal:g} on {group}" for group, goal in goals.items())
    steps = f"environment steps of training before the first evaluation that reaches {told}"
    seconds = "seconds of training alone until that evaluation"
    return (
        Column("env_steps_to", f"steps to {name}", steps, 0, none_is_last=True),
        Column("seconds_to", f"seconds to {name}", seconds, 2, none_is_last=True),
    )


def _preset(env_id: str, name: str) -> Config:
    config = find(env_id, name)
    assert config is not None, f"{env_id} has no preset {name}"
    return config


def _vary(group: str, base: Config, arms: Mapping[str, Mapping[str, ConfigValue]], measure: Measure) -> list[Arm]:
    """Return one arm per name: `base` with the given changes."""
    return [Arm(group, name, base.replace(**changes), measure) for name, changes in arms.items()]


# --- gae-lambda ----------------------------------------------------------------------------------


def _gae_lambda() -> Experiment:
    base = _preset("CartPole-v1", "a2c-fast").replace(
        # At 5 steps the lambdas hardly differ: the variance is a sum over the rows up to the rollout's end.
        num_envs=16,
        num_steps=64,
        learning_rate=5e-3,
        learning_rate_schedule="constant",
        total_env_steps=200_000,
        eval_every=0,
    )
    walk = base.replace(num_envs=65_536, num_steps=128)
    lambdas = {f"λ = {x:g}": {"gae_lambda": x} for x in (0.0, 0.5, 0.9, 0.95, 0.99, 1.0)}
    return Experiment(
        "gae-lambda",
        "What does GAE's lambda trade: how noisy are advantages, and how fast is learning?",
        (
            *_vary("CartPole-v1", base, lambdas, advantage_variance),
            *_vary("random walk of known values", walk, lambdas, exact_critic),
        ),
        (
            CurvePlot("return", "learning", _STEPS, "return, mean of the last 100 episodes"),
            CurvePlot("variance", "noise", _STEPS, "variance of advantages (return²)", "log"),
            ValuePlot(
                {"variance_ratio": "measured", "formula": "Σ (γλ)²ᵏ over k < 128"},
                "noise with an exact critic",
                "Var[advantage] / Var[TD error]",
                y_scale="log",
            ),
        ),
        (
            Column(
                "final_return",
                "return at the end",
                "mean return of greedy episodes after the last step, where the picture has those of training",
            ),
            Column(
                "variance",
                "variance of advantages (return²)",
                "over the steps of a rollout, before they are normalised, the mean over all rollouts of training",
            ),
            Column(
                "variance_ratio",
                "over that of TD errors",
                "the variance of advantages divided by the variance of the TD errors of the same steps",
                2,
            ),
            Column(
                "formula",
                "with an exact critic, by formula",
                "the sum over k < T of (gamma lambda)^(2k), T = num_steps; the walk has no end and rewards where it is",
                2,
            ),
        ),
    )


# --- baseline-variance ---------------------------------------------------------------------------


def _baseline_variance() -> Experiment:
    frozen = _preset("CartPole-v1", "a2c-fast")
    base = frozen.replace(
        algo="reinforce",
        collect="episodes",
        num_envs=1,
        num_steps=500,
        gae_lambda=1.0,
        learning_rate=1e-3,
        learning_rate_schedule="constant",
        total_env_steps=100_000,
        eval_every=5_000,
        eval_episodes=20,
    )
    arms: dict[str, dict[str, ConfigValue]] = {
        "REINFORCE": {"baseline": False},
        "REINFORCE, value baseline": {},
        "A2C, λ = 0.95": {"algo": "a2c", "gae_lambda": 0.95},
        "A2C, λ = 0": {"algo": "a2c", "gae_lambda": 0.0},
    }
    measure = partial(gradient_variance, base=frozen, base_env_steps=15_000, num_gradients=200, threshold=475.0)
    return Experiment(
        "baseline-variance",
        "How much noise does a baseline take out of the policy gradient, and does that speed up learning?",
        tuple(_vary("CartPole-v1", base, arms, measure)),
        (
            _BY_STEPS,
            ValuePlot(
                {"gradient_variance": "mean over the actor's parameters"},
                "gradient of one episode, frozen policy",
                "variance of the gradient",
                y_scale="log",
            ),
        ),
        (
            Column(
                "gradient_variance",
                "variance of a frozen policy's gradient",
                "of 200 estimates of it, each of one episode, the mean over the actor's parameters",
                5,
            ),
            _columns_to("475", {"CartPole-v1": 475.0})[0],
            _FINAL,
        ),
    )


# --- gotchas -------------------------------------------------------------------------------------

_SWITCHES: dict[str, dict[str, ConfigValue]] = {
    "all five as in the lecture": {},
    "advantages not normalised": {"normalize_advantage": False},
    "value coefficient 0.05": {"vf_coef": 0.05},
    "value coefficient 5": {"vf_coef": 5.0},
    "no entropy bonus": {"ent_coef": 0.0},
    "separate networks": {"shared_trunk": False},
    "gradients not clipped": {"max_grad_norm": None},
}


def _gotchas() -> Experiment:
    lecture: dict[str, ConfigValue] = {
        "normalize_advantage": True,
        "vf_coef": 0.5,
        "ent_coef": 0.01,
        "shared_trunk": True,
        "max_grad_norm": 0.5,
        "eval_episodes": 20,
    }
    cartpole = _preset("CartPole-v1", "a2c-fast").replace(
        **lecture,
        hidden_sizes=(128, 128),
        activation="relu",
        num_envs=16,
        num_steps=32,
        learning_rate=4e-3,
        total_env_steps=300_000,
        eval_every=15_000,
    )
    lander = _preset("LunarLander-v3", "a2c").replace(**lecture, total_env_steps=400_000, eval_every=40_000)
    return Experiment(
        "gotchas",
        "Which of the lecture's five switches matters, each turned off or changed alone?",
        tuple(arm for config in (cartpole, lander) for arm in _vary(config.env.env_id, config, _SWITCHES, learn)),
        (_BY_STEPS, ValuePlot({"final_return": "seeds, mean"}, "at the end", _RETURN)),
        (_FINAL,),
    )


# --- cartpole-500 --------------------------------------------------------------------------------


def _cartpole_500() -> Experiment:
    horizons = Horizons(episodes=500, env_steps=50_000, seconds=20.0)
    lecture = _preset("CartPole-v1", "lecture").replace(total_env_steps=30_000_000)  # more than fit in 20 seconds
    reinforce = lecture.replace(algo="reinforce", baseline=False, learning_rate=1e-3)
    faster = lecture.replace(learning_rate=1e-3)
    # The preset's rate is for a schedule that ends at 0; constant over millions of steps it destroys what was learned.
    vectorised = _preset("CartPole-v1", "a2c-fast").replace(
        learning_rate=3e-3, learning_rate_schedule="constant", total_env_steps=30_000_000
    )
    by_episodes = partial(learn_by_episodes, horizons=horizons)
    dqn = Config().replace(
        env_id="CartPole-v1",
        num_envs=1,
        num_steps=256,
        hidden_sizes=(256, 256),
        learning_rate=2.3e-3,
        total_env_steps=100_000,
    )
    return Experiment(
        "cartpole-500",
        "The lecture's exercise: is A2C steadier than REINFORCE and DQN, and does it solve CartPole faster?",
        (
            Arm("CartPole-v1", "A2C, the lecture's", lecture, by_episodes),
            Arm("CartPole-v1", "A2C, the lecture's, rate 1e-3", faster, by_episodes),
            Arm("CartPole-v1", "A2C, 64 envs", vectorised, by_episodes),
            Arm("CartPole-v1", "REINFORCE", reinforce, by_episodes),
            Arm("CartPole-v1", "DQN (stable-baselines3)", dqn, partial(learn_dqn, horizons=horizons)),
        ),
        tuple(
            CurvePlot(f"return_by_{name}", f"by {label}", x_label, _RECENT)
            for name, label, x_label in (
                ("episodes", "episodes", _EPISODES),
                ("env_steps", "steps", _STEPS),
                ("seconds", "time", _SECONDS),
            )
        ),
        (
            Column("return_at_episodes", "episodes 451 to 500", "their mean return, in training"),
            Column("return_at_env_steps", "50 episodes before step 50,000", "their mean return, in training"),
            Column(
                "fall_at_env_steps", "fall at step 50,000", "the best mean of 50 episodes until then, minus this one"
            ),
            Column("return_at_seconds", "50 episodes before second 20", "their mean return, in training"),
            Column("fall_at_seconds", "fall at second 20", "the best mean of 50 episodes until then, minus this one"),
        ),
    )


# --- a2c-a3c-ppo ---------------------------------------------------------------------------------


def _a2c_a3c_ppo() -> Experiment:
    goals = {"CartPole-v1": 475.0, "LunarLander-v3": 200.0, "Pendulum-v1": -200.0}
    names = ("A2C", "A3C, 2 workers", "PPO")
    arms: list[Arm] = []
    for (env_id, goal), budget, evaluations in zip(
        goals.items(), (200_000, 400_000, 500_000), (50, 20, 20), strict=True
    ):
        # CartPole uses the fast preset, from which its A3C is derived.
        a2c, ppo = find(env_id, "a2c-fast") or _preset(env_id, "a2c"), _preset(env_id, "ppo")
        a3c = find(env_id, "a3c") or a2c.replace(algo="a3c", workers=2, envs_per_worker=4)
        for name, config in zip(names, (a2c, a3c, ppo), strict=True):
            own = config.replace(total_env_steps=budget, eval_every=budget // evaluations, eval_episodes=20)
            arms.append(Arm(env_id, name, own, partial(learn, threshold=goal)))
    return Experiment(
        "a2c-a3c-ppo",
        "The lecture's table with measured columns: which of A2C, A3C and PPO needs fewer steps, and fewer seconds?",
        tuple(arms),
        (_BY_STEPS, _BY_SECONDS),
        (*_columns_to("the threshold", goals), _STAYS, _FINAL, _SPS),
    )


# --- vector-width --------------------------------------------------------------------------------


def _vector_width() -> Experiment:
    at_env_steps, at_seconds = 200_000, 3.0
    base = _preset("CartPole-v1", "a2c-fast").replace(learning_rate_schedule="constant", eval_episodes=20)
    rates: dict[str, Callable[[int], float]] = {
        "CartPole-v1, one learning rate": lambda width: 3e-3,
        "CartPole-v1, learning rate by √envs": lambda width: min(2e-2, 3e-3 * (width / 64) ** 0.5),
    }
    # The later of the two horizons; for wide batches this is the seconds (a million steps per second).
    budgets = {1: 220_000, 4: 220_000, 16: 1_000_000, 64: 2_000_000, 256: 3_000_000, 1024: 4_000_000, 4096: 5_000_000}
    measure = partial(learn, threshold=475.0, at_env_steps=at_env_steps, at_seconds=at_seconds)
    arms = [
        Arm(
            group,
            f"{width} envs",
            base.replace(
                num_envs=width,
                learning_rate=rate(width),
                total_env_steps=budget,
                eval_every=budget // 110,
            ),
            measure,
        )
        for group, rate in rates.items()
        for width, budget in budgets.items()
    ]
    return Experiment(
        "vector-width",
        "How many environments side by side: where does wider stop paying?",
        tuple(arms),
        (
            ValuePlot(
                {"return_at_env_steps": "after 200,000 steps", "return_at_seconds": "after 3 seconds"},
                "equal budgets",
                _RETURN,
                x_setting="num_envs",
                x_label="environments",
            ),
            ValuePlot(
                {"seconds_to": "seconds"},
                "time to 475",
                "seconds of training",
                x_setting="num_envs",
                x_label="environments",
                y_scale="log",
                none_is_last=True,
            ),
        ),
        (
            Column(
                "return_at_env_steps",
                "return after 200,000 steps",
                "mean return of the first evaluation from that step on, greedy",
            ),
            Column(
                "return_at_seconds",
                "return after 3 s",
                "mean return of the first evaluation after 3 seconds of training alone, greedy",
            ),
            *_columns_to("475", {"CartPole-v1": 475.0}),
            _SPS,
        ),
    )


# --- gaussians -----------------------------------------------------------------------------------

_GAUSSIANS: dict[str, dict[str, ConfigValue]] = {
    "clipped, one deviation": {},
    "clipped, deviation by state": {"dependent_std": True},
    "squashed, one deviation": {"squash_actions": True},
    "squashed, deviation by state": {"squash_actions": True, "dependent_std": True},
}


def _gaussians() -> Experiment:
    goals = {"Pendulum-v1": -200.0, "MountainCarContinuous-v0": 90.0, "LunarLanderContinuous-v3": 200.0}
    arms: list[Arm] = []
    for (env_id, goal), budget in zip(goals.items(), (150_000, 100_000, 300_000), strict=True):
        base = _preset(env_id, "ppo").replace(total_env_steps=budget, eval_every=budget // 20, eval_episodes=20)
        arms += _vary(env_id, base, _GAUSSIANS, partial(learn, threshold=goal))
    return Experiment(
        "gaussians",
        "Bounded actions: clip a Gaussian or squash it, and with one deviation or one that depends on the state?",
        tuple(arms),
        (_BY_STEPS, ValuePlot({"final_return": "seeds, mean"}, "at the end", _RETURN)),
        (_columns_to("the threshold", goals)[0], _STAYS, _FINAL),
    )


# --- robots --------------------------------------------------------------------------------------


def _robots() -> Experiment:
    arms = {"A2C": "a2c", "A2C, as published": "a2c-published"}
    return Experiment(
        "robots",
        "Continuous control: how far does A2C get with MuJoCo's robots in a million steps?",
        tuple(
            # Not "auto", which depends on the measured time of a step: a trial must be a single process.
            Arm(robot, name, _preset(robot, preset).replace(vectorization="sync"), learn)
            for robot in ("HalfCheetah-v5", "Hopper-v5")  # a million steps of Ant-v5 take three times as long
            for name, preset in arms.items()
        ),
        (_BY_STEPS, ValuePlot({"final_return": "seeds, mean"}, "at the end", _RETURN)),
        (_FINAL, _SPS),
        extras=("experiments", "mujoco"),
    )


EXPERIMENTS: tuple[Experiment, ...] = (
    _gae_lambda(),
    _baseline_variance(),
    _gotchas(),
    _cartpole_500(),
    _a2c_a3c_ppo(),
    _vector_width(),
    _gaussians(),
    _robots(),
)
