"""Efficiency of a run: the minimum time of its parts, timed in isolation, over its actual training time.

A row of a rollout needs a step of the environments and a forward pass to act on. Learning from it needs a
backward pass and, in every epoch that cannot reuse a kept forward pass, another forward pass. The rest of a run's
work (sampling, advantages, losses, the optimiser, copies, waiting) lowers the efficiency::

    bound      = N / (env_s + forward_s + backward_s)        steps/s, for A2C that keeps its forwards
    efficiency = row_s * rows / train_wall_s                 = achieved steps/s / bound

Both rates count the same share of valid rows, which cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import cycle
from statistics import median
from time import perf_counter
from typing import Protocol, TypeAlias

import numpy as np
import torch
from gymnasium.spaces import Discrete, MultiBinary, MultiDiscrete
from torch import Tensor

from fastac import memory
from fastac.build import EnvFactory, allocate_rollout, build_envs, shard_config, torch_threads
from fastac.config import Config
from fastac.contract import ActionArray, HasSpaces, ObsArray, StepRow, VecEnv
from fastac.envs import observation_dtype
from fastac.envs.adapter import NextStepAdapter, SameStepAdapter
from fastac.envs.masks import MaskReader, count_choices
from fastac.envs.rows import FlatBox
from fastac.envs.spaces import ArraySpace, map_actions
from fastac.kernels import Op, join_calls
from fastac.learning.fused import Activations, FusedNetwork, is_fusable
from fastac.learning.fused.gradient import chunk_rows, split_rows
from fastac.learning.fused.network import BackwardPass, ForwardPass, GradientBuffers
from fastac.learning.fused.recurrent import Sequences
from fastac.models import ActorCritic
from fastac.workers import divide_shards

Clock: TypeAlias = Callable[[], float]
Work: TypeAlias = Callable[[], object]

_BUDGET_S = 0.05  # for each part; a part that takes longer runs once to warm up and once timed
_BLOCKS = 11
_ACTION_ROWS = 64  # random actions, used in turn


class Measured(Protocol):
    """What is timed, such as a `Training`."""

    @property
    def model(self) -> ActorCritic:
        """The policy."""

    @property
    def envs(self) -> HasSpaces:
        """Environments, of which only the spaces matter."""


@dataclass(frozen=True, slots=True)
class BareTimes:
    """Seconds per row, i.e. one step of all N environments of one worker, and the number of passes per row.

    Attributes:
        env_s: a step of the environments, with random actions.
        forward_s: a forward pass of N rows, as used for acting.
        learn_forward_s: a forward pass of N rows' share of a whole update; 0 if learning needs none.
        backward_s: a backward pass of N rows' share of a whole update.
        learn_forwards: forward passes per row in learning.
        backwards: backward passes per row in learning.
    """

    env_s: float
    forward_s: float
    learn_forward_s: float
    backward_s: float
    learn_forwards: int
    backwards: int

    @property
    def row_s(self) -> float:
        """Minimum seconds per row."""
        return (
            self.env_s + self.forward_s + self.learn_forwards * self.learn_forward_s + self.backwards * self.backward_s
        )


def efficiency(bare: BareTimes, rows: float, train_wall_s: float) -> float:
    """Return the minimum time for `rows` rows divided by the actual time."""
    return bare.row_s * rows / train_wall_s


def count_rows(config: Config, iterations: int, env_steps: int) -> float:
    """Return how many rows a run needed; a row is one step of all its environments.

    If whole episodes are collected, rows in which shorter episodes only wait for the longest one do not count.
    """
    if config.algo.collect == "episodes":
        return env_steps / config.env.num_envs
    return iterations * config.algo.num_steps / _workers_apart(config)


def rows_per_iteration(config: Config, iterations: int, env_steps: int) -> int:
    """Return T of an iteration, averaged if iterations last whole episodes."""
    if config.algo.collect == "steps":
        return config.algo.num_steps
    return max(1, round(env_steps / (config.env.num_envs // _workers_apart(config)) / iterations))


def _workers_apart(config: Config) -> int:
    """Return the number of workers whose iterations are counted separately."""
    return config.num_workers if config.algo.has_async_workers else 1


def measure(
    config: Config,
    training: Measured,
    rows: int,
    env_factory: EnvFactory | None = None,
    seed: int = 0,
    clock: Clock = perf_counter,
    envs: VecEnv | None = None,
) -> BareTimes:
    """Time the parts of a run on the CPU, in this process, each in isolation and at the run's own sizes.

    The run is not modified: the environments are new, the model is copied, and the random streams come from `seed`.
    With K workers it times the share of one worker, all its shards as one batch, while the others idle. Takes an
    eighth of a second if the parts are cheap, else about twice the time of each part, plus building the environments.
    Meanwhile it holds a second copy of the environments and, if the run keeps them, of the activations of one update.

    Args:
        config: the run's configuration, with `workers` resolved.
        training: the run's training; its trained model is timed.
        rows: T of a rollout.
        env_factory: the user's own environments, if the run has them.
        seed: for environments, actions and observations.
        clock: returns seconds.
        envs: environments of one worker to step, instead of new ones.

    Raises:
        ValueError: see `build_envs`.
        EnvFailure: an environment failed.
    """
    share, model, rng = _worker_share(config, env_factory), deepcopy(training.model), np.random.default_rng(seed)
    num_envs, epochs, shares = share.env.num_envs, share.algo.num_epochs, share.algo.num_minibatches
    keep_activations = share.keeps_forward
    # Shape of an update's rows: whole sequences for recurrent models.
    lead = (rows, num_envs // shares) if model.state_size else (max(1, rows * num_envs // shares),)
    obs_space = training.envs.single_observation_space
    with torch_threads(share.run.torch_threads):
        with _opened(share, env_factory, rng, envs) as stepped:
            env_s = time_call(_stepping(share, stepped, rng), clock)
        network: _Network = (
            _FusedNetwork(model, num_envs, lead, obs_space, keep_activations, rng)
            if is_fusable(training.model)
            else _ModuleNetwork(model, num_envs, lead, obs_space, rng)
        )
        per_row = num_envs / math.prod(lead)
        forward_s = time_call(network.act, clock)
        learn_forward_s = time_call(network.forward, clock) * per_row if epochs > keep_activations else 0.0
        network.forward()  # input of the backward pass
        backward_s = time_call(network.backward, clock) * per_row
    return BareTimes(env_s, forward_s, learn_forward_s, backward_s, epochs - keep_activations, epochs)


def _worker_share(config: Config, env_factory: EnvFactory | None) -> Config:
    """Return the configuration of all environments of one worker, as a single shard."""
    most = max(map(len, divide_shards(config.num_shards, config.num_workers)))
    share = shard_config(config, env_factory)
    return share if most == 1 else share.replace(num_envs=most * share.env.num_envs)


def time_call(work: Work, clock: Clock) -> float:
    """Return the seconds per call: the median over blocks of calls.

    Not the minimum: other load on the machine slowed the run down, too.
    """
    _time_block(work, clock)  # warms caches up, and desynchronizes the environments
    means_s: list[float] = []
    spent_s = 0.0
    while spent_s < _BUDGET_S:
        calls, block_s = _time_block(work, clock)
        means_s.append(block_s / calls)
        spent_s += block_s
    return median(means_s)


def _time_block(work: Work, clock: Clock) -> tuple[int, float]:
    """Call `work` for a while, at least once; return the number of calls and the seconds."""
    began_s = now_s = clock()
    calls = 0
    while now_s - began_s < _BUDGET_S / _BLOCKS:
        work()
        calls += 1
        now_s = clock()
    return calls, now_s - began_s


@contextmanager
def _opened(
    config: Config, env_factory: EnvFactory | None, rng: np.random.Generator, envs: VecEnv | None
) -> Iterator[VecEnv]:
    """Yield given environments, or new ones, which are closed afterwards."""
    seed = np.random.SeedSequence(_draw_seed(rng))
    if envs is not None:
        yield envs
        return
    with closing(build_envs(config.env, seed, env_factory)) as new:
        yield new


def _stepping(config: Config, envs: VecEnv, rng: np.random.Generator) -> Work:
    """Return a function that steps environments once, with random actions.

    A Gymnasium batch that resets by itself is stepped directly, without fastac's wrapper. Environments that fastac
    batches, and Atari games, whose protocol fastac defines, are stepped through fastac.
    """
    rollout = allocate_rollout(config.replace(num_steps=1, num_minibatches=1), envs, 0)
    (row,) = rollout.step_rows()
    envs.reset(rollout.obs[0].numpy(), rollout.start[0].numpy())
    space = envs.single_observation_space
    if isinstance(space, FlatBox) and space.reading.mask_size:
        return _stepping_legally(envs, row, rollout.obs[0].numpy(), rng)
    actions = _draw_actions(envs.single_action_space, config.env.num_envs, rng)
    if isinstance(envs, NextStepAdapter | SameStepAdapter):
        return _in_turn(envs.batch.step, map(map_actions(envs.single_action_space), actions))
    return _in_turn(lambda action: envs.step(action, row), actions)


def _stepping_legally(envs: VecEnv, row: StepRow, rows: ObsArray, rng: np.random.Generator) -> Work:
    """Return a function that steps once with random legal actions; `rows` are those of the reset."""
    space = envs.single_action_space
    reader, shape = MaskReader(count_choices(space)), space.shape or ()

    def step() -> None:
        nonlocal rows
        envs.step(reader.draw(rows, shape, rng), row)
        rows = row.obs

    return step


def _draw_actions(space: ArraySpace, num_envs: int, rng: np.random.Generator) -> list[ActionArray]:
    """Draw batches of actions `[N, *action_shape]`, distributed like an untrained policy's."""
    shape = (_ACTION_ROWS, num_envs, *(space.shape or ()))
    if isinstance(space, Discrete):
        return list(rng.integers(0, int(space.n), shape))
    if isinstance(space, MultiDiscrete):
        return list(rng.integers(0, space.nvec, shape))
    if isinstance(space, MultiBinary):
        return list(rng.integers(0, 2, shape))
    return list(rng.standard_normal(shape, dtype=np.float32))


def _in_turn(step: Callable[[ActionArray], object], actions: Iterable[ActionArray]) -> Work:
    """Return a function that steps with one action after the other, cyclically."""
    turns = cycle(list(actions))
    return lambda: step(next(turns))


def _draw_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**63))


class _Network(Protocol):
    """The three passes to time."""

    def act(self) -> None:
        """Run N rows forward, for acting."""

    def forward(self) -> None:
        """Run an update's rows forward, for learning."""

    def backward(self) -> None:
        """Run the backward pass of `forward`, with given gradients of the network's outputs."""


class _FusedNetwork:
    """A fused network, processed chunk by chunk like a batch in `FusedGradient`."""

    def __init__(
        self,
        model: ActorCritic,
        num_envs: int,
        lead: tuple[int, ...],
        obs_space: ArraySpace,
        keep_activations: bool,
        rng: np.random.Generator,
    ) -> None:
        """Allocate for acting on `num_envs` rows and learning from `lead`, for all of the latter if they are kept."""
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        network, rows = FusedNetwork(model), math.prod(lead)
        chunk, steps = chunk_rows(network, rows), rows // num_envs if keep_activations else 1
        parts = split_rows(network, num_envs)
        acts_on = parts[0].stop
        acting = (
            Activations.kept(network, steps, num_envs, acts_on)
            if keep_activations
            else Activations.for_step(network, acts_on)
        )
        activations = acting if keep_activations else Activations(network, chunk)
        obs = _draw_obs(rng, (num_envs,), obs_space)
        network.refresh()
        acts, learns = (
            Sequences(model.initial_state(among[-1]), torch.zeros(math.prod(among), dtype=torch.bool), moves_on)
            if network.cores
            else None
            for among, moves_on in (((num_envs,), True), (lead, False))
        )
        acting_ops: list[list[Op]] = [[] for _ in range(steps)]  # prepared now, as a run does before it is timed
        for row, ops in enumerate(acting_ops):
            for part in parts:
                at = row * num_envs + part.start if keep_activations else 0
                ops += ForwardPass(network, acting, at, at + part.stop - part.start, acts).prepare(obs[part])
        self._acting = cycle([join_calls(ops) for ops in acting_ops])
        buffers = GradientBuffers(network, chunk)
        self._passes: list[tuple[BackwardPass, Tensor]] = []
        for begin in range(0, rows, chunk):
            num, at = min(chunk, rows - begin), begin if keep_activations else 0
            step = BackwardPass(network, activations, at, at + num, buffers, sequences=learns)
            self._passes.append((step, _draw_obs(rng, (num,), obs_space)))
        buffers.params.copy_(_draw(rng, *buffers.params.shape))
        buffers.value.copy_(_draw(rng, *buffers.value.shape))

    def act(self) -> None:
        """See `_Network`."""
        for op in next(self._acting):
            op()

    def forward(self) -> None:
        """See `_Network`."""
        for step, obs in self._passes:
            step.forward(obs)

    def backward(self) -> None:
        """See `_Network`."""
        for step, obs in self._passes:
            step.backward(obs)


class _ModuleNetwork:
    """Any model, by autograd; an update's rows form one graph, even if the run keeps the graphs of its steps."""

    def __init__(
        self,
        model: ActorCritic,
        num_envs: int,
        lead: tuple[int, ...],
        obs_space: ArraySpace,
        rng: np.random.Generator,
    ) -> None:
        """Draw observations `[N, *obs_shape]` for acting and `[*lead, *obs_shape]` for learning."""
        self._model = model
        self._acting, self._learning = (
            (_draw_obs(rng, rows, obs_space), model.initial_state(rows[-1]), torch.zeros(rows, dtype=torch.bool))
            for rows in ((num_envs,), lead)
        )

    @torch.no_grad()
    def act(self) -> None:
        """See `_Network`."""
        self._model(*self._acting)

    def forward(self) -> None:
        """See `_Network`; records the graph."""
        params, value, _ = self._model(*self._learning)
        self._outputs = (params, value)
        self._d_outputs = (torch.ones_like(params), torch.ones_like(value))

    def backward(self) -> None:
        """See `_Network`; keeps the graph."""
        torch.autograd.backward(self._outputs, self._d_outputs, retain_graph=True)


def _draw_obs(rng: np.random.Generator, rows: tuple[int, ...], space: ArraySpace) -> Tensor:
    """Draw observations `[*rows, *obs_shape]` in the dtype of their storage."""
    shape = (*rows, *(space.shape or ()))
    if observation_dtype(space) == np.uint8:
        return memory.copy_of(rng.integers(0, 256, shape, dtype=np.uint8))
    return _draw(rng, *shape)


def _draw(rng: np.random.Generator, *shape: int) -> Tensor:
    return memory.copy_of(rng.standard_normal(shape, dtype=np.float32))
