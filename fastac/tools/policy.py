"""A trained policy: maps observations to the environment's actions."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastac import memory
from fastac.contract import ActionArray, BoolArray, EnvFailure, FloatArray, ObsArray
from fastac.envs import observation_dtype
from fastac.envs.leaves import RawObs
from fastac.envs.masks import MaskReader, MaskSource, count_choices
from fastac.envs.rows import FlatBox
from fastac.envs.spaces import ArraySpace, map_actions
from fastac.models import ActorCritic

# The argument of an environment's `step`: an array (Box, MultiDiscrete) or a NumPy integer (Discrete).
Action: TypeAlias = ActionArray | np.generic


class TrainedPolicy:
    """Returns actions and values from a trained model.

    Observations are given as the environment returns them, single, `[*obs_shape]`, or batched, `[N, *obs_shape]`
    (for a dict or a tuple: a dict or tuple of batches); results have the same form. Images of bytes may also be given
    as floats with whole numbers from 0 to 255. The state of a recurrent model carries over from one `act` to the
    next, for all N together, until `reset` or a batch of another size. Where the environment had action masks in its
    info or by a method, `act` is given them.

    Attributes:
        model: the network.
        observation_space: of one environment.
        action_space: of one environment.
    """

    def __init__(
        self, model: ActorCritic, observation_space: ArraySpace, action_space: ArraySpace, seed: int = 0
    ) -> None:
        """Take the model on its present device; this puts it into evaluation mode.

        Args:
            model: the trained network.
            observation_space: of one environment in training, a `FlatBox` if observations are flattened.
            action_space: of one environment, a `SquashedBox` if actions are squashed.
            seed: for sampled actions.
        """
        assert observation_space.shape is not None  # envs/ accept only Box observations
        self._rows = observation_space if isinstance(observation_space, FlatBox) else None
        self.observation_space = observation_space if self._rows is None else self._rows.original
        self._mask_reader = MaskReader(count_choices(action_space)) if self.mask_source is not None else None
        self.action_space = action_space
        self.model = model.eval()  # a custom encoder may have dropout
        self._obs_shape, self._obs_dtype = observation_space.shape, observation_dtype(observation_space)
        self._to_env = map_actions(action_space)
        self._generator = torch.Generator().manual_seed(seed)
        self._state: Tensor | None = None  # [N, S], None at the beginning of an episode

    @property
    def mask_source(self) -> MaskSource | None:
        """Where the environment has its action masks; with `method` or `info`, `act` needs them as an argument."""
        return None if self._rows is None else self._rows.reading.mask_source

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.model.value_head.weight.device

    def act(self, obs: RawObs, greedy: bool = True, action_mask: object = None) -> Action:
        """Return the environment's action: shifted by a Discrete space's `start`, clipped or squashed to a Box.

        Args:
            obs: one observation or a batch.
            greedy: take the most likely action; otherwise sample.
            action_mask: which actions are legal, `[M]` or `[N, M]` with one number for every value of every component
                of an action, where `mask_source` is `method` or `info`.

        Raises:
            ValueError: the observation does not fit the space or shape, an image has values other than 0 to 255, or
                a mask is missing, has another shape, or allows no action.
        """
        batch, is_single = self._to_batch(obs, action_mask, acts=True)
        state, start = self._recall(len(batch))
        if greedy:
            action, self._state = self.model.greedy(batch, state, start)
        else:
            noise = self.model.draw_noise((len(batch),), self._generator).to(batch.device)
            action, _, _, self._state = self.model.act(batch, state, start, noise)
        actions = self._to_env(action.cpu().numpy())  # [N, *action_shape]
        first: Action = actions[0] if is_single else actions
        return first

    def value(self, obs: RawObs) -> float | FloatArray:
        """Return the value of `obs`, a float or `[N]`; the recurrent state is used but not changed.

        Raises:
            ValueError: see `act`.
        """
        batch, is_single = self._to_batch(obs, None, acts=False)
        value = self.model.value(batch, *self._recall(len(batch)))  # [N]
        if is_single:
            return float(value[0])
        values: FloatArray = value.cpu().numpy()
        return values

    def reset(self) -> None:
        """Reset the recurrent state: the next observation begins an episode."""
        self._state = None

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
        if self._mask_reader is None:
            return values.astype(self._obs_dtype)
        num_envs = len(values) if values.ndim > 1 else None
        mask = np.ones((*values.shape[:-1], self._mask_reader.size), dtype=np.bool_)
        if acts:
            mask = self._read_mask(space, obs, action_mask, num_envs)
        return space.join(values, mask).astype(self._obs_dtype, copy=False)

    def _read_mask(self, space: FlatBox, obs: RawObs, action_mask: object, num_envs: int | None) -> BoolArray:
        assert self._mask_reader is not None
        if self.mask_source == "observation":
            action_mask = space.find_mask(obs)
        elif action_mask is None:
            where = "what action_masks() returns" if self.mask_source == "method" else "info['action_mask']"
            raise ValueError(f"action_mask is None, expected {where}: the policy was trained with action masks.")
        try:
            return self._mask_reader.complete(self._mask_reader.read(action_mask, num_envs), is_over=False)
        except EnvFailure as error:
            raise ValueError(f"{error}.") from error

    def _recall(self, num: int) -> tuple[Tensor, Tensor]:
        """Return the recurrent state `[num, S]`, and `[num]` whether an episode begins."""
        is_fresh = self._state is None or len(self._state) != num
        state = self.model.initial_state(num) if self._state is None or is_fresh else self._state
        return state, torch.full((num,), is_fresh, device=state.device)
