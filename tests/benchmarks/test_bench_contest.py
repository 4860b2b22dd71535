"""Holds the comparison to its word: who runs when, in which process, and what a ratio is."""

import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.contest import (
    Contestant,
    ContestantError,
    Pool,
    Process,
    Standing,
    assign,
    best_of,
    bound_of,
    compare,
    describe,
    ratio,
    relative_spread,
)
from benchmarks.headlines import HEADLINES, Findings, Footprint, Headline, format_headlines, judge
from benchmarks.session import format_standings, leave_out
from benchmarks.solve import Result, format_results, summarize
from benchmarks.workloads import all_workloads, best_settings

COPY = {"num_steps": 4, "num_envs": 8}


def contestant(name="a", module="fastac", **more):
    return Contestant(name, module, "gae", {}, **more)


class FakeProcess:
    """Answers at once, and notes the order."""

    def __init__(self, name, rates, log):
        self._name, self._rates, self._log = name, iter(rates), log

    def send(self, do, seconds):
        self._log.append(self._name)

    def receive(self):
        return {"steps": next(self._rates) * 2.0, "seconds": 2.0}

    def ask(self, do):
        return {"parameters": 5.0} if do == "facts" else {}


class FakePool:
    def __init__(self, *rows):
        self.log = []
        self._rows = [[FakeProcess(name, rates, self.log) for name, rates in row] for row in rows]

    @contextmanager
    def lend(self, contestants):
        yield self._rows


def test_rounds_are_interleaved():
    pool = FakePool([("a", [1.0, 2.0])], [("b", [3.0, 4.0])], [("c", [5.0, 6.0])])
    rows = [contestant(name) for name in "abc"]
    standings = compare(pool, rows, rounds=2, round_s=0.1)
    assert pool.log == ["a", "b", "c", "a", "b", "c"]
    assert [list(s.rates) for s in standings] == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    assert standings[0].facts == {"parameters": 5.0}


def test_side_by_side_means_both_begin_before_either_is_waited_for_and_rates_add_up():
    pool = FakePool([("a1", [1.0]), ("a2", [10.0])])
    assert compare(pool, [contestant(copies=2)], rounds=1, round_s=0.1)[0].rates == [11.0]
    assert pool.log == ["a1", "a2"]


def test_no_two_rows_share_a_process():
    rows = [contestant("a"), contestant("b", copies=2), contestant("c", "sb3"), contestant("d", threads=2)]
    assert assign(rows) == [
        [("fastac", 1, 0)],
        [("fastac", 1, 1), ("fastac", 1, 2)],
        [("sb3", 1, 0)],
        [("fastac", 2, 0)],
    ]


def test_a_ratio_is_taken_round_by_round():
    fast, slow = Standing(contestant(), [10.0, 1.0, 30.0]), Standing(contestant(), [5.0, 1.0, 1.0])
    assert ratio(fast, slow) == 2.0  # of 2, 1 and 30; the ratio of the medians is 10


def test_spread_is_the_distance_of_the_quartiles():
    assert relative_spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2.0 / 3.0)
    assert relative_spread([7.0]) == 0.0


def test_the_best_row_of_a_library_is_not_several_runs():
    rows = [
        Standing(contestant("one"), [2.0]),
        Standing(contestant("two side by side", copies=2), [9.0]),
        Standing(contestant("peer", "sb3"), [4.0]),
    ]
    assert best_of("fastac", rows).contestant.name == "one"
    assert [row["fastac_is"] for row in describe(rows)] == [1.0, pytest.approx(2 / 9), 0.5]
    with pytest.raises(ValueError):
        best_of("torchrl", rows)


def test_the_table_says_how_many_times_faster_fastac_is():
    rows = [Standing(contestant("a"), [2000.0, 2000.0]), Standing(contestant("b", "sb3"), [500.0, 500.0])]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in format_standings("W", rows).splitlines()]
    assert table[0] == ["W", "steps/s", "spread", "fastac is"]
    assert table[2:] == [["a", "2,000", "0%", "1.00x"], ["b", "500", "0%", "4.00x"]]


def test_frames_are_shown_beside_steps_where_a_row_has_an_emulator():
    rows = [Standing(contestant("a"), [100.0], {"frames_per_step": 4.0}), Standing(contestant("b"), [50.0])]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in format_standings("W", rows).splitlines()]
    assert table[0] == ["W", "steps/s", "frames/s", "spread", "fastac is"]
    assert [row[1:3] for row in table[2:]] == [["100", "400"], ["50", "-"]]


def test_the_bound_takes_the_faster_way_of_each_part_round_by_round():
    rows = [
        Standing(contestant("run"), [1.0, 1.0]),
        Standing(contestant("env, a", part="env"), [10.0, 20.0]),
        Standing(contestant("env, b", part="env"), [5.0, 40.0]),  # a faster median
        Standing(contestant("net", part="net"), [10.0, 40.0]),
    ]
    bound = bound_of(rows)
    assert bound.contestant.name == "bound: env, b + net"
    assert bound.rates == [pytest.approx(1 / (1 / 5 + 1 / 10)), pytest.approx(20.0)]
    with pytest.raises(ValueError):
        bound_of(rows[:1])


def test_of_rows_that_differ_in_threads_alone_a_quick_run_has_those_with_few():
    one, two = contestant("1"), contestant("2", threads=2)
    alone, other = contestant("3", "sb3", threads=2), contestant("4", threads=2, copies=2)
    assert leave_out([one, two, alone, other], 1) == [one, alone, other]
    assert leave_out([one, two, alone, other], 2) == [one, two, alone, other]


def test_headlines_are_judged_in_their_direction():
    rate = Headline("rate", 8, 14, "{:.1f}", lambda f: 0.0)
    assert [judge(rate, value) for value in (7.9, 8.0, 14.0)] == ["BELOW", "reached", "aim reached"]
    seconds = Headline("seconds", 4.0, 1.5, "{:.1f}", lambda f: 0.0, lower_is_better=True)
    assert [judge(seconds, value) for value in (4.1, 4.0, 1.5)] == ["BELOW", "reached", "aim reached"]


def every_workload():
    grid = [grid[0] for grid in best_settings().values()]
    return {**{w.name: w.contestants for w in all_workloads()}, "W6 A2C, separate 64-64 tanh, best settings": grid}


def test_every_headline_reads_what_the_workloads_are_called():
    standings = {name: [Standing(row, [1.0]) for row in rows] for name, rows in every_workload().items()}
    names = ("a2c", "ppo", "a3c", "a3c, 1 worker", "a3c-paper", "a3c-paper, 1 worker")
    solved = {name: [Result(0, True, 0.5, 1000, 2.0, 3.0, 500.0)] for name in names}
    table = format_headlines(Findings(standings, solved, dict.fromkeys((1, 2), Footprint(1.2, 1.5))))
    assert len(table.splitlines()) == 2 + len(HEADLINES)


def test_the_speedup_is_one_worker_over_two_and_left_out_if_too_few_solved():
    one, two = Result(0, True, 3.0, 1000, 4.0, 5.0, 500.0), Result(0, True, 1.5, 900, 2.0, 3.0, 500.0)
    lost = Result(0, False, 9.0, 5000, None, 9.0, 20.0)
    assert "2.00x" in format_headlines(Findings({}, {"a3c": [two], "a3c, 1 worker": [one]}))
    assert "1 worker over 2" not in format_headlines(Findings({}, {"a3c": [two], "a3c, 1 worker": [lost]}))


def test_headlines_of_what_was_not_run_are_left_out():
    solved = {"a2c": [Result(0, True, 0.5, 1000, 2.0, 3.0, 500.0)]}
    lines = format_headlines(Findings({}, solved)).splitlines()
    assert len(lines) == 3 and "W7 A2C" in lines[2]
    assert format_headlines(Findings()) == ""


def test_workloads_have_names_of_their_own_and_a_row_of_fastac():
    workloads = all_workloads()
    assert len({w.name for w in workloads}) == len(workloads)
    assert {w.name.split()[0] for w in workloads} == {f"W{number}" for number in (1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 14)}
    for w in workloads:
        assert len({row.name for row in w.contestants}) == len(w.contestants)
        assert any(row.module == "fastac" for row in w.contestants)


def test_a_seed_that_did_not_solve_counts_as_the_slowest():
    solved, lost = Result(0, True, 0.5, 1000, 2.0, 3.0, 500.0), Result(1, False, 9.0, 5000, None, 9.0, 20.0)
    assert summarize([solved, solved, lost], "solved_s") == (2.0, float("inf"))
    assert "not solved" in format_results([solved, solved, lost])


def state_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the state of a process from /proc")
def test_a_process_measures_and_is_stopped_in_between():
    process = Process("limits", threads=1)
    pid = process._child.pid
    try:
        process.ask("build", function="copy", settings=COPY)
        answer = process.ask("round", seconds=0.01)
        assert answer["seconds"] >= 0.01 and answer["steps"] % 32 == 0 and answer["steps"] > 0
        deadline = time.monotonic() + 10
        while state_of(pid) != "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert state_of(pid) == "T"
    finally:
        process.end()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def test_what_a_contestant_fails_with_is_told_and_the_pool_goes_on():
    pool = Pool()
    broken = Contestant("a", "limits", "copy", {"num_steps": "many", "num_envs": 8})
    try:
        with pytest.raises(ContestantError, match="TypeError"):
            compare(pool, [broken], rounds=1, round_s=0.0)
        assert compare(pool, [Contestant("a", "limits", "copy", COPY)], rounds=1, round_s=0.0)[0].rate > 0
    finally:
        pool.end()
