"""Every preset reaches what the list says it reaches, over seeds. Takes minutes: make test-slow."""

import pytest

import fastac
from fastac.config import is_atari
from fastac.presets import PRESETS

pytestmark = pytest.mark.slow


# Those of Atari games take an hour: benchmarks.atari runs them.
CLASSIC = [preset for preset in PRESETS if not is_atari(preset.env_id)]


@pytest.mark.parametrize("preset", CLASSIC, ids=lambda p: f"{p.env_id}-{p.name}")
def test_every_seed_reaches_what_the_preset_promises(preset, tmp_path):
    reached = []
    for seed in range(3):
        config = preset.make()
        run = fastac.train(
            preset.env_id,
            config.algo.algo,
            preset=preset.name,
            seed=seed,
            until_return=preset.reaches,
            run_dir=tmp_path / str(seed),
            tensorboard=False,
        )
        reached.append(run.summary["solved"])
    assert reached == [True] * 3
