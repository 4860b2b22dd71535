"""The hot loop: act, step and write T times into one preallocated rollout."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from fastac import memory
from fastac.contract import (
    ActionArray,
    Actor,
    EnvFailure,
    Extras,
    ObsArray,
    Phases,
    StateTree,
    StepRow,
    VecEnv,
    read_branch,
    read_tensor,
)
from fastac.kernels import Op, Program, join_calls, prepare_copy
from fastac.rollout.buffer import Rollout

# One rollout in so many is stepped and timed row by row, to tell the environments' time from the actor's.
_TIMED_EVERY = 50


@runtime_checkable
class CompiledActor(Protocol):
    """An actor that can act in a program."""

    def begin_program(self) -> None:
        """Do the part of `begin` that needs Python: draw the noise, copy statistics."""

    def prepare_rollout(self) -> tuple[list[Op], list[list[Op]], list[Op]] | None:
        """Return the calls of a rollout, or None if they change.

        Returns:
            The other part of `begin`, `act` of every row, and `value` of the row after the last.
        """


@runtime_checkable
class CompiledEnvs(Protocol):
    """Environments that can be stepped by a program."""

    def prepare_step(self, action: ActionArray, row: StepRow) -> Program:
        """Return the program that does the same as `step(action, row)` on these arrays, which must not move."""

    def check(self) -> None:
        """Check the steps since the last call; a program cannot raise.

        Raises:
            EnvFailure: an environment failed.
        """


class Collector:
    """Fills a rollout from environments and an actor; carries the last observation over to the next rollout.

    Where the environments and the whole network are compiled, a rollout that goes on from the last one is a single
    program: no Python runs between its steps. It makes the same calls as step by step, so it gives the same bits.

    Attributes:
        rollout: the storage, overwritten by every `collect`.
    """

    def __init__(self, envs: VecEnv, actor: Actor, rollout: Rollout) -> None:
        """Store the parts; `actor` must be bound to `rollout`."""
        self.envs, self.rollout = envs, rollout
        self._actor = actor
        self._rows = rollout.step_rows()
        self._action = list(rollout.action.numpy())  # T views [N, ...]
        self._terminated, self._truncated = rollout.terminated.numpy(), rollout.truncated.numpy()
        self._last = 0  # the row that the next rollout starts from
        self._fresh = True
        self._extras: list[Extras] = []  # one entry per step of this rollout that ended an episode
        self._program: Program | None = None
        self._begin_program: Callable[[], None] = lambda: None
        self._check: Callable[[], None] = lambda: None  # whether a step of the program failed
        self._carries: dict[int, list[Op]] = {}  # the calls that copy a row to row 0, by row
        self._rollouts = 0
        self._env_share = 0.5  # of a rollout's time

    def collect(self, phases: Phases) -> Rollout:
        """Take `num_steps` steps in every env, continuing from the last rollout.

        Raises:
            EnvFailure: an environment failed; the message names the row.
        """
        if self._rollouts == 0:
            self._program = self._prepare()
        goes_on = not self._fresh and self._last == self.rollout.num_steps
        if self._program is not None and goes_on and self._rollouts % _TIMED_EVERY:
            self._run(self._program, phases)
        else:
            self._step_all(phases)
        self._rollouts += 1
        return self.rollout

    def _prepare(self) -> Program | None:
        """Return a rollout as one program, or None if a part of it is not compiled."""
        actor, envs = self._actor, self.envs
        if not isinstance(actor, CompiledActor) or not isinstance(envs, CompiledEnvs):
            return None
        parts = actor.prepare_rollout()
        if parts is None:
            return None
        weights, acts, value = parts
        ops = [*self._prepare_carry(self.rollout.num_steps), *weights]
        for act, action, row in zip(acts, self._action, self._rows, strict=True):
            ops += [*act, envs.prepare_step(action, row)]
        first, *others = join_calls([*ops, *value])
        self._begin_program, self._check = actor.begin_program, envs.check
        return first if isinstance(first, Program) and not others else None

    def _prepare_carry(self, t: int) -> list[Op]:
        """Return the calls that copy row t to row 0."""
        start = self.rollout.start
        return [self.rollout.observations.prepare_carry(t), prepare_copy(start[t], start[0])]

    def _run(self, program: Program, phases: Phases) -> None:
        before = perf_counter()
        self._begin_program()
        between = perf_counter()
        program()
        spent_s = perf_counter() - between
        self._check()
        phases.env_s += self._env_share * spent_s
        phases.act_s += (1.0 - self._env_share) * spent_s + between - before

    def _step_all(self, phases: Phases) -> None:
        env_s, act_s = phases.env_s, phases.act_s
        self._begin(phases)
        for t in range(self.rollout.num_steps):
            self._step(t, phases)
        self._end(self.rollout.num_steps, phases)
        env_s, act_s = phases.env_s - env_s, phases.act_s - act_s
        self._env_share = env_s / (env_s + act_s)

    def collect_episodes(self, phases: Phases) -> Rollout:
        """Collect one whole episode in every env, from a reset; rows after its end are not valid.

        Episodes longer than `num_steps` are cut there and bootstrap from the value of the next row.
        """
        self.restart_episodes()
        self._begin(phases)
        finished = np.zeros(self.rollout.num_envs, dtype=np.bool_)
        for t, row in enumerate(self._rows):
            self._step(t, phases)
            for values in self.envs.extras.values():
                values[finished] = np.nan
            for rows in (row.valid, row.reward, row.terminated, row.truncated, row.life_lost):
                rows[finished] = 0
            finished |= (row.terminated & ~row.life_lost) | row.truncated
            if finished.all():
                break
        self._end(t + 1, phases)
        return self.rollout.first(t + 1)

    def take_extras(self) -> Extras:
        """Return the values that episodes have reported in `info` since the last call, ordered by time, then env."""
        if not self._extras:
            return {}
        found: dict[str, list[NDArray[np.float64]]] = {}
        for reported in self._extras:
            for key, values in reported.items():
                found.setdefault(key, []).append(values[~np.isnan(values)])
        self._extras = []
        return {key: np.concatenate(values) for key, values in found.items()}

    def _begin(self, phases: Phases) -> None:
        """Fill row 0: reset, or copy the last row of the previous rollout."""
        before = perf_counter()
        rollout = self.rollout
        if self._fresh:
            rollout.observations.forget()
            self.envs.reset(rollout.obs[0].numpy(), rollout.start[0].numpy())
            self._actor.forget()
            self._fresh = False
        elif self._last:
            if self._last not in self._carries:
                self._carries[self._last] = self._prepare_carry(self._last)
            for op in self._carries[self._last]:
                op()
        rollout.final_value.zero_()
        rollout.out_of_band.zero_()
        between = perf_counter()
        self._actor.begin()
        phases.env_s += between - before
        phases.act_s += perf_counter() - between

    def _step(self, t: int, phases: Phases) -> None:
        before = perf_counter()
        self._actor.act(t)
        between = perf_counter()
        final_obs = self.envs.step(self._action[t], self._rows[t])
        phases.act_s += between - before
        phases.env_s += perf_counter() - between
        if self.envs.extras:
            self._extras.append(self.envs.extras)
        if final_obs is not None:
            self._bootstrap(t, final_obs)

    def _end(self, num_steps: int, phases: Phases) -> None:
        """Compute the value of the row after the last step, without acting there."""
        before = perf_counter()
        self._actor.value(num_steps)
        self._last = num_steps
        phases.act_s += perf_counter() - before

    def _bootstrap(self, t: int, final_obs: ObsArray) -> None:
        """Compute the values of final observations returned separately, for episodes that were truncated."""
        cut = self._truncated[t] & ~self._terminated[t]  # [N]
        if not cut.any():
            return
        broken = cut & ~np.isfinite(final_obs).reshape(len(cut), -1).all(axis=1)
        if broken.any():
            raise EnvFailure(f"env {np.flatnonzero(broken)[0]} returned a final observation that is not finite")
        value = self._actor.value_of(memory.copy_of(final_obs, self.rollout.obs.dtype))  # [N]
        mask = torch.from_numpy(cut)
        self.rollout.final_value[t] = torch.where(mask, value, 0.0)
        self.rollout.out_of_band[t] = mask

    def get_state(self) -> StateTree:
        """Return the next row's observation and start, and the actor's state."""
        return {
            **self.rollout.observations.get_state(self._last),
            "start": self.rollout.start[self._last].clone(),
            "actor": self._actor.get_state(),
        }

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`; the environments are restored separately."""
        self._last = 0
        self.rollout.observations.set_state(state)
        self.rollout.start[0] = read_tensor(state, "start", self.rollout.start[0])
        self._actor.set_state(read_branch(state, "actor"))
        self._fresh = False

    def restart_episodes(self) -> None:
        """Begin the next rollout of every env with a reset."""
        self._fresh = True
