"""What the comparison of algorithms reads out of a run's evaluations."""

from benchmarks.algorithms import Task, format_seeds, judge

TASK = Task("CartPole-v1", 475.0, 1000, 100)


def evaluations(*returns):
    return [{"env_steps": 100 * n, "mean_return": r, "wall_s": 0.5 * n} for n, r in enumerate(returns, start=1)]


def test_the_first_evaluation_at_the_target_counts_and_later_ones_say_how_well_it_is_kept():
    seed = judge(TASK, "a2c", 3, evaluations(20.0, 475.0, 500.0, 300.0, 480.0), 1e5)
    assert (seed.steps, seed.seconds, seed.kept, seed.last_return) == (200, 1.0, 2 / 3, 480.0)


def test_what_was_reached_last_or_never_is_not_said_to_be_kept():
    assert judge(TASK, "a2c", 0, evaluations(20.0, 480.0), 1e5).kept is None
    never = judge(TASK, "a2c", 0, evaluations(20.0, 474.9), 1e5)
    assert (never.steps, never.seconds, never.kept, never.last_return) == (None, None, None, 474.9)


def test_a_seed_that_did_not_solve_is_slower_than_all_that_did():
    seeds = [
        judge(TASK, "a3c", 0, evaluations(480.0, 480.0), 1e5),
        judge(TASK, "a3c", 1, evaluations(20.0, 480.0, 480.0), 1e5),
        judge(TASK, "a3c", 2, evaluations(20.0, 20.0), 1e5),
    ]
    row = format_seeds(TASK, seeds).splitlines()[-1]
    assert [cell.strip() for cell in row.strip("| ").split("|")] == [
        "A3C", "2 of 3", "200 / -", "1.00 / -", "100%", "480", "100,000",
    ]  # fmt: skip
