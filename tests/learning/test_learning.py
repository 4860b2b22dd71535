"""Every preset reaches what the list says it reaches, over seeds. Takes minutes: make test-slow."""

import pytest

import fastac
from fastac.presets import PRESETS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: f"{p.env_id}-{p.name}")
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
