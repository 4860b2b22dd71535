"""Packages made up for the gate: with the few names that its driver uses, and quick to import."""

CONFIG = """
class Config:
    env = None
    def replace(self, env_id, learning_rate, total_env_steps, size=1, vectorization=None, **more):
        self.size, self.rate = size, learning_rate
        return self
"""
BUILD = """
import os, sys
from types import SimpleNamespace
from fastac.learning.learner import Learner
from fastac.rollout import Collector
def build_envs(config, seed):
    pass
def build(config, envs):
    parameter = SimpleNamespace(numpy=lambda: __import__("array").array("d", [config.rate * config.size]))
    def run():
        collector, learner = Collector(), Learner()
        print("a line that is not an answer")
        while True:
            with open(os.environ["FAKE_LOG"], "a") as log:
                log.write(__file__.split(os.sep)[-3] + "\\n")
            collector.collect(config)
            learner.learn()
            yield None
    return SimpleNamespace(
        trainer=SimpleNamespace(run=run),
        model=SimpleNamespace(state_dict=lambda: {"parameter": parameter}),
        info=SimpleNamespace(rollout_nbytes=100 * config.size, activations_nbytes=20),
    )
"""
ROLLOUT = """
class Collector:
    def collect(self, config):
        return sum(range(1000 * config.size))
"""
LEARNER = """
class Learner:
    def learn(self):
        return sum(range(1000))
"""
# In place of the real one, which takes seconds to import.
TORCH = """
from types import SimpleNamespace
def set_num_threads(number):
    assert number == 1
names = "copy_", "clone", "_to_copy", "_local_scalar_dense"
ops = SimpleNamespace(aten=SimpleNamespace(**{name: name for name in names}))
"""
DISPATCH = """
class TorchDispatchMode:
    __enter__ = __exit__ = __init__ = lambda *given: None
"""


def write_packages(root, **changed):
    """Write `fastac` and `torch` below a folder, with modules changed, by their last name."""
    modules = {"__init__": "", "config": CONFIG, "build": BUILD, "rollout": ROLLOUT, "learner": LEARNER} | changed
    files = {f"fastac/{'learning/' if name == 'learner' else ''}{name}.py": text for name, text in modules.items()}
    files |= {"fastac/learning/__init__.py": "", "torch/__init__.py": TORCH, "torch/utils/__init__.py": ""}
    for path, text in {**files, "torch/utils/_python_dispatch.py": DISPATCH}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root
