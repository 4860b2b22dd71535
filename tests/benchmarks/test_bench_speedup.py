"""`benchmarks.speedup`: one A3C worker and two, and what the table says of them."""

from __future__ import annotations

import pytest

from benchmarks import solve
from benchmarks.seed_results import save
from benchmarks.speedup import Pair, Speedup, choose, flags_of, format_speedup, load, main, measure

PAIRS = (
    Pair(0, (2.0, 1.0), (20_000, 22_000)),
    Pair(1, (3.0, 2.0), (30_000, 24_000)),
    Pair(2, (9.0, 1.5), (90_000, 23_000)),
)


def test_the_ratio_is_of_the_medians():
    assert solve.ratio_of_medians([2.0, 3.0, 9.0], [1.0, 2.0, 1.5]) == 3.0 / 1.5
    assert solve.ratio_of_medians([2.0, 3.0, None], [1.0, 2.0, 1.5]) == 3.0 / 1.5


@pytest.mark.parametrize(("one", "two"), [([None], [1.0]), ([1.0], [None]), ([None], [None])])
def test_there_is_no_ratio_of_runs_that_did_not_get_there(one, two):
    with pytest.raises(ValueError, match="too few runs solved"):
        solve.ratio_of_medians(one, two)


def test_the_table_counts_a_run_that_did_not_get_there_as_the_slowest():
    one, two = cells((*PAIRS[:2], Pair(2, (None, 1.5), (None, 23_000))))
    assert one == ["1", "2 of 3", "3", "-", "-", "30,000", ""]
    assert two == ["2", "3 of 3", "1.5", "1.5", "2", "23,000", "2.00x"]


def test_the_table_has_the_ratio_of_the_means_if_all_got_there():
    assert cells(PAIRS)[1][-1] == "2.00x, 3.11x"
    assert cells((Pair(2, (None, 1.5), (None, 23_000)),))[1][-1] == "-"


def cells(pairs: tuple[Pair, ...]) -> list[list[str]]:
    """What the two rows say, from the number of workers on."""
    lines = format_speedup({"CartPole-v1:a3c": Speedup(475.0, 1000, "", "here", pairs)}).splitlines()[2:]
    return [[cell.strip() for cell in line.split("|")[3:-1]] for line in lines]


def test_the_file_gives_back_what_was_measured(tmp_path):
    found = {"CartPole-v1:a3c": Speedup(475.0, 1000, "--preset a3c", "here", PAIRS)}
    save(tmp_path / "new" / "speedup.json", found)
    assert load(tmp_path / "new" / "speedup.json") == found
    assert load(tmp_path / "none.json") == {}


def test_presets_of_a3c_that_have_a_target():
    chosen = choose([])
    assert list(chosen) == ["CartPole-v1:a3c", "CartPole-v1:a3c-paper", "LunarLander-v3:a3c"]
    assert flags_of(chosen["CartPole-v1:a3c"]) == ["--preset", "a3c", "--eval-every", "2000"]
    assert flags_of(chosen["LunarLander-v3:a3c"]) == ["--preset", "a3c"]
    with pytest.raises(ValueError, match="'CartPole-v1:a2c' is not a preset of A3C"):
        choose(["CartPole-v1:a2c"])


def test_a_seed_is_trained_with_one_worker_and_then_with_two(tmp_path, capsys, monkeypatch):
    commands = []

    def run_seed(words, seed, timeout_s):
        commands.append((seed, words[words.index("--workers") + 1], words[-1]))
        return solve.Result(seed, seed == 5, 2.0, 100, 3.0, 4.0, 500.0)

    monkeypatch.setattr(solve, "run_seed", run_seed)
    output = tmp_path / "speedup.json"
    main(["CartPole-v1:a3c", "--seeds", "2", "--first-seed", "4", "--output", str(output)])
    assert commands == [(4, "1", "475"), (4, "2", "475"), (5, "1", "475"), (5, "2", "475")]
    assert load(output)["CartPole-v1:a3c"].seeds == (
        Pair(4, (None, None), (None, None)),
        Pair(5, (2.0, 2.0), (100, 100)),
    )
    assert "1 of 2" in capsys.readouterr().out


def test_a_run_that_failed_ends_it(monkeypatch):
    failed = solve.Result(0, False, None, None, None, 1.0, None, "exit code 2: no such preset")
    monkeypatch.setattr(solve, "run_seed", lambda *_: failed)
    with pytest.raises(SystemExit, match=r"CartPole-v1:a3c, seed 7, 1 worker\(s\): exit code 2: no such preset"):
        measure(choose(["CartPole-v1:a3c"])["CartPole-v1:a3c"], 1, 7, "here")
