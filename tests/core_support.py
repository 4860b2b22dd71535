"""What these tests share: whole runs from flat settings, the toy chain's truth, and policies of known value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from types import MappingProxyType

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from probes import ToyChain
from torch import Tensor

from fastac.build import Streams, build, build_envs
from fastac.config import Config, ConfigValue
from fastac.contract import Act, Phases, StepRow, VecEnv
from fastac.envs import adapt
from fastac.envs.sync import SyncEnvs
from fastac.kernels import Op
from fastac.learning.fused import Activations, FusedGradient, FusedNetwork, UpdateBuffers
from fastac.learning.learner import Learner
from fastac.learning.objectives import Coefs, Gradient, Objective
from fastac.learning.optimizer import Optimizer
from fastac.learning.update_rules import Step, UpdateRule
from fastac.rollout import Batch, Collector, FlatMinibatches, ModelActor, Rollout
from fastac.workers import SyncTraining, Training

CPU = torch.device("cpu")
PROBES = "probes:fastac/"


def make_training(**settings: ConfigValue) -> SyncTraining:
    """Assemble a run from flat settings."""
    config = Config().replace(**settings)
    return build(config, build_envs(config.env, Streams.spawn(config.run.seed).env))


def run_iterations(training: Training, iterations: int) -> None:
    """Train for some iterations."""
    assert len(list(islice(training.trainer.run(), iterations))) == iterations


def weights(training: Training) -> dict[str, Tensor]:
    """Copy the weights."""
    return {name: value.clone() for name, value in training.model.state_dict().items()}


def assert_same(left: object, right: object, path: str = "state") -> None:
    """Compare two state trees bit for bit."""
    if isinstance(left, dict):
        assert isinstance(right, dict) and left.keys() == right.keys(), path
        for key in left:
            assert_same(left[key], right[key], f"{path}/{key}")
    elif isinstance(left, Tensor | np.ndarray):
        left, right = np.asarray(left), np.asarray(right)
        assert left.dtype == right.dtype, path
        np.testing.assert_array_equal(left, right, err_msg=path)
    else:
        assert left == right, path


def allocate(num_steps: int, num_envs: int, obs_size: int = 1, state_size: int = 0) -> Rollout:
    """Allocate a rollout of discrete actions."""
    return Rollout.allocate(num_steps, num_envs, (obs_size,), (), torch.int64, state_size)


# --- the toy chain -------------------------------------------------------------------------------

GAMMA, LAMBDA = 0.9, 0.8

# One entry per env: every ending, episodes of length 1, and two ends in a row.
CHAINS = (
    {"lengths": (3, 1, 1, 4), "endings": ("terminated", "truncated", "both")},
    {"lengths": (1,), "endings": ("truncated", "terminated")},
    {"lengths": (2, 5), "endings": ("truncated",)},
    {"lengths": (4, 2, 3), "endings": ("terminated", "terminated", "truncated", "both")},
)


@dataclass(frozen=True)
class Transition:
    """One step of a toy chain, as its docstring promises it."""

    episode: int
    position: int
    reward: float
    terminated: bool
    truncated: bool

    @property
    def obs(self) -> float:
        """Before the step."""
        return 100.0 * self.episode + self.position


def transitions(lengths: tuple[int, ...], endings: tuple[str, ...]) -> Iterator[Transition]:
    """Go through a chain for ever, with the actions of `KnownPolicy`."""
    for k in count():
        length, ending = lengths[k % len(lengths)], endings[k % len(endings)]
        for p in range(length):
            last = p == length - 1
            reward = 10.0 * k + p + 1 + 0.1 * ((100 * k + p) % 2)
            yield Transition(k, p, reward, last and ending != "truncated", last and ending != "terminated")


def known_value(obs: float, age: float) -> float:
    """What `KnownPolicy` values an observation at, `age` steps after the start of its episode."""
    return 3.0 * np.sin(obs) + 7.0 + 2.0 * age


def true_advantages(steps: list[Transition], gamma: float = GAMMA, lam: float = LAMBDA) -> list[float]:
    """Sum up discounted TD errors to the end of the episode or of the rollout: no recursion, float64."""
    deltas = []
    for step in steps:
        after = 0.0 if step.terminated else known_value(step.obs + 1.0, step.position + 1)
        deltas.append(step.reward + gamma * after - known_value(step.obs, step.position))
    advantages = []
    for i in range(len(steps)):
        ends = [j for j in range(i, len(steps)) if steps[j].terminated or steps[j].truncated]
        stop = ends[0] + 1 if ends else len(steps)
        advantages.append(sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, stop)))
    return advantages


class KnownPolicy:
    """Acts by the parity of the observation; its memory counts the steps since `start`, and its value uses both."""

    state_size = 1

    def initial_state(self, num_envs: int) -> Tensor:
        return torch.zeros(num_envs, 1)

    def draw_noise(self, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.rand(leading, generator=generator)

    def act(self, obs: Tensor, state: Tensor, start: Tensor, noise: Tensor) -> Act:
        action, after = self.greedy(obs, state, start)
        return Act(action, torch.full(action.shape, -0.5), self.value(obs, state, start), after)

    def value(self, obs: Tensor, state: Tensor, start: Tensor) -> Tensor:
        age = torch.where(start, 0.0, state[:, 0])
        return (3.0 * torch.sin(obs[:, 0].double()) + 7.0 + 2.0 * age).float()

    def greedy(self, obs: Tensor, state: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        age = torch.where(start, 0.0, state[:, 0])
        return obs[:, 0].long() % 2, (age + 1.0).unsqueeze(-1)


MODES = {
    "next_step": AutoresetMode.NEXT_STEP,
    "same_step": AutoresetMode.SAME_STEP,
    "disabled": AutoresetMode.DISABLED,
    "own": None,
}


def make_chains(mode: str, chains: tuple[dict[str, tuple], ...] = CHAINS) -> VecEnv:
    """Batch toy chains with Gymnasium's SyncVectorEnv in an autoreset mode, or with fastac's own."""
    builds = [partial(ToyChain, **chain) for chain in chains]
    if MODES[mode] is None:
        queue = iter(builds)
        return SyncEnvs(lambda: next(queue)(), [0] * len(builds), "own")
    return adapt(SyncVectorEnv(builds, autoreset_mode=MODES[mode]), np.random.SeedSequence(0))


def make_collector(envs: VecEnv, num_steps: int, policy: object = None) -> Collector:
    """Collect with the known policy."""
    generator = torch.Generator().manual_seed(0)
    rollout = allocate(num_steps, envs.num_envs, state_size=1)
    return Collector(envs, ModelActor(policy or KnownPolicy(), rollout, generator, CPU), rollout)


def weigh(valid: Tensor) -> Tensor:
    """Return weights that make a sum the mean over valid rows (all 0 if there is none)."""
    return valid / valid.sum().clamp(min=1)


def evaluate_rows(model, obs: Tensor, action: Tensor, state: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probs, entropies and values of given actions, with gradients."""
    params, value, _ = model(obs, state, start)
    return *model.head.log_prob_entropy(params, action), value


def make_coefs(*numbers: float) -> Coefs:
    """Set the six coefficients, in the order in which the kernels take them."""
    coefs = Coefs()
    coefs.weights.copy_(torch.tensor(numbers[:3], dtype=torch.float64))
    coefs.schedule.copy_(torch.tensor(numbers[3:], dtype=torch.float64))
    return coefs


def differentiate(gradient: Gradient, batch: Batch, coefs: Coefs, is_fresh: bool) -> Tensor:
    """Compute the gradient of a batch; return the loss terms."""
    terms = torch.full((5,), torch.nan, dtype=torch.float64)
    for op in gradient.prepare(batch, coefs, terms, is_fresh):
        op()
    return terms


def make_gradient(
    network: FusedNetwork, objective: Objective, kept: Activations | None, rows: int, goes_forward: bool = True
) -> FusedGradient:
    """Differentiate a fused network, with buffers of its own."""
    return FusedGradient(network, objective, kept, UpdateBuffers.allocate(network, rows, goes_forward))


def take_step(
    optimizer: Optimizer, learning_rate: float | tuple[float, ...], terms: float = 0.0
) -> tuple[Tensor, float]:
    """Take a step with the current gradient and five loss terms; return the terms of all workers and the norm."""
    own, found, norm = (torch.full(shape, terms, dtype=torch.float64) for shape in ((1, 5), (5,), (1,)))
    rate = torch.tensor(learning_rate, dtype=torch.float64).view(-1)
    for op in [*optimizer.prepare_keep(0), *optimizer.prepare(own, found, norm, rate)]:
        op()
    return found, norm.item()


def apply_rule(rule: UpdateRule, vectors: tuple[Tensor, Tensor, Mapping[str, Tensor]], *numbers: float) -> None:
    """Apply an update rule once to param, grad and slots; the numbers are those of `Step`."""
    rule.prepare(*vectors, Step(*(torch.tensor([float(number)], dtype=torch.float64) for number in numbers)))()


class PlainDescent:
    """A rule without slots."""

    slots: Mapping[str, float] = MappingProxyType({})

    def prepare(self, param: Tensor, grad: Tensor, slots: Mapping[str, Tensor], step: Step) -> Op:
        def descend() -> None:
            if not step.grad_scale.isnan():
                param.sub_(grad * step.grad_scale.float(), alpha=step.learning_rate.item())

        return descend


class _NoGradient:
    def prepare(self, batch: Batch, coefs: Coefs, terms: Tensor, is_fresh: bool) -> list[Op]:
        return [terms.zero_]


class _NoOptimizer:
    def prepare_keep(self, shard: int) -> list[Op]:
        return []

    def prepare(self, parts: Tensor, terms: Tensor, norm: Tensor, learning_rate: Tensor) -> list[Op]:
        return []


def estimate(rollout: Rollout, **settings: ConfigValue) -> dict[str, float]:
    """Fill in advantages and returns the way the learner does."""
    config = Config().replace(**({"gamma": GAMMA, "gae_lambda": LAMBDA} | settings))
    minibatches = FlatMinibatches(1, torch.Generator())
    learner = Learner(config, [_NoGradient()], [minibatches], _NoOptimizer())
    return learner.learn([rollout], [rollout.reward], 0.0, Phases())


class Truth:
    """Walks along with a collector and tells what each rollout's valid rows should hold."""

    def __init__(self, chains: tuple[dict[str, tuple], ...] = CHAINS) -> None:
        self._walks = [transitions(**chain) for chain in chains]

    def next(self, valid: NDArray[np.bool_], gamma: float = GAMMA, lam: float = LAMBDA) -> dict[str, NDArray]:
        """Return reward, obs, value, advantage and return `[T, N]`, NaN where not valid."""
        names = ("obs", "reward", "value", "advantage", "return_")
        rows = {name: np.full(valid.shape, np.nan) for name in names}
        for n, walk in enumerate(self._walks):
            steps = list(islice(walk, int(valid[:, n].sum())))
            at = np.flatnonzero(valid[:, n])
            rows["obs"][at, n] = [step.obs for step in steps]
            rows["reward"][at, n] = [step.reward for step in steps]
            rows["value"][at, n] = [known_value(step.obs, step.position) for step in steps]
            rows["advantage"][at, n] = true_advantages(steps, gamma, lam)
        rows["return_"] = rows["advantage"] + rows["value"]
        return rows


class EarlyStart:
    """Marks the final observation as the start of an episode: "reset where done", the mutation of NEXT_STEP."""

    def __init__(self, envs: VecEnv) -> None:
        self._envs = envs

    def __getattr__(self, name: str) -> object:
        return getattr(self._envs, name)

    def step(self, action: NDArray, row: StepRow) -> None:
        self._envs.step(action, row)
        row.start[...] = row.terminated | row.truncated
