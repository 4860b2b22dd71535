"""Two minutes of Pong and of Breakout: everything that a long run does, and a critic that has begun to learn."""

import json

import pytest

import fastac

pytest.importorskip("ale_py")
pytestmark = pytest.mark.slow


# Who loses every point of Pong has lost after 760 steps, and random play of Breakout lasts 170 on average. The last
# number is the return of the worst player there can be.
# Both by PPO, whose rollouts of 1,024 rows say what its critic explains; in A2C's 80 rows often nothing happens, and
# a share of a variance of nearly 0 has no meaning.
@pytest.mark.parametrize(
    ("game", "algo", "shortest", "worst"), [("Pong", "ppo", 700, -21.0), ("Breakout", "ppo", 125, 0.0)]
)
def test_two_minutes(game, algo, shortest, worst, tmp_path):
    run = fastac.train(
        f"ALE/{game}-v5",
        algo,
        seed=0,
        run_dir=tmp_path / "run",
        budget_minutes=2.0,
        eval_every=0,
        eval_episodes=10,
        tensorboard=False,
    )
    summary = run.summary
    assert summary["ended_by"] == "minutes"
    assert summary["frames"] == 4 * summary["env_steps"] > 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "progress.jsonl").read_text().splitlines()]
    explained = [row["explained_variance"] for row in rows if row["explained_variance"] is not None]
    early, late = explained[: len(explained) // 10], explained[-len(explained) // 10 :]
    assert sum(late) / len(late) > max(0.2, sum(early) / len(early))
    # Whole games in training and evaluation, whatever ends what is learned from: neither a point of Pong nor a life
    # of Breakout is as long.
    evaluation = json.loads((tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()[-1])
    assert summary["episodes"] > 0
    for played in (rows[-1], evaluation):
        assert played["mean_length"] > shortest and played["mean_return"] > worst
