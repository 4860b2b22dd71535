"""Games with many illegal actions, for what masks are worth and for the comparison with sb3-contrib.

Connect four: an action names one of the 42 cells, and only the lowest empty one of each column is legal. The opponent
draws a random column. Hearts: of 52 cards 5 are in the hand, and only those can be played.

An illegal action costs a tenth and changes nothing, as where nobody masks it.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

ROWS, COLUMNS = 6, 7
_HEIGHT = ROWS + 1  # bits of a column: its cells and a bit that stays empty
_PENALTY = -0.1
MOST_STEPS = 200

Info = dict[str, NDArray[np.int8]]


def _is_won(stones: int) -> bool:
    """Return whether four bits are in a line: in a column, a row, or either diagonal."""
    for shift in (1, _HEIGHT, _HEIGHT - 1, _HEIGHT + 1):
        pairs = stones & (stones >> shift)
        if pairs & (pairs >> (2 * shift)):
            return True
    return False


class ConnectFour(gym.Env[NDArray[np.float32], np.int64]):
    """The agent begins; 1 for four in a line, -1 for the opponent's, 0 for a full board.

    Observations are `[84]`: own stones, then the opponent's, by column from the bottom.
    """

    observation_space = Box(0.0, 1.0, (2 * ROWS * COLUMNS,), np.float32)
    action_space = Discrete(ROWS * COLUMNS)

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> tuple:
        super().reset(seed=seed)
        self._stones, self._heights, self._steps = [0, 0], [0] * COLUMNS, 0
        self._obs = np.zeros(2 * ROWS * COLUMNS, np.float32)
        return self._obs.copy(), self._tell()

    def step(self, action: np.int64) -> tuple:
        self._steps += 1
        column, row = divmod(int(action), ROWS)
        if row != self._heights[column]:
            return self._obs.copy(), _PENALTY, False, self._steps >= MOST_STEPS, self._tell()
        reward = 0.0
        if self._drop(0, column):
            reward = 1.0
        elif (free := self._free()) and self._drop(1, free[self.np_random.integers(len(free))]):
            reward = -1.0
        is_over = reward != 0.0 or not self._free()
        return self._obs.copy(), reward, is_over, self._steps >= MOST_STEPS, self._tell()

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which cells are legal, as sb3-contrib asks for it."""
        return self._tell()["action_mask"].astype(bool)

    def _free(self) -> list[int]:
        return [column for column in range(COLUMNS) if self._heights[column] < ROWS]

    def _drop(self, who: int, column: int) -> bool:
        row = self._heights[column]
        self._heights[column] = row + 1
        self._stones[who] |= 1 << (column * _HEIGHT + row)
        self._obs[who * ROWS * COLUMNS + column * ROWS + row] = 1.0
        return _is_won(self._stones[who])

    def _tell(self) -> Info:
        mask = np.zeros(ROWS * COLUMNS, np.int8)
        for column in self._free():
            mask[column * ROWS + self._heights[column]] = 1
        return {"action_mask": mask}


CARDS, HAND, TRICKS = 52, 5, 10


class Hearts(gym.Env[NDArray[np.float32], np.int64]):
    """Ten tricks with a hand of five: a card that beats the one on the table, at the least excess, pays most.

    Observations are `[104]`: the cards in the hand, then the card on the table, one-hot.
    """

    observation_space = Box(0.0, 1.0, (2 * CARDS,), np.float32)
    action_space = Discrete(CARDS)

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> tuple:
        super().reset(seed=seed)
        self._deck = self.np_random.permutation(CARDS).tolist()
        self._hand = {self._deck.pop() for _ in range(HAND)}
        self._table, self._played, self._steps = self._deck.pop(), 0, 0
        return self._show(), self._tell()

    def step(self, action: np.int64) -> tuple:
        self._steps += 1
        card = int(action)
        if card not in self._hand:
            return self._show(), _PENALTY, False, self._steps >= MOST_STEPS, self._tell()
        self._hand.remove(card)
        reward = (1.0 - (card - self._table) / CARDS) / TRICKS if card > self._table else 0.0
        self._hand.add(self._deck.pop())
        self._table, self._played = self._deck.pop(), self._played + 1
        return self._show(), reward, self._played == TRICKS, self._steps >= MOST_STEPS, self._tell()

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which cards are in the hand, as sb3-contrib asks for it."""
        return self._tell()["action_mask"].astype(bool)

    def _show(self) -> NDArray[np.float32]:
        obs = np.zeros(2 * CARDS, np.float32)
        obs[list(self._hand)] = 1.0
        obs[CARDS + self._table] = 1.0
        return obs

    def _tell(self) -> Info:
        mask = np.zeros(CARDS, np.int8)
        mask[list(self._hand)] = 1
        return {"action_mask": mask}
