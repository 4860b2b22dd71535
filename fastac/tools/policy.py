"""A trained policy: maps observations to the environment's actions."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastac import memory
from fastac.contract import ActionArray, FloatArray, ObsArray
from fastac.envs import observation_dtype
from fastac.envs.flatten import FlatBox, RawObs, flatten_obs
from fastac.envs.spaces import ArraySpace, map_actions
from fastac.models import ActorCritic

# The argument of an environment's `step`: an array (Box, MultiDiscrete) or a NumPy integer (Discrete).
Action: TypeAlias = ActionArray | np.generic


class TrainedPolicy:
    """Returns actions and values from a trained model.

    Observations are given as the environment returns them, single, `[*obs_shape]`, or batched, `[N, *obs_shape]`
    (for a dict or a tuple: a dict or tuple of batches); results have the same form. Images of bytes may also be given
    as floats with whole numbers from 0 to 255. The state of a recurrent model carries over from one `act` to the
    next, for all N together, until `reset` or a batch of another size.

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
        self.observation_space = (
            observation_space.original if isinstance(observation_space, FlatBox) else observation_space
        )
        self._is_flattened = isinstance(observation_space, FlatBox)
        self.action_space = action_space
        self.model = model.eval()  # a custom encoder may have dropout
        self._obs_shape, self._obs_dtype = observation_space.shape, observation_dtype(observation_space)
        self._to_env = map_actions(action_space)
        self._generator = torch.Generator().manual_seed(seed)
        self._state: Tensor | None = None  # [N, S], None at the beginning of an episode

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.model.value_head.weight.device

    def act(self, obs: RawObs, greedy: bool = True) -> Action:
        """Return the environment's action: shifted by a Discrete space's `start`, clipped or squashed to a Box.

        Args:
            obs: one observation or a batch.
            greedy: take the most likely action; otherwise sample.

        Raises:
            ValueError: the observation does not fit the space or shape, or an image has values other than 0 to 255.
        """
        batch, is_single = self._to_batch(obs)
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
        batch, is_single = self._to_batch(obs)
        value = self.model.value(batch, *self._recall(len(batch)))  # [N]
        if is_single:
            return float(value[0])
        values: FloatArray = value.cpu().numpy()
        return values

    def reset(self) -> None:
        """Reset the recurrent state: the next observation begins an episode."""
        self._state = None

    def _to_batch(self, obs: RawObs) -> tuple[Tensor, bool]:
        """Return `[N, *obs_shape]` on the model's device, and whether `obs` was a single observation."""
        array = self._to_array(obs)
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
        if self._is_flattened:
            return flatten_obs(self.observation_space, obs).astype(self._obs_dtype)
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

    def _recall(self, num: int) -> tuple[Tensor, Tensor]:
        """Return the recurrent state `[num, S]`, and `[num]` whether an episode begins."""
        is_fresh = self._state is None or len(self._state) != num
        state = self.model.initial_state(num) if self._state is None or is_fresh else self._state
        return state, torch.full((num,), is_fresh, device=state.device)
