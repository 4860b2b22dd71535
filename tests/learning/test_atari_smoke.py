"""Two minutes of Pong and of Breakout: everything that a long run does, and a critic that has begun to learn."""

import json

import pytest

import fastac

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("game", "algo", "lives"), [("Pong", "ppo", 1), ("Breakout", "a2c", 5)])
def test_two_minutes(game, algo, lives, tmp_path):
    run = fastac.train(
        f"ALE/{game}-v5",
        algo,
        seed=0,
        run_dir=tmp_path / "run",
        budget_minutes=2.0,
        eval_every=0,
        eval_episodes=5,
        tensorboard=False,
    )
    summary = run.summary
    assert summary["ended_by"] == "minutes"
    assert summary["frames"] == 4 * summary["env_steps"] > 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "progress.jsonl").read_text().splitlines()]
    explained = [row["explained_variance"] for row in rows if row["explained_variance"] is not None]
    early, late = explained[: len(explained) // 10], explained[-len(explained) // 10 :]
    assert sum(late) / len(late) > max(0.2, sum(early) / len(early))
    # Whole games in training and evaluation, whatever ends what is learned from: no life of Breakout is 100 steps
    # long before anything is learned, five of them are.
    assert summary["episodes"] > 0 and rows[-1]["mean_length"] > 100
    evaluation = json.loads((tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()[-1])
    assert evaluation["mean_length"] > 25 * lives
    assert evaluation["mean_return"] >= -21.0
