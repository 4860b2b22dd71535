"""What installs the packages that fastac needs for some tasks only.

The name "fastac" on the package index belongs to another project, so no line asks pip for `fastac[...]`: each names
the packages themselves, as pyproject.toml lists them.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

Extra: TypeAlias = Literal[
    "atari", "box2d", "envpool", "experiments", "export", "mlflow", "mujoco", "plot", "sweep", "video", "wandb"
]

INSTALL: dict[Extra, str] = {
    "atari": "pip install 'ale-py>=0.12'",
    "box2d": "pip install 'gymnasium[box2d]'",
    "envpool": "pip install 'envpool>=1.2'",
    "experiments": "pip install 'gymnasium[box2d]' 'matplotlib>=3.8' 'scipy>=1.15' 'stable-baselines3>=2.7'",
    "export": "pip install 'onnx>=1.17' 'onnxruntime>=1.20'",
    "mlflow": "pip install 'mlflow>=2.9'",
    "mujoco": "pip install 'gymnasium[mujoco]'",
    "plot": "pip install 'matplotlib>=3.8' 'scipy>=1.15'",
    "sweep": "pip install 'matplotlib>=3.8' 'optuna>=5.0' 'scipy>=1.15'",
    "video": "pip install 'gymnasium[classic-control]' 'imageio[ffmpeg]>=2.34'",
    "wandb": "pip install 'wandb>=0.31'",
}
