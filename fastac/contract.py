"""The types and protocols that cross rooms, and the time contract.

The time contract
-----------------
Row ``t`` of a rollout: ``obs[t]`` was seen, ``action[t]`` was chosen on it, and ``reward[t]``,
``terminated[t]`` and ``truncated[t]`` were caused by it. Observations, values and ``start`` have
``T+1`` rows, everything else has ``T``. All arrays are time first, ``[T, N, ...]``.

Gymnasium's NEXT_STEP autoreset is the native mode: the observation after a done IS the final
observation, and the next step ignores its action and returns the reset observation, reward 0 and no
flags. So ``value[t+1]`` already is V(final observation), and truncation bootstraps by itself::

    done[t]   = terminated[t] or truncated[t]
    valid[t]  = the step of row t was a real transition (NEXT_STEP: not done[t-1])
    start[t]  = obs[t] is the first observation of an episode (NEXT_STEP: not valid[t-1])
    delta[t]  = reward[t] + gamma * (1 - terminated[t]) * value[t+1] - value[t]
    adv[t]    = delta[t] + gamma * lam * (1 - done[t]) * adv[t+1]
    return[t] = adv[t] + value[t]

Rows with ``valid = 0`` carry no information: they are left out of every loss, of the advantage
statistics, of explained variance, of episode lengths and of the step count. If both flags are set,
termination wins. A recurrent state is reset where ``start`` is set, which is one row later than
intuition says: row t+1 still needs the old state to value the final observation.

Environments in another autoreset mode return the final observation out of band (see `VecEnv.step`);
nothing outside ``envs/`` knows of modes.

Shapes: ``T`` steps per rollout, ``N`` envs, ``B = T*N``, ``A`` action size, ``S`` recurrent state.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias, overload

import numpy as np
import torch
from gymnasium.spaces import Space
from numpy.typing import NDArray
from torch import Tensor

# An observation is any dtype its space says; an action is int64 (discrete) or float32 (Box).
ObsArray: TypeAlias = NDArray[np.generic]
ActionArray: TypeAlias = NDArray[np.generic]
FloatArray: TypeAlias = NDArray[np.float32]
BoolArray: TypeAlias = NDArray[np.bool_]

# What can be saved and restored exactly: nested string-keyed mappings whose leaves are arrays (they
# go to safetensors) or JSON scalars (Python ints keep all their bits, so a PCG64 state fits).
StateLeaf: TypeAlias = NDArray[np.generic] | Tensor | int | float | str | bool | None
StateTree: TypeAlias = Mapping[str, "StateTree | StateLeaf"]


# Numbers that ended episodes gave of themselves, such as is_success, by their key in `info`.
Extras: TypeAlias = Mapping[str, NDArray[np.float64]]
MAX_EXTRAS = 16  # keys of a run
EXTRAS_WINDOW = 100  # episodes that means are over


class EnvFailure(RuntimeError):
    """An environment raised, hung, or returned something its spaces do not allow.

    The message is one sentence that names the env index and what was wrong; the caller adds the
    step. The command line prints it and exits with 2.
    """


class WorkerFailure(RuntimeError):
    """A worker process raised, died or hung; the message names the worker, the cause is its traceback."""


class NonFiniteError(RuntimeError):
    """A loss term or the gradient norm is NaN or infinite; the message names update and term."""


@dataclass(frozen=True, slots=True)
class StepRow:
    """Views of the rollout that one environment step writes in place.

    Attributes:
        obs: `[N, *row_shape]`, row t+1: the observation that follows, or the newest of the frames that it is made of.
        start: `[N]`, row t+1: whether that observation is the first of an episode.
        reward: `[N]` float32, row t, raw (neither clipped nor normalised); 0 where not valid.
        terminated: `[N]`, row t; False where not valid.
        truncated: `[N]`, row t; False where not valid. Both flags set means terminated.
        valid: `[N]`, row t: whether the step used its action.
        life_lost: `[N]`, row t: whether it is terminated only because a life was lost. The game goes on, the
            next row is a transition like any other and no start. Environments without lives leave it alone.
    """

    obs: ObsArray
    start: BoolArray
    reward: FloatArray
    terminated: BoolArray
    truncated: BoolArray
    valid: BoolArray
    life_lost: BoolArray


class HasSpaces(Protocol):
    """What a network is built for: environments, or what is known of them."""

    @property
    def single_observation_space(self) -> Space[NDArray[np.generic]]:
        """Of one environment, as it is learned in."""

    @property
    def single_action_space(self) -> Space[NDArray[np.generic]]:
        """Of one environment, as it is learned in."""


class VecEnv(Protocol):
    """N environments behind the one step contract.

    Where `frame_stack` is S > 1, a row is one frame and an observation is a stack of S `[S, *row_shape]`, the
    newest last; before the first frame of an episode (where `start` is set) there is zero.
    """

    num_envs: int
    frame_skip: int  # emulator frames per step; 1 where there is no such thing
    frame_stack: int  # rows that make an observation; 1 where a row is one
    max_episode_steps: int | None  # after so many steps an episode is cut; None: the environment names no limit
    single_observation_space: Space[NDArray[np.generic]]
    single_action_space: Space[NDArray[np.generic]]
    description: str  # for the log, e.g. "native (CartPoleVectorEnv)"
    cautions: tuple[str, ...]  # sentences for the log: what does not do here what it seems to do

    @property
    def extras(self) -> Extras:
        """What the episodes that ended in the last `step` gave: `[N]` each, NaN where an env gave none.

        Empty where nothing ended, and with most environments always. The next step makes new arrays.
        """

    def reset(self, obs: ObsArray, start: BoolArray) -> None:
        """Begin an episode in every env; write first rows `[N, *row_shape]` and True.

        The first call seeds every env's stream; later calls go on with the streams.
        """

    def reseed(self, seed: np.random.SeedSequence) -> None:
        """Let the next `reset` seed every env's stream from `seed`, as the first one does."""

    def rest(self, mask: BoolArray) -> None:
        """Leave envs `[N]` out of every `step` until the next call or `reset`, where that saves time.

        The rows of one that rests are not valid and hold no reward and no flags. Where all envs are stepped at once
        nothing changes: they are stepped, and who calls has no use for their rows.
        """

    def step(self, action: ActionArray, row: StepRow) -> ObsArray | None:
        """Step all envs with `action` `[N, *action_shape]`, unclipped, and write `row`.

        Returns None where the next row holds the final observation of an episode that ended
        (NEXT_STEP, or nothing ended). Otherwise an array `[N, *obs_shape]` whose rows at done
        envs are their final observations, `row.obs` being the reset ones there already.

        Raises:
            EnvFailure: an env raised, or returned a wrong shape.
        """

    def get_state(self) -> StateTree | None:
        """Everything needed to continue bit for bit, or None where it cannot be captured."""

    def set_state(self, state: StateTree) -> None:
        """Continue from a `get_state` of the same kind of envs."""

    def close(self) -> None:
        """Free the environments' processes and windows; safe to call twice."""


class Act(NamedTuple):
    """What a policy says at one row."""

    action: Tensor  # [N, *action_shape], unclipped
    log_prob: Tensor  # [N]
    value: Tensor  # [N]
    state: Tensor  # [N, S], the recurrent state after this row


class Policy(Protocol):
    """What collecting, learning and evaluating need of a model."""

    def initial_state(self, num_envs: int) -> Tensor:
        """Return the zero recurrent state `[N, S]`; S is 0 for the identity core."""

    def draw_noise(self, leading: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw the randomness that `act` turns into actions: `[*leading, *noise_shape]`."""

    def act(self, obs: Tensor, state: Tensor, start: Tensor, noise: Tensor) -> Act:
        """Sample actions for `obs` `[N, ...]`."""

    def value(self, obs: Tensor, state: Tensor, start: Tensor) -> Tensor:
        """Return the values `[N]` of `obs` `[N, ...]`."""

    def greedy(self, obs: Tensor, state: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return the most likely actions `[N, ...]` and the next recurrent state."""


class Actor(Protocol):
    """Acts at the rows of one rollout, which it is bound to and writes in place."""

    def begin(self) -> None:
        """Prepare for row 0: note the memory that it starts with, draw the rollout's randomness."""

    def act(self, t: int) -> None:
        """Write row t of actions, log-probs and values, from row t of observations."""

    def value(self, t: int) -> None:
        """Write row t of values and commit to nothing: the row after the last step."""

    def value_of(self, obs: Tensor) -> Tensor:
        """Return the values `[N]` of `obs` `[N, ...]`, which go on from the last row acted on; on the CPU."""

    def forget(self) -> None:
        """Begin every env's next row without memory."""

    def get_state(self) -> StateTree:
        """The memory and the random stream."""

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""


class Trainable(Protocol):
    """What learning needs of a model."""

    def __call__(self, obs: Tensor, state: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return distribution parameters `[..., P]`, values `[...]` and the next state, with gradients."""

    def zero_grad(self, set_to_none: bool) -> None:
        """Begin a new gradient; in the same memory, unless `set_to_none`."""


# Joins two statistics of disjoint rows into one of all of them; both are float64 vectors of one layout.
Merge: TypeAlias = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


class Group(Protocol):
    """The workers that train one model together; those in step make the same calls in the same order."""

    size: int  # of the workers in step; those that wait for nobody are one each
    rank: int

    def gather(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the array of every worker in step, `[size, *shape]`, by rank; valid until the next call."""

    def merge_statistics(
        self, name: str, known: NDArray[np.float64], part: NDArray[np.float64], merge: Merge
    ) -> NDArray[np.float64]:
        """Return statistics of all rows that any worker has seen.

        Args:
            name: which statistics, "obs" or "reward".
            known: those that this worker knew before.
            part: those of the rows that it has just seen.
            merge: joins two.
        """


class Alone:
    """The group of one."""

    size, rank = 1, 0

    def gather(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return `array[None]`, a view."""
        return array[None]

    def merge_statistics(
        self, name: str, known: NDArray[np.float64], part: NDArray[np.float64], merge: Merge
    ) -> NDArray[np.float64]:
        """See `Group`."""
        return merge(known, part)


class ObsStatistics(Protocol):
    """Running statistics of observations, taken in between rollouts."""

    def update(self, obs: Tensor, valid: Tensor, group: Group) -> None:
        """Take in `obs` `[T, N, *obs_shape]` where `valid` `[T, N]`, and what the other workers take in."""


class RewardScaling(Protocol):
    """From raw rewards to what is learned from."""

    def __call__(self, reward: Tensor, valid: Tensor, done: Tensor, group: Group) -> Tensor:
        """Take in a rollout's rewards `[T, N]`, and what the other workers take in; return them scaled."""

    def restart_episodes(self) -> None:
        """Forget the episodes so far: every env begins a new one."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One finished episode, in raw reward."""

    return_: float
    length: int


class Episodes(Sequence[Episode]):
    """Finished episodes; two arrays, because an object per episode would cost more than its learning.

    Attributes:
        return_: `[E]` float64, raw.
        length: `[E]` int64, in env steps.
        extras: what they gave in `info`, each of its own length as not every episode need give it. Of workers beside
            the first process there are at most the latest 100. Slices have none.
    """

    __slots__ = ("extras", "length", "return_")

    def __init__(self, return_: NDArray[np.float64], length: NDArray[np.int64], extras: Extras | None = None) -> None:
        """Take the arrays."""
        self.return_, self.length, self.extras = return_, length, extras or {}

    def __len__(self) -> int:
        """E."""
        return len(self.return_)

    @overload
    def __getitem__(self, index: int) -> Episode: ...
    @overload
    def __getitem__(self, index: slice) -> Episodes: ...
    def __getitem__(self, index: int | slice) -> Episode | Episodes:
        """Return one episode, or some."""
        if isinstance(index, slice):
            return Episodes(self.return_[index], self.length[index])
        return Episode(float(self.return_[index]), int(self.length[index]))

    def __iter__(self) -> Iterator[Episode]:
        """Yield them in order."""
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Compare episode by episode, with any sequence of them; so these have no hash, as arrays change."""
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        """List them."""
        return f"Episodes({list(self)})"


@dataclass(slots=True)
class Phases:
    """Where training wall-clock went, in seconds; `other_s` is what the rest leaves."""

    env_s: float = 0.0
    act_s: float = 0.0
    advantage_s: float = 0.0
    update_s: float = 0.0
    other_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """What was done since the last report: an iteration (collect + learn), with a3c some of every worker.

    Counters are totals since the run began.

    Attributes:
        iteration: iterations done, this one included.
        env_steps: valid agent transitions.
        frames: env_steps times the frame skip.
        updates: optimiser steps.
        episodes: finished episodes.
        finished: the episodes that ended in this iteration.
        train_wall_s: training wall-clock, evaluation and start-up excluded.
        phases: that clock by phase.
        losses: means over this iteration's updates: `policy_loss`, `value_loss`, `entropy`,
            `explained_variance`, `grad_norm`, `learning_rate`, and for PPO `approx_kl`, `clip_fraction`,
            `clip_range` and `loss`, the whole objective.
    """

    iteration: int
    env_steps: int
    frames: int
    updates: int
    episodes: int
    finished: Episodes
    train_wall_s: float
    phases: Phases
    losses: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asynchrony:
    """How far workers were from waiting for each other.

    Attributes:
        staleness: `[S]`, how many updates found so many updates by others, 0 to S-1 or more, since their worker
            had copied the parameters.
        mean_staleness: of all updates.
        max_staleness: of all updates.
        updates: `[K]`, by worker.
        restarts: how often a lost worker was started again.
    """

    staleness: NDArray[np.int64]
    mean_staleness: float
    max_staleness: int
    updates: NDArray[np.int64]
    restarts: int


class Trainer(Protocol):
    """Runs workers and reports on them.

    Attributes:
        iteration: iterations so far, of all workers.
        env_steps: valid transitions so far, of all workers.
    """

    iteration: int
    env_steps: int

    def run(self) -> Generator[Report, None, None]:
        """Yield reports until the budget of environment steps is spent."""

    def halt(self) -> Report | None:
        """Stop training; return what was done since the last report, or None where nothing was."""


def read_branch(state: StateTree, key: str) -> StateTree:
    """Read a nested mapping of a saved state.

    Raises:
        ValueError: it is not there, or something else.
    """
    leaf = state.get(key)
    if not isinstance(leaf, Mapping):
        raise ValueError(f"{key!r} in the saved state is {_kind_of(leaf)}, expected a mapping")
    return leaf


def read_tensor(state: StateTree, key: str, like: Tensor | None = None) -> Tensor:
    """Read an array of a saved state as a tensor in memory of torch's own, which begins at a cache line.

    Where `like` is given it has to have its shape and dtype.

    Raises:
        ValueError: it is not there, or something else.
    """
    leaf = state.get(key)
    found = torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf
    if not isinstance(found, Tensor):
        raise ValueError(f"{key!r} in the saved state is {_kind_of(leaf)}, expected an array")
    if like is not None and (found.shape, found.dtype) != (like.shape, like.dtype):
        raise ValueError(f"{key!r} in the saved state is {_kind_of(leaf)}, expected {_kind_of(like)}")
    return found.clone()


def read_array(state: StateTree, key: str, like: NDArray[np.generic]) -> NDArray[np.generic]:
    """Read an array of a saved state that has to have the shape and dtype of `like`.

    Raises:
        ValueError: it is not there, or something else.
    """
    leaf = state.get(key)
    if not isinstance(leaf, np.ndarray) or (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
        raise ValueError(f"{key!r} in the saved state is {_kind_of(leaf)}, expected {_kind_of(like)}")
    return leaf


def read_number(state: StateTree, key: str) -> int | float:
    """Read a finite number of a saved state.

    Raises:
        ValueError: it is not there, or something else.
    """
    leaf = state.get(key)
    if isinstance(leaf, bool) or not isinstance(leaf, int | float) or not -_MOST < leaf < _MOST:
        raise ValueError(f"{key!r} in the saved state is {_kind_of(leaf)}, expected a finite number")
    return leaf


def read_count(state: StateTree, key: str) -> int:
    """Read a whole number from 0 to 2**63 - 1 of a saved state.

    Raises:
        ValueError: it is not there, or something else.
    """
    leaf = state.get(key)
    if isinstance(leaf, bool) or not isinstance(leaf, int) or not 0 <= leaf < 2**63:
        raise ValueError(f"{key!r} in the saved state is {_kind_of(leaf)}, expected a whole number of at least 0")
    return leaf


def read_amount(state: StateTree, key: str) -> float:
    """Read a finite number of at least 0, such as seconds, of a saved state.

    Raises:
        ValueError: it is not there, negative, or something else.
    """
    amount = read_number(state, key)
    if amount < 0.0:
        raise ValueError(f"{key!r} in the saved state is {amount}, expected at least 0")
    return float(amount)


_MOST = 1e300  # of a number that is still finite when it is multiplied or squared a little


def _kind_of(leaf: StateTree | StateLeaf) -> str:
    """Say what a leaf is, in a few words whatever it is."""
    if isinstance(leaf, np.ndarray | Tensor):
        return f"an array {list(leaf.shape)} of {leaf.dtype}"
    if leaf is None or isinstance(leaf, int | float | str):
        return f"{leaf!r:.60}" if not isinstance(leaf, int) or abs(leaf) < 10**20 else "a number of more than 20 digits"
    return "a mapping"
