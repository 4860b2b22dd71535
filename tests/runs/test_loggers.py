"""Loggers beside TensorBoard: the table, and the tracking services, which are made up here."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import sys
from pathlib import Path
from threading import Event
from types import ModuleType, SimpleNamespace

import pytest
from report_support import Clock, row
from run_support import SMALL, SMALL_FLAGS, read_rows

import fastac
from fastac.cli import main
from fastac.config import Config
from fastac.runs.csv_writer import CsvWriter
from fastac.runs.process_meter import ProcessMeter
from fastac.runs.run_dir import RunDirectory
from fastac.runs.services import ServiceWriter
from fastac.runs.writers import EvaluationRow, ProgressWriter
from fastac.studies.search import trial_config

SETTINGS = SMALL | {"total_env_steps": 96, "seed": 0}


# --- the table ---------------------------------------------------------------------------------------


def read_table(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def write_table(folder: Path, rows: list[dict[str, float | None]], resume_at: tuple[int, int] | None = None) -> None:
    lines = ProgressWriter(folder / "progress.jsonl", resume_at)
    table = CsvWriter(folder / "progress.csv", folder / "progress.jsonl")
    for each in rows:
        lines.write(each)
        table.write(each)
    table.write_evaluation(EvaluationRow(100, 1.0, 0.0, 1.0, 0.0, 1))
    table.close()
    table.close()
    lines.close()


def test_the_table_has_a_column_per_key_and_an_empty_cell_for_no_number(tmp_path):
    write_table(tmp_path, [{**row(1), "loss": 0.1}, {**row(2), "loss": math.nan, "info/a,b": 3.0}, {**row(3)}])
    assert read_table(tmp_path / "progress.csv") == [
        ["iteration", "env_steps", "loss", "info/a,b"],
        ["1", "100", "0.1", ""],
        ["2", "200", "", "3.0"],
        ["3", "300", "", ""],
    ]


def test_a_resumed_table_has_each_row_once(tmp_path):
    write_table(tmp_path, [row(k) for k in (1, 2, 3, 4)])
    write_table(tmp_path, [{**row(k), "loss": 0.5} for k in (3, 4)], resume_at=(2, 200))
    expected = [["1", "100", ""], ["2", "200", ""], ["3", "300", "0.5"], ["4", "400", "0.5"]]
    assert read_table(tmp_path / "progress.csv")[1:] == expected


def test_a_table_that_a_resume_adds_has_the_rows_before(tmp_path):
    ProgressWriter(tmp_path / "progress.jsonl").close()
    (tmp_path / "progress.jsonl").write_text('{"iteration": 1, "env_steps": 100, "loss": null}\n')
    write_table(tmp_path, [row(2)], resume_at=(1, 100))
    assert read_table(tmp_path / "progress.csv") == [
        ["iteration", "env_steps", "loss"],
        ["1", "100", ""],
        ["2", "200", ""],
    ]


def test_the_table_of_a_run_equals_its_lines(tmp_path):
    session = fastac.start("CartPole-v1", run_dir=tmp_path, log=("csv",), **SETTINGS)
    next(iter(session))
    session.close()
    fastac.complete(fastac.resume(tmp_path))
    with (tmp_path / "progress.csv").open(newline="") as file:
        table = [
            {key: None if cell == "" else float(cell) for key, cell in each.items()} for each in csv.DictReader(file)
        ]
    assert table == read_rows(tmp_path / "progress.jsonl")
    assert len(table) > 1


# --- the services ------------------------------------------------------------------------------------


class Calls:
    """What both made-up services were told.

    Attributes:
        points: (service, id, tag, env step) of each scalar.
    """

    def __init__(self) -> None:
        self.begun: list[tuple[str, dict[str, object]]] = []
        self.points: list[tuple[str, str, str, int]] = []
        self.ends: list[tuple[str, object]] = []
        self.hurdle = lambda: None  # before each scalar

    def steps(self, service: str, tag: str) -> list[int]:
        return [step for name, _, each, step in self.points if (name, each) == (service, tag)]


def make_wandb(calls: Calls) -> ModuleType:
    class Run:
        def __init__(self, run_id: str) -> None:
            self.id = run_id

        def log(self, scalars: dict[str, float], step: int) -> None:
            calls.hurdle()
            assert all(math.isfinite(value) for value in scalars.values())
            calls.points += [("wandb", self.id, tag, step) for tag in scalars]

        def finish(self, exit_code: int) -> None:
            calls.ends.append(("wandb", exit_code))

    def init(**arguments: object) -> Run:
        calls.begun.append(("wandb", arguments))
        return Run(str(arguments["id"] or f"w{len(calls.begun)}"))

    wandb = ModuleType("wandb")
    wandb.__version__, wandb.run, wandb.init, wandb.Settings = "0", None, init, SimpleNamespace
    wandb.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode=os.environ.get("WANDB_MODE", "online")))
    wandb.login = lambda prompt, verify: "WANDB_API_KEY" in os.environ
    wandb.Run = Run
    return wandb


def make_mlflow(calls: Calls) -> dict[str, ModuleType]:
    class Client:
        def get_experiment_by_name(self, name: str) -> None:
            return None

        def create_experiment(self, name: str) -> str:
            return f"of {name}"

        def create_run(self, experiment: str, run_name: str) -> SimpleNamespace:
            calls.begun.append(("mlflow", {"experiment": experiment, "name": run_name}))
            return SimpleNamespace(info=SimpleNamespace(run_id=f"m{len(calls.begun)}"))

        def update_run(self, run_id: str, status: str) -> None:
            calls.begun.append(("mlflow", {"id": run_id, "status": status}))

        def log_batch(self, run_id: str, metrics: tuple = (), params: tuple = ()) -> None:
            calls.hurdle()
            assert len(params) <= 100
            calls.points += [("mlflow", run_id, name, step) for name, _, _, step in metrics]
            calls.points += [("mlflow", run_id, f"{key}={value}", 0) for key, value in params]

        def set_terminated(self, run_id: str, status: str) -> None:
            calls.ends.append(("mlflow", status))

    mlflow, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    mlflow.__version__, mlflow.MlflowClient = "0", Client
    entities.Metric = entities.Param = lambda *fields: fields
    return {"mlflow": mlflow, "mlflow.entities": entities}


@pytest.fixture
def calls(monkeypatch) -> Calls:
    found = Calls()
    for name, module in {"wandb": make_wandb(found), **make_mlflow(found)}.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_NAME", "WANDB_DIR", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return found


BOTH = ("wandb", "mlflow")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_services_get_settings_scalars_evaluations_and_final_metrics(tmp_path, calls, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    run = fastac.train("CartPole-v1", run_dir=tmp_path / "run", log=BOTH, **SETTINGS)
    begun = dict(calls.begun)
    assert begun["mlflow"] == {"experiment": "of fastac", "name": "run"}
    wandb = begun["wandb"]
    assert (wandb["project"], wandb["name"], wandb["dir"], wandb["id"]) == ("mine", "run", str(run.directory), None)
    assert wandb["config"] == run.config.to_flat()
    assert calls.steps("mlflow", "learning_rate=0.0015") == [0]
    last = run.summary["env_steps"]
    for name in BOTH:
        assert calls.steps(name, "time/total_timesteps")[-1] == last
        assert calls.steps(name, "eval/mean_reward") == calls.steps(name, "final/eval_mean_reward") == [last]
        assert calls.steps(name, "system/rss_mib")
    assert sorted(calls.ends) == [("mlflow", "FINISHED"), ("wandb", 0)]


def test_a_resumed_run_goes_on_at_the_services_and_sends_no_step_twice(tmp_path, calls):
    session = fastac.start("CartPole-v1", run_dir=tmp_path, log=BOTH, checkpoint_every=0, **SETTINGS)
    next(iter(session))
    session.close()
    assert sorted(calls.ends) == [("mlflow", "KILLED"), ("wandb", 1)]
    for name in BOTH:  # as if it had been killed with another row after the checkpoint
        path = tmp_path / f"{name}.json"
        content = json.loads(path.read_text())
        assert content["sent"]["time/fps"] == 32
        path.write_text(json.dumps({**content, "sent": dict.fromkeys(content["sent"], 96)}))
    fastac.complete(fastac.resume(tmp_path, total_env_steps=160))
    for name in BOTH:
        (run_id,) = {run_id for service, run_id, *_ in calls.points if service == name}
        assert json.loads((tmp_path / f"{name}.json").read_text())["run_id"] == run_id
        steps = calls.steps(name, "time/total_timesteps")
        assert steps == sorted(set(steps)) and steps[0] == 32 and steps[1] > 96
    assert len(calls.begun) == 4
    assert [given["resume"] for name, given in calls.begun if name == "wandb"] == [None, "allow"]


def test_a_service_that_fails_leaves_the_run_alone(tmp_path, calls, caplog):
    def fail() -> None:
        raise OSError("network is gone")

    calls.hurdle = fail
    run = fastac.train("CartPole-v1", run_dir=tmp_path, log=BOTH, **SETTINGS)
    assert run.summary["ended_by"] == "env_steps"
    assert sorted(warnings_of(caplog)) == [
        f"{name} is left out, and the run goes on without it (OSError: network is gone)." for name in sorted(BOTH)
    ]


def test_without_a_login_there_is_a_warning_and_no_prompt(tmp_path, calls, caplog, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    fastac.train("CartPole-v1", run_dir=tmp_path, log=("wandb",), **SETTINGS)
    assert calls.begun == []
    (told,) = warnings_of(caplog)
    assert "there is no login: call wandb login, or set WANDB_MODE=offline" in told


def test_a_service_that_does_not_answer_is_not_waited_for(tmp_path, calls, caplog):
    free = Event()
    calls.hurdle = lambda: free.wait(60)
    writer = ServiceWriter("wandb", Config(), RunDirectory(tmp_path, "id"), False, Clock(), close_s=0.01)
    writer.write(row(1))
    writer.close()
    assert warnings_of(caplog) == [
        "wandb is left out, and the run goes on without it (it has not answered for 0.01 s)."
    ]
    free.set()
    writer._thread.join()


def test_a_run_that_the_program_has_begun_is_used_and_stays_open(tmp_path, calls):
    wandb = sys.modules["wandb"]
    wandb.run = wandb.Run("theirs")
    fastac.train("CartPole-v1", run_dir=tmp_path, log=("wandb",), **SETTINGS)
    assert calls.begun == calls.ends == []
    assert {run_id for _, run_id, *_ in calls.points} == {"theirs"}


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("package", [None, ModuleType("a folder of that name")], ids=["missing", "folder"])
def test_a_missing_package_is_told_before_the_run_begins(tmp_path, monkeypatch, capsys, name, package):
    monkeypatch.setitem(sys.modules, name, package)
    words = ["train", "CartPole-v1", *SMALL_FLAGS, "--log", name, "--run-dir", str(tmp_path / "run")]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert f"which needs {name}, which is not installed: pip install '{name}>=" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    run = fastac.train("CartPole-v1", run_dir=tmp_path / "run", **SETTINGS)
    with pytest.raises(ValueError, match=f"needs {name}, which is not installed"):
        fastac.resume(run.directory, total_env_steps=1000, log=(name,))


def test_the_trials_of_a_sweep_write_to_no_logger_that_was_not_given():
    config = Config().replace(log=("csv", "tensorboard"))
    assert (trial_config(config, ()).run.log, trial_config(config, ()).run.tensorboard) == ((), False)
    given = trial_config(config, ("log",)).run
    assert (given.log, given.tensorboard) == (("csv", "tensorboard"), True)


def test_the_figures_of_the_process_are_memory_and_cores_since_the_last_call():
    clock, cpu_clock = Clock(), Clock()
    meter = ProcessMeter(clock, cpu_clock)
    assert meter.read()["system/cpu_percent"] is None  # no time has passed
    clock.now, cpu_clock.now = clock.now + 2.0, cpu_clock.now + 3.0
    found = meter.read()
    assert found["system/cpu_percent"] == 150.0
    assert 1.0 < found["system/rss_mib"] < 2**20
