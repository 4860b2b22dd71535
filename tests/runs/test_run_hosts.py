"""A run on several hosts: the same bits, what they must agree on, and what happens when one is gone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hosts_support import SMALL, digest, environment_of, finish, free_port, start_hosts, train_on_hosts

import fastac
from fastac.cli import main
from fastac.contract import WorkerFailure
from fastac.torchrun import Launch, find_launch
from fastac.workers import Division
from fastac.workers.membership import open_store

A2C = ("CartPole-v1", "--algo", "a2c", "--shards", "4", "--seed", "3", "--normalize-obs", "--normalize-reward", *SMALL)
PPO = ("CartPole-v1", "--algo", "ppo", "--shards", "5", "--num-envs", "20", "--seed", "1", *SMALL)
KNOBS = (
    *(*PPO, "--no-shared-trunk", "--critic-learning-rate", "3e-3", "--learning-rate-schedule", "adaptive"),
    *("--learning-rate", "1e-3", "--target-kl", "1e-3", "--clip-value-coef", "0.2", "--num-epochs", "4"),
    *("--normalize-advantage", "--advantage-scope", "rollout"),
)
LSTM = ("CartPole-v1", "--algo", "a2c", "--core", "lstm", "--shards", "2", *SMALL)
LONG = (*A2C, "--total-env-steps", "60000", "--checkpoint-minutes", "0.005")


def train_alone(words, folder):
    run_dir = folder / "alone"
    assert main(["train", *words, "--workers", "1", "--run-dir", str(run_dir)]) == 0
    return digest(run_dir)


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        pytest.param(A2C, (2, 3), id="a2c"),
        pytest.param(PPO, (2, 3), id="ppo", marks=pytest.mark.slow),
        pytest.param(KNOBS, (2,), id="ppo, all knobs", marks=pytest.mark.slow),
        pytest.param(LSTM, (2,), id="lstm", marks=pytest.mark.slow),
    ],
)
def test_hosts_come_to_the_bits_of_one_worker(tmp_path, words, sizes):
    expected = train_alone(words, tmp_path)
    for size in sizes:
        assert train_on_hosts(size, words, tmp_path, "--workers", "1") == expected


def test_hosts_with_workers_come_to_them_too(tmp_path):
    assert train_on_hosts(2, A2C, tmp_path, "--workers", "2") == train_alone(A2C, tmp_path)
    rows = [json.loads(row) for row in (tmp_path / "hosts2--workers2/progress.jsonl").read_text().splitlines()]
    alone = [json.loads(row) for row in (tmp_path / "alone/progress.jsonl").read_text().splitlines()]
    for name in ("env_steps", "episodes", "mean_return", "grad_norm"):
        assert [row[name] for row in rows] == [row[name] for row in alone]


def test_hosts_without_a_common_disk_keep_copies_and_one_goes_on_alone(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    words = ["train", *A2C, "--workers", "1", "--run-dir", "run"]
    codes, said = finish(start_hosts([words] * 2, folders))
    assert codes == [0, 0], said
    assert digest(folders[1] / "run") == digest(folders[0] / "run")
    assert not (folders[1] / "run/progress.jsonl").exists()
    for folder in folders:  # if the second host is all that is left, it goes on as the first one would
        fastac.complete(fastac.resume(folder / "run", total_env_steps=9000))
    assert digest(folders[1] / "run") == digest(folders[0] / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "is_equal"), [(("--exchange", "allreduce"), True), (("--sync-every", "3"), False)], ids=["allreduce", "3"]
)
def test_hosts_that_exchange_otherwise_train_too(tmp_path, flags, is_equal):
    found = train_on_hosts(2, A2C, tmp_path, "--workers", "2", *flags)
    assert (found == train_alone(A2C, tmp_path)) is is_equal  # two sums are the same in any order


@pytest.mark.slow
def test_a_new_first_host_takes_the_newest_checkpoint_from_another(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    words = ["train", *A2C, "--workers", "1", "--run-dir", "run"]
    codes, said = finish(start_hosts([words], [old]))
    assert codes == [0], said
    more = [*words, "--total-env-steps", "9000"]
    codes, said = finish(start_hosts([more] * 2, [new, old]))
    assert codes == [0, 0] and "taking the checkpoint of step" in said[0], said
    assert digest(new / "run") == digest(old / "run")


@pytest.mark.slow
def test_a_run_that_is_complete_is_not_begun_again(tmp_path):
    words = ["train", *A2C, "--run-dir", "run"]
    assert finish(start_hosts([words], [tmp_path]))[0] == [0]
    codes, said = finish(start_hosts([words] * 2, [tmp_path] * 2))
    assert codes == [0, 0] and "the run is complete" in said[0], said


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (["--seed", "1"], ["--seed", "2"], "was started with seed 2, and host 0"),
        (["--shards", "1"], ["--shards", "1"], "2 hosts have 1 shard to divide"),
        (["--shared-run-dir"], ["--shared-run-dir"], "has another run than host 0"),
    ],
)
def test_hosts_that_do_not_agree_are_refused(tmp_path, first, second, says):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    commands = [["train", "CartPole-v1", *SMALL, "--run-dir", "run", *each] for each in (first, second)]
    codes, said = finish(start_hosts(commands, folders))
    assert codes == [2, 2], said
    for text in said:
        assert says in " ".join(text.split()) and "Traceback" not in text
    assert not any((folder / "run").exists() for folder in folders)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--run-dir", "run", "--algo", "a3c"], "a3c's workers"),
        ([], "give --run-dir"),
    ],
)
def test_what_cannot_be_divided_is_refused(tmp_path, words, says):
    codes, said = finish(start_hosts([["train", "CartPole-v1", *SMALL, *words]], [tmp_path]))
    assert codes == [2] and says in " ".join(said[0].split())


def test_another_command_for_the_same_directory_is_refused(tmp_path):
    words = ["train", *A2C, "--run-dir", "run"]
    assert finish(start_hosts([words], [tmp_path]))[0] == [0]
    codes, said = finish(start_hosts([[*words, "--optimizer-eps", "1e-6", "--activation", "gelu"]], [tmp_path]))
    assert codes == [2] and "holds a run with activation" in " ".join(said[0].split())


def wait_for_rows(run_dir: Path, least: int) -> None:
    deadline = time.monotonic() + 60.0
    while not list(run_dir.glob("checkpoints/step-*")) or int(max(run_dir.glob("checkpoints/step-*")).name[5:]) < least:
        assert time.monotonic() < deadline, "no checkpoint was saved"
        time.sleep(0.01)


def test_a_killed_host_ends_the_other_and_both_go_on_to_the_same_bits(tmp_path):
    words = ["train", *LONG, "--workers", "1", "--run-dir", "run"]
    hosts = start_hosts([words] * 2, [tmp_path] * 2)
    wait_for_rows(tmp_path / "run", 5000)
    hosts[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    codes, said = finish(hosts)
    assert codes == [1, -9] and time.monotonic() - began < 30.0, said
    assert "lost the connection to another one" in " ".join(said[0].split()) or "no sign of life" in " ".join(
        said[0].split()
    )
    codes, said = finish(start_hosts([words] * 2, [tmp_path] * 2))
    assert codes == [0, 0] and "continuing from step" in said[0], said
    assert digest(tmp_path / "run") == train_alone(LONG, tmp_path)


@pytest.mark.slow
def test_a_stopped_host_is_noticed(tmp_path):
    words = ["train", *LONG, "--total-env-steps", "1e8", "--workers", "1", "--run-dir", "run"]
    hosts = start_hosts([words] * 2, [tmp_path] * 2)
    wait_for_rows(tmp_path / "run", 1000)
    hosts[1].send_signal(signal.SIGSTOP)  # its connections stay open, as when a cable is cut
    code = hosts[0].wait(30.0)
    hosts[1].send_signal(signal.SIGKILL)
    _, said = finish(hosts)
    assert code == 1 and "host 1 has given no sign of life for 3 s" in " ".join(said[0].split()), said


def test_an_interrupt_stops_a_host_that_trains_alone(tmp_path):
    words = ["train", *LONG, "--total-env-steps", "1e8", "--run-dir", "run"]
    hosts = start_hosts([words], [tmp_path])
    wait_for_rows(tmp_path / "run", 1000)
    hosts[0].send_signal(signal.SIGINT)
    codes, said = finish(hosts)
    assert codes == [0] and "Stopped by SIGINT" in said[0], said


@pytest.mark.slow
def test_hosts_with_other_workers_and_one_disk_of_two(tmp_path):
    # The last two share a disk that is not the first one's: one of them writes the copies.
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "b"]
    for folder in set(folders):
        folder.mkdir()
    shared = ["train", *A2C, "--shards", "auto", "--run-dir", "run"]
    codes, said = finish(start_hosts([[*shared, "--workers", workers] for workers in "412"], folders))
    assert codes == [0, 0, 0], said
    assert digest(folders[1] / "run") == digest(folders[0] / "run")


def test_a_directory_of_another_run_is_left_alone(tmp_path):
    other = tmp_path / "run"
    assert main(["train", "CartPole-v1", "--algo", "ppo", *SMALL, "--run-dir", str(other)]) == 0
    for path in other.glob("checkpoints/*"):
        shutil.rmtree(path)
    before = sorted((path, path.stat().st_size) for path in other.rglob("*"))
    codes, said = finish(start_hosts([["train", *A2C, "--run-dir", "run"]], [tmp_path]))
    assert codes == [2] and "already holds a run" in " ".join(said[0].split())
    assert sorted((path, path.stat().st_size) for path in other.rglob("*")) == before


@pytest.mark.parametrize("which", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_an_interrupt_on_any_host_stops_all_and_saves(tmp_path, which):
    words = ["train", *LONG, "--workers", "1", "--run-dir", "run"]
    hosts = start_hosts([words] * 2, [tmp_path] * 2)
    wait_for_rows(tmp_path / "run", 5000)
    hosts[which].send_signal(signal.SIGINT)
    codes, said = finish(hosts)
    assert codes == [0, 0] and "Stopped by SIGINT" in said[0], said
    codes, said = finish(start_hosts([words] * 2, [tmp_path] * 2))
    assert codes == [0, 0], said
    assert digest(tmp_path / "run") == train_alone(LONG, tmp_path)


def test_a_host_ends_with_the_process_that_started_it(tmp_path):
    code = "import subprocess, sys\nhost = subprocess.Popen(sys.argv[1:])\nprint(host.pid, flush=True)\nhost.wait()"
    words = ["train", *LONG, "--total-env-steps", "1e8", "--run-dir", "run"]
    command = [sys.executable, "-c", code, sys.executable, "-m", "fastac", *words]
    environment = {**os.environ, **environment_of(0, 1, free_port())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as agent:
        pid = int(agent.stdout.readline())
        wait_for_rows(tmp_path / "run", 1000)
        agent.kill()
    deadline = time.monotonic() + 20.0
    while is_running(pid):
        assert time.monotonic() < deadline, "the host outlives what started it"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_endpoint_where_nobody_listens_is_told():
    launch = Launch(1, 2, 0, 1, "127.0.0.1", free_port(), 0, False)
    with pytest.raises(WorkerFailure, match=r"nobody answers at 127\.0\.0\.1:"):
        open_store(launch, 1.0)


def test_a_store_shared_by_all_starts_is_refused():
    told = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    told |= {"MASTER_ADDR": "a", "MASTER_PORT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    with pytest.raises(ValueError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        find_launch(told)
    assert find_launch({**told, "TORCHELASTIC_USE_AGENT_STORE": "False"}) is not None
    assert find_launch({}) is None


@pytest.mark.parametrize(("shards", "workers", "hosts"), [(4, 1, 2), (5, 2, 3), (8, 8, 3), (7, 2, 7)])
def test_every_shard_has_one_host_and_one_worker(shards, workers, hosts):
    divisions = [Division.divide(shards, workers, hosts, host) for host in range(hosts)]
    held = [shard for division in divisions for part in division.workers for shard in part]
    assert held == list(range(shards))
    assert all(len(division.workers) <= workers for division in divisions)


def test_what_torchrun_does_itself_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(os.environ, "TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(ValueError, match=r"call fastac\.train instead"):
        fastac.start("CartPole-v1")
    with pytest.raises(ValueError, match="torchrun continues a run by itself"):
        fastac.resume(tmp_path)
