"""What processes of the A3C tests run; apart from the tests, so that a worker imports no more than it needs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from core_support import take_step
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from fastac.kernels import Op
from fastac.learning.optimizer import HogwildOptimizer, flat_size, flatten
from fastac.learning.update_rules import Step, UpdateRule
from fastac.processes import Parent
from fastac.shared_memory import SharedArray
from fastac.workers import SharedCounters, WorkerCounters
from fastac.workers.waiting import wait_until

INPUTS, OUTPUTS, ROWS = 40, 25, 16
SINGLE, WHOLE = np.dtype(np.float32), np.dtype(np.int64)


def make_model() -> nn.Module:
    """A model of a thousand parameters, the same in every process."""
    torch.manual_seed(0)
    return nn.Linear(INPUTS, OUTPUTS)


def num_params() -> int:
    return INPUTS * OUTPUTS + OUTPUTS


def param_size() -> int:
    return flat_size(make_model())


def allocate(workers: int, rule: UpdateRule) -> SharedCounters:
    """Counters for `make_model`, which holds its parameters."""
    counters = SharedCounters.allocate(workers, param_size(), rule.slots, {"obs": 2})
    counters.parameters.param.view()[:] = flatten(make_model())[0].numpy()
    return counters


class Log:
    """Room for the gradients of so many steps, in the order in which they were taken."""

    def __init__(self, steps: int, size: int) -> None:
        self.grads = SharedArray((steps, size), SINGLE)
        self.rates = SharedArray((steps, 2), np.dtype(np.float64))  # gradient's scale and learning rate
        self.written = SharedArray((steps,), WHOLE)


class Logged:
    """A rule that writes down what it is given before it takes the step."""

    def __init__(self, rule: UpdateRule, log: Log) -> None:
        self._rule, self._log = rule, log
        self.slots = rule.slots

    def prepare(self, param: Tensor, grad: Tensor, slots: Mapping[str, Tensor], step: Step) -> Op:
        update, log = self._rule.prepare(param, grad, slots, step), self._log

        def update_logged() -> None:
            at = int(step.count) - 1
            log.grads.view()[at] = grad.numpy()
            log.rates.view()[at] = step.grad_scale.item(), step.learning_rate.item()
            log.written.view()[at] += 1
            update()

        return update_logged


def take_steps(
    counters: SharedCounters,
    worker: int,
    rule: UpdateRule,
    lock: AbstractContextManager[object],
    steps: int,
    parent: Parent,
) -> None:
    """Learn some regression as worker `worker`, from the moment that all may go."""
    torch.set_num_threads(1)
    model, row = make_model(), WorkerCounters(counters, worker)
    optimizer = HogwildOptimizer(model, rule, 0.5, counters.parameters.vectors(), row, lock)
    rng = torch.Generator().manual_seed(worker)
    parent.send("ready")
    wait_until(lambda: row.may_go, lambda _: None)
    optimizer.copy()
    for step in range(steps):
        obs, target = torch.randn(ROWS, INPUTS, generator=rng), torch.randn(ROWS, OUTPUTS, generator=rng)
        model.zero_grad(set_to_none=False)
        ((model(obs) - target) ** 2).mean().backward()
        take_step(optimizer, 0.01 / (1 + step % 7))
    parent.send("done")


def hold_lock(lock: AbstractContextManager[object], parent: Parent) -> None:
    """Take the lock, say so, and release it when told."""
    with lock:
        parent.send("held")
        parent.receive()
    parent.send("released")
    parent.receive()


def multiply(parent: Parent) -> None:
    """Use torch with as many threads as there are, which hangs in a process forked from one that has done so."""
    torch.set_num_threads(4)
    parent.send(float((torch.ones(600, 600) @ torch.ones(600, 600)).sum()))


class Counts(gym.Env):
    """Episodes of five steps, whose observation and reward are this worker's own; fails as it is told, elsewhere."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, home: int, fails_in: str = "", marks: Path | None = None) -> None:
        self._fails_in = fails_in if os.getpid() != home else ""
        self._marks, self._steps = marks, 0
        self._fail("construction")

    def _fail(self, where: str) -> None:
        if self._fails_in != where:
            return
        if self._marks is not None and not _is_first(self._marks):
            return
        raise ArithmeticError("the wheel came off")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._obs(), {}

    def step(self, action):
        self._steps += 1
        if self._steps == 50:
            self._fail("step")
        return self._obs(), 1.0, self._steps % 5 == 0, False, {}

    def _obs(self):
        return self.np_random.normal(size=2).astype(np.float32)


class Slow(Counts):
    """Takes its time for each step."""

    def __init__(self, seconds: float) -> None:
        super().__init__(os.getpid())
        self._seconds = seconds

    def step(self, action):
        time.sleep(self._seconds)
        return super().step(action)


def _is_first(marks: Path) -> bool:
    """Leave a mark that only one process can leave."""
    try:
        (marks / "failed").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def make_counts(home: int, fails_in: str, marks: Path | None, num_envs: int) -> gym.vector.VectorEnv:
    return gym.vector.SyncVectorEnv([partial(Counts, home, fails_in, marks)] * num_envs)


def make_slow(seconds: float, num_envs: int) -> gym.vector.VectorEnv:
    return gym.vector.SyncVectorEnv([partial(Slow, seconds)] * num_envs)


def make_encoder(space: Box) -> nn.Module:
    """An encoder of the user's own."""
    return nn.Sequential(nn.Linear(space.shape[0], 6), nn.Tanh())


def descendants(pid: int) -> Iterator[int]:
    """The processes below a process that are alive."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            child = int(stat.parent.name)
            yield child
            yield from descendants(child)


class DrawingEncoder(nn.Module):
    """An encoder whose weights and buffer come from a stream that no seed of the run sets."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, 3)
        rng = np.random.default_rng()
        with torch.no_grad():
            self.layer.weight.copy_(torch.from_numpy(rng.normal(size=(3, inputs))))
        self.register_buffer("scale", torch.from_numpy(rng.uniform(0.5, 1.5, inputs)).float())

    def forward(self, obs: Tensor) -> Tensor:
        return self.layer(obs * self.scale)


def make_drawing_encoder(space: Box) -> nn.Module:
    return DrawingEncoder(space.shape[0])
