"""A trained network as something to act with: an observation in, the environment's action out."""

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

# What one environment is stepped with: an array (Box, MultiDiscrete) or a NumPy integer (Discrete).
Action: TypeAlias = ActionArray | np.generic


class TrainedPolicy:
    """Acts and values with a trained model.

    Observations come as the environment gives them, one at a time, `[*obs_shape]`, or batched, `[N, *obs_shape]`
    (of a dict or a tuple: one of batches); answers have the same form. Images of bytes come as they are, also
    as floats that hold whole numbers from 0 to 255. Where the model has a memory it carries over from one `act`
    to the next, for all N alike, until `reset` or until a batch of another size comes.

    Attributes:
        model: the network.
        observation_space: of one environment.
        action_space: of one environment.
    """

    def __init__(
        self, model: ActorCritic, observation_space: ArraySpace, action_space: ArraySpace, seed: int = 0
    ) -> None:
        """Take the model as it is, on the device where it is; it is put into evaluation mode.

        Args:
            model: the trained network.
            observation_space: of one environment as it is learned in, a `FlatBox` where it is flattened.
            action_space: of one environment, a `SquashedBox` where actions are squashed into it.
            seed: of the sampled actions.
        """
        assert observation_space.shape is not None  # envs/ let only Box through
        self.observation_space = (
            observation_space.original if isinstance(observation_space, FlatBox) else observation_space
        )
        self._is_flattened = isinstance(observation_space, FlatBox)
        self.action_space = action_space
        self.model = model.eval()  # a custom encoder may have dropout
        self._obs_shape, self._obs_dtype = observation_space.shape, observation_dtype(observation_space)
        self._to_env = map_actions(action_space)
        self._generator = torch.Generator().manual_seed(seed)
        self._state: Tensor | None = None  # [N, S], None at the begin of an episode

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.value_head.weight.device

    def act(self, obs: RawObs, greedy: bool = True) -> Action:
        """Return the environment's action: shifted by a Discrete space's `start`, clipped or squashed to a Box.

        Args:
            obs: one observation or a batch.
            greedy: take the most likely action; otherwise sample.

        Raises:
            ValueError: an observation of another space or shape, or an image of other numbers.
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
        """Return the value of `obs`, a float or `[N]`; the memory is used and not changed.

        Raises:
            ValueError: as `act`.
        """
        batch, is_single = self._to_batch(obs)
        value = self.model.value(batch, *self._recall(len(batch)))  # [N]
        if is_single:
            return float(value[0])
        values: FloatArray = value.cpu().numpy()
        return values

    def reset(self) -> None:
        """Forget: the next observation is the first of an episode."""
        self._state = None

    def _to_batch(self, obs: RawObs) -> tuple[Tensor, bool]:
        """Return `[N, *obs_shape]` on the model's device, and whether `obs` was a single one."""
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
        """Return a copy in the dtype that the model takes; torch takes neither read-only arrays nor reversed ones."""
        if self._is_flattened:
            return flatten_obs(self.observation_space, obs).astype(self._obs_dtype)
        try:
            given = np.asarray(obs)
            with np.errstate(invalid="ignore"):  # the check below says it better
                array = np.array(given, dtype=self._obs_dtype, order="C")
        except (TypeError, ValueError) as error:
            raise ValueError(f"the observation is not an array of numbers ({error}).") from error
        if array.dtype == np.uint8 and not np.array_equal(array, given):
            wrong = given[given != array].flat[0]
            raise ValueError(f"the observation holds {wrong}, expected an image of whole numbers from 0 to 255.")
        return array

    def _recall(self, num: int) -> tuple[Tensor, Tensor]:
        """Return the memory `[num, S]`, and `[num]` whether an episode begins."""
        is_fresh = self._state is None or len(self._state) != num
        state = self.model.initial_state(num) if self._state is None or is_fresh else self._state
        return state, torch.full((num,), is_fresh, device=state.device)
