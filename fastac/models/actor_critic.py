"""The actor-critic model: trunks (encoder -> core), an action head and a value head.

A shared trunk (the lecture's network) is one trunk that both heads read. Separate networks are two trunks: the first
is the actor's, the last the critic's. Everything else is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from fastac.contract import Act
from fastac.models.cores import Core
from fastac.models.encoders import Shape, make_linear
from fastac.models.heads import ILLEGAL, GaussianHead, Head
from fastac.models.normalizers import NoObsNormalizer, ObsNormalizer


class Trunk(nn.Module):
    """An encoder and a core: maps observations to features, with recurrent state."""

    def __init__(self, encoder: nn.Module, core: Core) -> None:
        """Store the encoder and the core."""
        super().__init__()
        self.encoder = encoder
        self.core = core

    def forward(self, obs: Tensor, state: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return features `[..., D]` and the state after the last row `[N, S]`."""
        features, state = self.core(self.encoder(obs), state, start)
        return features, state


class ActorCritic(nn.Module):
    """The policy and the value function.

    Attributes:
        obs_normalizer: standardises raw observations, or is the identity; saved with the weights.
        state_size: size S of the recurrent state, concatenated over trunks; 0 without recurrence.
        mask_size: M, the number of columns at the end of an observation that are its action mask: for each value of
            each component of an action, whether it is legal. 0 without masks.
        image_shape: if the rest of an observation is a flattened image, its shape; else None.
    """

    def __init__(
        self,
        trunks: Sequence[Trunk],
        head: Head,
        obs_normalizer: ObsNormalizer | NoObsNormalizer,
        mask_size: int = 0,
        image_shape: Shape | None = None,
    ) -> None:
        """Store one trunk (shared) or two (the actor's, the critic's)."""
        super().__init__()
        assert len(trunks) in (1, 2)
        self.obs_normalizer = obs_normalizer
        self.trunks = nn.ModuleList(trunks)
        self.head = head
        self.value_head = make_linear(trunks[-1].core.output_size, 1, gain=1.0)
        self._state_sizes = [trunk.core.state_size for trunk in trunks]
        self.state_size = sum(self._state_sizes)
        self.mask_size, self.image_shape = mask_size, image_shape

    def forward(self, obs: Tensor, state: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return distribution parameters `[..., P]`, values `[...]` and the next state `[N, S]`.

        Args:
            obs: raw observations: `[N, ...]` for one step, `[T, N, ...]` for a sequence; without recurrence,
                any leading shape.
            state: `[N, S]`, the recurrent state before the first row.
            start: `[N]` or `[T, N]` bool, True where a row begins an episode.
        """
        mask = None
        if self.mask_size:
            obs, mask = obs.split([obs.shape[-1] - self.mask_size, self.mask_size], dim=-1)
        if self.image_shape is not None:
            obs = obs.unflatten(-1, self.image_shape)
        obs = self.obs_normalizer(obs)
        features, states = [], []
        for trunk, trunk_state in zip(self.trunks, state.split(self._state_sizes, dim=-1), strict=True):
            out, after = trunk(obs, trunk_state, start)
            features.append(out)
            states.append(after)
        value, params = self.value_head(features[-1]).squeeze(-1), self.head(features[0])
        if mask is not None:
            params = params.masked_fill(mask == 0, ILLEGAL)
        return params, value, states[0] if len(states) == 1 else torch.cat(states, dim=-1)

    def critic_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are the critic's alone: the value head's, and its trunk's if it has its own."""
        trunk = self.trunks[-1].parameters() if len(self.trunks) > 1 else ()
        return [*trunk, *self.value_head.parameters()]

    def initial_state(self, num_envs: int) -> Tensor:
        """Return the zero recurrent state `[N, S]`."""
        return torch.zeros(num_envs, self.state_size, device=self.value_head.weight.device)

    def action_std(self) -> float | None:
        """Return the mean standard deviation over action dimensions if it is a parameter, else None."""
        return self.head.log_std.detach().exp().mean().item() if isinstance(self.head, GaussianHead) else None

    def draw_noise(self, leading: tuple[int, ...], generator: Generator) -> Tensor:
        """Draw the randomness for actions of shape `leading`, on the CPU."""
        return self.head.draw_noise(leading, generator)

    @torch.no_grad()
    def act(self, obs: Tensor, state: Tensor, start: Tensor, noise: Tensor) -> Act:
        """Sample actions for one step."""
        params, value, state = self(obs, state, start)
        action = self.head.sample(params, noise)
        log_prob, _ = self.head.log_prob_entropy(params, action)
        return Act(action, log_prob, value, state)

    @torch.no_grad()
    def greedy(self, obs: Tensor, state: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return the most likely actions for one step and the next state."""
        params, _, state = self(obs, state, start)
        return self.head.mode(params), state

    @torch.no_grad()
    def value(self, obs: Tensor, state: Tensor, start: Tensor) -> Tensor:
        """Return values `[N]` for one step."""
        value: Tensor = self(obs, state, start)[1]
        return value
