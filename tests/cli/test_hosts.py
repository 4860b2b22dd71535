"""fastac hosts: what it prints can be run, and what cannot be divided is refused before."""

import subprocess

import pytest

from fastac.cli import main

RUN = ("LunarLander-v3", "--algo", "ppo", "--seed", "3", "--run-dir", "runs/lander")


@pytest.mark.parametrize("way", ["shell", "slurm"])
def test_a_shell_can_read_the_commands(capsys, way):
    assert main(["hosts", *RUN, "--way", way, "--endpoint", "10.0.0.1:29400", "--hosts=2"]) == 0
    text = capsys.readouterr().out
    read = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    assert "-m fastac train LunarLander-v3 --algo ppo --seed 3 --run-dir runs/lander\n" in text + "\n"
    assert "--nnodes=1:2 " in text and "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1\n" in text
    assert "--endpoint" not in text.replace("--rdzv-endpoint", "") and "--way" not in text


def test_kubernetes_gets_a_job_with_the_command(capsys):
    assert main(["hosts", *RUN, "--way", "kubernetes"]) == 0
    text = capsys.readouterr().out
    assert 'args: ["-m", "fastac", "train", "LunarLander-v3", "--algo", "ppo", "--seed", "3",' in text
    assert "maxReplicas: 2\n" in text and "{name: TORCH_DISABLE_SHARE_RDZV_TCP_STORE, value: '1'}" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "hosts needs an environment id first"),
        (["CartPole-v1"], "give --run-dir DIR"),
        (["CartPole-v1", "--run-dir", "x", "--algo", "a3c"], "a3c's workers"),
        (["CartPole-v1", "--run-dir", "x"], "2 hosts with 1 process each have 1 shard to divide"),
        (["CartPole-v1", "--run-dir", "x", "--hosts", "0"], "hosts is 0, expected at least 1"),
        (["CartPole-v1", "--run-dir", "x", "--way", "lsf"], "expected one of shell, slurm, kubernetes"),
        (["CartPole-v1", "--run-dir", "x", "--hots", "2"], "did you mean --hosts"),
        (["CartPole-v1", "--run-dir", "x", "--endpoint", "10.0.0.1"], "endpoint is '10.0.0.1', expected HOST:PORT"),
        (["--serve", "here"], "the endpoint is 'here', expected HOST:PORT"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(capsys, words, says):
    assert main(["hosts", *words]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert says in said and said.count("fastac: ") == 1
