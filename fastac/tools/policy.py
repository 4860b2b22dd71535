"""A trained policy: maps observations to the environment's actions."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fastac import memory
from fastac.build import EncoderFactory
from fastac.config import ModelConfig
from fastac.contract import ActionArray, BoolArray, EnvFailure, FloatArray, ObsArray
from fastac.envs import observation_dtype
from fastac.envs.leaves import RawObs
from fastac.envs.masks import MaskReader, MaskSource, count_choices
from fastac.envs.rows import FlatBox
from fastac.envs.spaces import ArraySpace, map_actions
from fastac.models import ActorCritic, DependentGaussianHead, GaussianHead, Head
from fastac.tools.policy_file import read_policy, write_policy

# The argument of an environment's `step`: an array (Box, MultiDiscrete) or a NumPy integer (Discrete).
Action: TypeAlias = ActionArray | np.generic


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy makes of an observation, or of a batch, whose arrays then have one dimension more.

    Attributes:
        action: the environment's action.
        value: of the observation, a float or `[N]`.
        params: of the distribution of actions: `logits` `[A]`, -inf for an illegal action (several components side by
            side), or `mean` and `log_std` `[A]` of a Gaussian, whose samples are clipped or squashed to the Box.
        state: the memory for the next call `[S]`; S is 0 without memory.
    """

    action: Action
    value: float | FloatArray
    params: Mapping[str, FloatArray]
    state: FloatArray


class TrainedPolicy:
    """Returns actions and values from a trained model.

    Observations are given as the environment returns them, single, `[*obs_shape]`, or batched, `[N, *obs_shape]`
    (for a dict or a tuple: a dict or tuple of batches); results have the same form. Images of bytes may also be given
    as floats with whole numbers from 0 to 255. Where the environment had action masks in its info or by a method,
    `act` is given them.

    A recurrent model has a memory. It carries over from one `act` to the next, for all N together, until `reset` or a
    batch of another size; `start` resets it for some of the N. Every thread has a memory of its own, so that threads
    may share a policy. `decide` neither reads nor writes it: its caller keeps the state. A deep copy has the weights,
    the memory and the random stream as they are.

    Attributes:
        model: the network.
        observation_space: of one environment.
        action_space: of one environment.
        row_space: of what the model reads: the observation space, or a `FlatBox` of it.
    """

    def __init__(
        self,
        model: ActorCritic,
        observation_space: ArraySpace,
        action_space: ArraySpace,
        seed: int = 0,
        config: ModelConfig | None = None,
    ) -> None:
        """Take the model on its present device; this puts it into evaluation mode.

        Args:
            model: the trained network.
            observation_space: of one environment in training, a `FlatBox` if observations are flattened.
            action_space: of one environment, a `SquashedBox` if actions are squashed.
            seed: for sampled actions.
            config: what the model was built from; `save` needs it.
        """
        assert observation_space.shape is not None  # envs/ accept only Box observations
        self.row_space = observation_space
        self._rows = observation_space if isinstance(observation_space, FlatBox) else None
        self.observation_space = observation_space if self._rows is None else self._rows.original
        self._mask_reader = MaskReader(count_choices(action_space)) if self.mask_source is not None else None
        self.action_space = action_space
        self.model, self._config = model.eval(), config  # a custom encoder may have dropout
        self._obs_shape, self._obs_dtype = observation_space.shape, observation_dtype(observation_space)
        self._to_env = map_actions(action_space)
        self._generator = torch.Generator().manual_seed(seed)
        self._memory = _Memory()

    @property
    def mask_source(self) -> MaskSource | None:
        """Where the environment has its action masks; with `method` or `info`, `act` needs them as an argument."""
        return None if self._rows is None else self._rows.reading.mask_source

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.model.value_head.weight.device

    def act(
        self, obs: RawObs, greedy: bool = True, action_mask: object = None, start: ArrayLike | None = None
    ) -> Action:
        """Return the environment's action: shifted by a Discrete space's `start`, clipped or squashed to a Box.

        Args:
            obs: one observation or a batch.
            greedy: take the most likely action; otherwise sample.
            action_mask: which actions are legal, `[M]` or `[N, M]` with one number for every value of every component
                of an action, where `mask_source` is `method` or `info`. A row of a batch that allows
                nothing, as after the end of an episode, gets any action.
            start: whether `obs` is the first of an episode, a bool or `[N]`: the memory is reset there. None: nowhere.

        Raises:
            ValueError: the observation does not fit the space or shape, an image has values other than 0 to 255,
                `start` is of another size, or a mask is missing, has another shape, or allows no action.
        """
        batch, is_single = self._to_batch(obs, action_mask, acts=True)
        state, begins = self._recall(len(batch), start)
        if greedy:
            action, self._memory.state = self.model.greedy(batch, state, begins)
        else:
            action, _, _, self._memory.state = self.model.act(batch, state, begins, self._draw_noise(batch))
        actions = self._to_env(action.cpu().numpy())  # [N, *action_shape]
        first: Action = actions[0] if is_single else actions
        return first

    @torch.no_grad()
    def decide(
        self,
        obs: RawObs,
        state: ArrayLike | None = None,
        start: ArrayLike | None = None,
        action_mask: object = None,
        greedy: bool = True,
    ) -> Decision:
        """Return all that the model says, without the policy's own memory.

        Args:
            obs: see `act`.
            state: that of the decision before, `[S]` or `[N, S]`; None where episodes begin.
            start: see `act`.
            action_mask: see `act`.
            greedy: see `act`.

        Raises:
            ValueError: see `act`, or `state` has another shape.
        """
        batch, is_single = self._to_batch(obs, action_mask, acts=True)
        before = self.model.initial_state(len(batch))
        if state is not None:
            given, expected = np.array(state, np.float32), list(before.shape)[is_single:]
            if list(given.shape) != expected:
                raise ValueError(f"the state has shape {list(given.shape)}, expected {expected}.")
            before = torch.from_numpy(given).reshape(before.shape).to(self.device)
        params, value, after = self.model(batch, before, self._to_start(len(batch), start))
        head = self.model.head
        action = head.mode(params) if greedy else head.sample(params, self._draw_noise(batch))
        at = 0 if is_single else slice(None)
        return Decision(
            self._to_env(action.cpu().numpy())[at],
            float(value[0]) if is_single else value.cpu().numpy(),
            {name: part.cpu().numpy()[at] for name, part in name_params(head, params).items()},
            after.cpu().numpy()[at],
        )

    def value(self, obs: RawObs, start: ArrayLike | None = None) -> float | FloatArray:
        """Return the value of `obs`, a float or `[N]`; the memory is used but not changed.

        Raises:
            ValueError: see `act`.
        """
        batch, is_single = self._to_batch(obs, None, acts=False)
        value = self.model.value(batch, *self._recall(len(batch), start))  # [N]
        if is_single:
            return float(value[0])
        values: FloatArray = value.cpu().numpy()
        return values

    def reset(self) -> None:
        """Reset this thread's memory: the next observation begins an episode."""
        self._memory.state = None

    def save(self, path: Path | str) -> None:
        """Write the policy to one file, safetensors with JSON in it; `load_policy` needs nothing else.

        Raises:
            ValueError: the policy was made without its configuration.
            RecordError: the file cannot be written; an older one stays.
        """
        if self._config is None:
            raise ValueError("the policy was made without a config, expected one: TrainedPolicy(..., config=...).")
        spaces = SimpleNamespace(single_observation_space=self.row_space, single_action_space=self.action_space)
        write_policy(Path(path), self.model, self._config, spaces)

    def _draw_noise(self, batch: Tensor) -> Tensor:
        return self.model.draw_noise((len(batch),), self._generator).to(batch.device)

    def _to_batch(self, obs: RawObs, action_mask: object, acts: bool) -> tuple[Tensor, bool]:
        """Return `[N, *obs_shape]` on the model's device, and whether `obs` was a single observation."""
        array = self._to_array(obs) if self._rows is None else self._to_rows(self._rows, obs, action_mask, acts)
        is_single = array.shape == self._obs_shape
        if not is_single and (array.ndim == 0 or array.shape[1:] != self._obs_shape):
            expected = ", ".join(map(str, self._obs_shape))
            raise ValueError(
                f"the observation has shape {list(array.shape)}, expected [{expected}], or [N, {expected}] for a batch."
            )
        batch = memory.copy_of(array[None] if is_single else array)
        return batch.to(self.device), is_single

    def _to_array(self, obs: RawObs) -> ObsArray:
        """Return a copy in the model's dtype; torch accepts neither read-only arrays nor negative strides."""
        try:
            given = np.asarray(obs)
            with np.errstate(invalid="ignore"):  # the check below gives a better message
                array = np.array(given, dtype=self._obs_dtype, order="C")
        except (TypeError, ValueError) as error:
            raise ValueError(f"the observation is not an array of numbers ({error}).") from error
        if array.dtype == np.uint8 and not np.array_equal(array, given):
            wrong = given[given != array].flat[0]
            raise ValueError(f"the observation holds {wrong}, expected an image of whole numbers from 0 to 255.")
        return array

    def _to_rows(self, space: FlatBox, obs: RawObs, action_mask: object, acts: bool) -> ObsArray:
        """Return a row or rows, with their mask; every action is legal for who only asks for values."""
        values = space.flatten(obs)
        self._check_bytes(values)
        if self._mask_reader is None:
            if action_mask is not None:
                raise ValueError("action_mask is given, expected None: the policy was trained without action masks.")
            return values.astype(self._obs_dtype)
        num_envs = len(values) if values.ndim > 1 else None
        mask = np.ones((*values.shape[:-1], self._mask_reader.size), dtype=np.bool_)
        if acts:
            mask = self._read_mask(space, obs, action_mask, num_envs)
        return space.join(values, mask).astype(self._obs_dtype, copy=False)

    def _check_bytes(self, values: ObsArray) -> None:
        """Refuse numbers that rows of bytes cannot hold."""
        if self._obs_dtype != np.uint8 or values.dtype in (np.uint8, np.bool_):
            return
        numbers = np.asarray(values, dtype=np.float64)
        wrong = numbers[(numbers < 0) | (numbers > 255) | (numbers != np.floor(numbers))]
        if wrong.size:
            raise ValueError(f"the observation holds {wrong.flat[0]}, expected images of whole numbers from 0 to 255.")

    def _read_mask(self, space: FlatBox, obs: RawObs, action_mask: object, num_envs: int | None) -> BoolArray:
        assert self._mask_reader is not None
        if self.mask_source == "observation":
            if action_mask is not None:
                raise ValueError("action_mask is given, expected None: the policy reads it in the observation.")
            action_mask = space.find_mask(obs)
        elif action_mask is None:
            where = "what action_masks() returns" if self.mask_source == "method" else "info['action_mask']"
            raise ValueError(f"action_mask is None, expected {where}: the policy was trained with action masks.")
        try:
            # In a batch an episode may have just ended, where nobody acts.
            return self._mask_reader.complete(self._mask_reader.read(action_mask, num_envs), num_envs is not None)
        except EnvFailure as error:
            raise ValueError(f"{error}.") from error

    def _recall(self, num: int, start: ArrayLike | None) -> tuple[Tensor, Tensor]:
        """Return this thread's memory `[num, S]`, and `[num]` whether an episode begins."""
        state = self._memory.state
        if state is None or len(state) != num:
            state = self.model.initial_state(num)
        return state, self._to_start(num, start)

    def _to_start(self, num: int, start: ArrayLike | None) -> Tensor:
        if start is None:
            return torch.zeros(num, dtype=torch.bool, device=self.device)
        begins = np.array(start, np.bool_, ndmin=1)
        if begins.shape != (num,):
            raise ValueError(f"start has shape {list(begins.shape)}, expected [{num}], one bool per observation.")
        return torch.from_numpy(begins).to(self.device)


class _Memory(threading.local):
    """The recurrent state `[N, S]` of each thread; None at the beginning of an episode."""

    state: Tensor | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return _remember, (self.state,)


def _remember(state: Tensor | None) -> _Memory:
    """Return a memory in which only this thread has a state: what `__init__` gets, every thread gets."""
    memory = _Memory()
    memory.state = state
    return memory


def name_params(head: Head, params: Tensor) -> dict[str, Tensor]:
    """Return the parameters of the distribution by name, see `Decision`; `[N, A]` each."""
    if isinstance(head, GaussianHead):
        return {"mean": params, "log_std": head.log_std.expand_as(params)}
    if isinstance(head, DependentGaussianHead):
        mean, log_std = head.split(params)
        return {"mean": mean, "log_std": log_std}
    return {"logits": params}


def load_policy(path: Path | str, encoder: EncoderFactory | None = None, seed: int = 0) -> TrainedPolicy:
    """Load a policy that `TrainedPolicy.save` has written, on the CPU.

    Args:
        path: the file.
        encoder: the encoder function, if it cannot be imported by its name.
        seed: for sampled actions.

    Raises:
        ValueError: it is no such file, or is damaged, or its encoder cannot be imported.
    """
    saved = read_policy(Path(path), encoder)
    spaces = saved.spaces
    return TrainedPolicy(saved.model, spaces.single_observation_space, spaces.single_action_space, seed, saved.config)
