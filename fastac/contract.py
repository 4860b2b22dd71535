"""Types and protocols shared between packages, and the time contract.

The time contract
-----------------
Row ``t`` of a rollout: the agent saw ``obs[t]`` and chose ``action[t]``, which caused ``reward[t]``,
``terminated[t]`` and ``truncated[t]``. Observations, values and ``start`` have ``T+1`` rows, everything
else has ``T``. All arrays are time first, ``[T, N, ...]``.

The native mode is Gymnasium's NEXT_STEP autoreset: the observation after a done is the final observation.
The next step ignores its action and returns the reset observation, reward 0 and no flags. So
``value[t+1]`` is already V(final observation), and truncation needs no special bootstrap::

    done[t]   = terminated[t] or truncated[t]
    valid[t]  = the step of row t was a real transition (NEXT_STEP: not done[t-1])
    start[t]  = obs[t] is the first observation of an episode (NEXT_STEP: not valid[t-1])
    delta[t]  = reward[t] + gamma * (1 - terminated[t]) * value[t+1] - value[t]
    adv[t]    = delta[t] + gamma * lam * (1 - done[t]) * adv[t+1]
    return[t] = adv[t] + value[t]

Rows with ``valid = 0`` carry no information. They are excluded from every loss, the advantage statistics,
explained variance, episode lengths and the step count. If both flags are set, termination wins. The
recurrent state is reset at ``start``, not right after ``done``: row t+1 still needs it to value the final
observation.

Environments in another autoreset mode return the final observation separately (see `VecEnv.step`); no code
outside ``envs/`` knows about autoreset modes.

Shapes: ``T`` steps per rollout, ``N`` envs, ``B = T*N``, ``A`` action size, ``S`` recurrent state.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple, Protocol, TypeAlias, overload

import numpy as np
import torch
from gymnasium.spaces import Space
from numpy.typing import NDArray
from torch import Tensor

# Observations have the dtype of their space. Actions are int64 (discrete) or float32 (Box).
ObsArray: TypeAlias = NDArray[np.generic]
ActionArray: TypeAlias = NDArray[np.generic]
FloatArray: TypeAlias = NDArray[np.float32]
BoolArray: TypeAlias = NDArray[np.bool_]

# State that can be saved and restored exactly: nested string-keyed mappings. Leaves are arrays (stored with
# safetensors) or JSON scalars (Python ints keep all bits, so a PCG64 state fits).
StateLeaf: TypeAlias = NDArray[np.generic] | Tensor | int | float | str | bool | None
StateTree: TypeAlias = Mapping[str, "StateTree | StateLeaf"]


# Numbers reported in `info` by finished episodes, such as is_success, by key.
Extras: TypeAlias = Mapping[str, NDArray[np.float64]]
MAX_EXTRAS = 16  # most keys per run
EXTRAS_WINDOW = 100  # number of episodes that means are taken over


class EnvFailure(RuntimeError):
    """An environment raised, hung, or returned something its spaces do not allow.

    The message is one sentence that names the env index and the error; the caller adds the step. The
    command line prints it and exits with 2.
    """


class WorkerFailure(RuntimeError):
    """A worker process raised, died or hung; the message names the worker, the cause is its traceback."""


class NonFiniteError(RuntimeError):
    """A loss term or the gradient norm is NaN or infinite; the message names update and term."""


@dataclass(frozen=True, slots=True)
class StepRow:
    """Views of the rollout that one environment step writes in place.

    Attributes:
        obs: `[N, *row_shape]`, row t+1: the next observation, or its newest frame if frames are stacked.
        start: `[N]`, row t+1: whether that observation is the first of an episode.
        reward: `[N]` float32, row t, raw (neither clipped nor normalised); 0 where not valid.
        terminated: `[N]`, row t; False where not valid.
        truncated: `[N]`, row t; False where not valid. Both flags set means terminated.
        valid: `[N]`, row t: whether the step used its action.
        life_lost: `[N]`, row t: whether it is terminated only because a life was lost. The game continues: the
            next row is an ordinary transition and not a start. Environments without lives do not write it.
    """

    obs: ObsArray
    start: BoolArray
    reward: FloatArray
    terminated: BoolArray
    truncated: BoolArray
    valid: BoolArray
    life_lost: BoolArray


class HasSpaces(Protocol):
    """The spaces that a network is built for: those of environments, or a record of them."""

    @property
    def single_observation_space(self) -> Space[NDArray[np.generic]]:
        """Observation space of one environment, after all wrappers."""

    @property
    def single_action_space(self) -> Space[NDArray[np.generic]]:
        """Action space of one environment, after all wrappers."""


class VecEnv(Protocol):
    """N environments behind one step contract.

    If `frame_stack` S is more than 1, a row is one frame and an observation is a stack of S frames
    `[S, *row_shape]`, newest last. Frames before the first frame of an episode (at `start`) are zero.
    """

    num_envs: int
    frame_skip: int  # emulator frames per step; 1 for environments without frame skip
    frame_stack: int  # rows per observation; 1 without frame stacking
    max_episode_steps: int | None  # time limit in steps; None if the environment declares no limit
    single_observation_space: Space[NDArray[np.generic]]
    single_action_space: Space[NDArray[np.generic]]
    description: str  # for the log, e.g. "native (CartPoleVectorEnv)"
    cautions: tuple[str, ...]  # warnings for the log about parts of the envs that work differently than expected

    @property
    def extras(self) -> Extras:
        """Values reported by the episodes that ended in the last `step`: `[N]` each, NaN for envs that reported none.

        Empty if no episode ended, and always empty for most environments. The next step makes new arrays.
        """

    def reset(self, obs: ObsArray, start: BoolArray) -> None:
        """Begin an episode in every env; write the first rows `[N, *row_shape]` and True.

        The first call seeds every env's random stream; later calls continue the streams.
        """

    def reseed(self, seed: np.random.SeedSequence) -> None:
        """Make the next `reset` seed every env's stream from `seed`, as the first `reset` does."""

    def rest(self, mask: BoolArray) -> None:
        """Exclude the envs `[N]` in `mask` from `step` until the next call or `reset`, if that saves time.

        Rows of a resting env are not valid and have no reward and no flags. Implementations that step all envs
        in one call ignore this: they step the resting envs too, and the caller must ignore their rows.
        """

    def step(self, action: ActionArray, row: StepRow) -> ObsArray | None:
        """Step all envs with `action` `[N, *action_shape]`, unclipped, and write `row`.

        Returns None if the next row holds the final observation of each ended episode (NEXT_STEP), or if
        no episode ended. Otherwise an array `[N, *obs_shape]` that holds the final observations in the rows
        of done envs; `row.obs` then already holds the reset observations.

        Raises:
            EnvFailure: an env raised, or returned a wrong shape.
        """

    def get_state(self) -> StateTree | None:
        """Return all state needed to continue bit for bit, or None if it cannot be captured."""

    def set_state(self, state: StateTree) -> None:
        """Continue from a `get_state` of envs of the same kind."""

    def close(self) -> None:
        """Free the environments' processes and windows; safe to call twice."""


class Act(NamedTuple):
    """Output of a policy for one row."""

    action: Tensor  # [N, *action_shape], unclipped
    log_prob: Tensor  # [N]
    value: Tensor  # [N]
    state: Tensor  # [N, S], the recurrent state after this row


class Policy(Protocol):
    """The model interface for collecting, learning and evaluating."""

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
    """Acts on the rows of one rollout, which it is bound to and writes in place."""

    def begin(self) -> None:
        """Prepare for row 0: record the initial recurrent state, draw the rollout's randomness."""

    def act(self, t: int) -> None:
        """Write row t of actions, log-probs and values, from row t of observations."""

    def value(self, t: int) -> None:
        """Write row t of values without advancing the recurrent state; used for the row after the last step."""

    def value_of(self, obs: Tensor) -> Tensor:
        """Return the values `[N]` of `obs` `[N, ...]`, given the state after the last acted row; on the CPU."""

    def forget(self) -> None:
        """Reset the recurrent state of every env before its next row."""

    def get_state(self) -> StateTree:
        """Return the recurrent state and the random stream."""

    def set_state(self, state: StateTree) -> None:
        """Continue from `get_state`."""


class Trainable(Protocol):
    """The model interface for learning."""

    def __call__(self, obs: Tensor, state: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return distribution parameters `[..., P]`, values `[...]` and the next state, with gradients."""

    def zero_grad(self, set_to_none: bool) -> None:
        """Zero the gradients in place, or drop them if `set_to_none`."""


# Merges two statistics of disjoint rows into one; both are float64 vectors with the same layout.
Merge: TypeAlias = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


class Group(Protocol):
    """The S shards that train one model together, L of them in this worker; A3C's workers have one each.

    Workers in step make the same calls in the same order.
    """

    size: int  # number of in-step workers; always 1 for A3C
    rank: int
    shards: range  # this worker's; they follow those of the workers before it

    def gather(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the rows of all shards `[S, *shape]`, given this worker's `[L, *shape]`; valid until the next call."""

    def prepare_gather(self, array: Tensor) -> tuple[list[Callable[[], object]], Tensor]:
        """Return the calls that gather rows that will not move, and where `[S, *shape]` is after them."""

    def wait(self) -> None:
        """Return when all workers in step have got here."""

    def end_iteration(self) -> None:
        """Do what is due before the run may be saved, evaluated or ended, if that follows; most groups have nothing."""

    def merge_statistics(
        self, name: str, known: NDArray[np.float64], parts: NDArray[np.float64], merge: Merge
    ) -> NDArray[np.float64]:
        """Return statistics of all rows of any shard, merged in the order of the shards.

        Args:
            name: which statistics, "obs" or "reward".
            known: this worker's previous statistics.
            parts: `[L, D]`, statistics of the new rows of this worker's shards.
            merge: merges two statistics.
        """


class Alone:
    """The group of a single worker, which has all shards."""

    size, rank = 1, 0

    def __init__(self, num_shards: int = 1) -> None:
        """Hold S = `num_shards`."""
        self.shards = range(num_shards)

    def gather(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return `array`."""
        return array

    def prepare_gather(self, array: Tensor) -> tuple[list[Callable[[], object]], Tensor]:
        """Return no calls, and `array`."""
        return [], array

    def wait(self) -> None:
        """Do nothing."""

    def end_iteration(self) -> None:
        """Do nothing: a single worker has nothing to settle."""

    def merge_statistics(
        self, name: str, known: NDArray[np.float64], parts: NDArray[np.float64], merge: Merge
    ) -> NDArray[np.float64]:
        """See `Group`."""
        return reduce(merge, parts, known)


@dataclass(frozen=True, slots=True)
class Episode:
    """One finished episode; the return is of raw rewards."""

    return_: float
    length: int


class Episodes(Sequence[Episode]):
    """Finished episodes as two arrays: an object per episode would cost more than learning from it.

    Attributes:
        return_: `[E]` float64, raw.
        length: `[E]` int64, in env steps.
        extras: values that episodes reported in `info`. Lengths may differ, since not every episode reports every
            key. Worker processes other than the first send at most the latest 100. Slices have none.
    """

    __slots__ = ("extras", "length", "return_")

    def __init__(self, return_: NDArray[np.float64], length: NDArray[np.int64], extras: Extras | None = None) -> None:
        """Store the arrays."""
        self.return_, self.length, self.extras = return_, length, extras or {}

    def __len__(self) -> int:
        """Return E."""
        return len(self.return_)

    @overload
    def __getitem__(self, index: int) -> Episode: ...
    @overload
    def __getitem__(self, index: slice) -> Episodes: ...
    def __getitem__(self, index: int | slice) -> Episode | Episodes:
        """Return one episode, or the episodes of a slice."""
        if isinstance(index, slice):
            return Episodes(self.return_[index], self.length[index])
        return Episode(float(self.return_[index]), int(self.length[index]))

    def __iter__(self) -> Iterator[Episode]:
        """Yield the episodes in order."""
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        """Compare episode by episode with any sequence of episodes. Not hashable, since the arrays are mutable."""
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        """List the episodes."""
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
    """Progress since the last report: one iteration (collect + learn); for A3C, some iterations of every worker.

    Counters are totals since the run began.

    Attributes:
        iteration: iterations done, this one included.
        env_steps: valid agent transitions.
        frames: env_steps times the frame skip.
        updates: optimiser steps.
        episodes: finished episodes.
        finished: the episodes that ended since the last report.
        train_wall_s: training wall-clock, evaluation and start-up excluded.
        phases: `train_wall_s` by phase.
        losses: means over the updates since the last report: `policy_loss`, `value_loss`, `entropy`,
            `explained_variance`, `grad_norm`, `learning_rate`, and for PPO `approx_kl`, `clip_fraction`,
            `clip_range` and `loss`, the whole objective; with a target KL also `epochs`, those of the last rollout.
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
    """How asynchronous the workers' updates were.

    Attributes:
        staleness: `[S]`, histogram: `staleness[s]` is the number of updates computed from parameters that were s
            updates old; the last bin also counts older ones.
        mean_staleness: over all updates.
        max_staleness: over all updates.
        updates: `[K]`, by worker.
        restarts: how often a lost worker was restarted.
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
        """Stop training; return the progress since the last report, or None if there was none."""


def read_branch(state: StateTree, key: str) -> StateTree:
    """Read a nested mapping from a saved state.

    Raises:
        ValueError: the key is missing or its value is not a mapping.
    """
    leaf = state.get(key)
    if not isinstance(leaf, Mapping):
        raise ValueError(f"{key!r} in the saved state is {_kind_of(leaf)}, expected a mapping")
    return leaf


def read_tensor(state: StateTree, key: str, like: Tensor | None = None) -> Tensor:
    """Read an array from a saved state into a new torch tensor, whose memory begins at a cache line.

    If `like` is given, shape and dtype must match it.

    Raises:
        ValueError: the key is missing, or its value is not such an array.
    """
    leaf = state.get(key)
    found = torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf
    if not isinstance(found, Tensor):
        raise ValueError(f"{key!r} in the saved state is {_kind_of(leaf)}, expected an array")
    if like is not None and (found.shape, found.dtype) != (like.shape, like.dtype):
        raise ValueError(f"{key!r} in the saved state is {_kind_of(leaf)}, expected {_kind_of(like)}")
    return found.clone()


def read_array(state: StateTree, key: str, like: NDArray[np.generic]) -> NDArray[np.generic]:
    """Read an array from a saved state; shape and dtype must match `like`.

    Raises:
        ValueError: the key is missing, or its value is not such an array.
    """
    leaf = state.get(key)
    if not isinstance(leaf, np.ndarray) or (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
        raise ValueError(f"{key!r} in the saved state is {_kind_of(leaf)}, expected {_kind_of(like)}")
    return leaf


def read_number(state: StateTree, key: str) -> int | float:
    """Read a finite number from a saved state.

    Raises:
        ValueError: the key is missing, or its value is not a finite number.
    """
    leaf = state.get(key)
    if isinstance(leaf, bool) or not isinstance(leaf, int | float) or not -_MOST < leaf < _MOST:
        raise ValueError(f"{key!r} in the saved state is {_kind_of(leaf)}, expected a finite number")
    return leaf


def read_count(state: StateTree, key: str) -> int:
    """Read an integer from 0 to 2**63 - 1 from a saved state.

    Raises:
        ValueError: the key is missing, or its value is not such an integer.
    """
    leaf = state.get(key)
    if isinstance(leaf, bool) or not isinstance(leaf, int) or not 0 <= leaf < 2**63:
        raise ValueError(f"{key!r} in the saved state is {_kind_of(leaf)}, expected a whole number of at least 0")
    return leaf


def read_amount(state: StateTree, key: str) -> float:
    """Read a finite number of at least 0, such as seconds, from a saved state.

    Raises:
        ValueError: the key is missing, or its value is negative or not a finite number.
    """
    amount = read_number(state, key)
    if amount < 0.0:
        raise ValueError(f"{key!r} in the saved state is {amount}, expected at least 0")
    return float(amount)


_MOST = 1e300  # leaves room for small products before float64 overflows


def _kind_of(leaf: StateTree | StateLeaf) -> str:
    """Describe a leaf in a few words."""
    if isinstance(leaf, np.ndarray | Tensor):
        return f"an array {list(leaf.shape)} of {leaf.dtype}"
    if leaf is None or isinstance(leaf, int | float | str):
        return f"{leaf!r:.60}" if not isinstance(leaf, int) or abs(leaf) < 10**20 else "a number of more than 20 digits"
    return "a mapping"
