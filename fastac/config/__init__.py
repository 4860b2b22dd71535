"""Settings: frozen dataclasses, validated once, and the same settings as typed keyword arguments."""

from fastac.config.atari_protocols import PROTOCOLS
from fastac.config.config import (
    ActionChoice,
    AlgoConfig,
    AlgoName,
    CollectMode,
    Config,
    ExchangeName,
    OptimConfig,
    RateSchedule,
    RunConfig,
    Schedule,
    read_settings,
    setting_names,
)
from fastac.config.environments import EnvConfig, Vectorization, is_atari
from fastac.config.files import FileFormat, read_settings_file, write_settings
from fastac.config.network import ActivationName, EncoderName, ModelConfig
from fastac.config.settings import ResumeSettings, TrainSettings
from fastac.config.values import (
    OTHER_NAMES,
    OWN_ENVS,
    ConfigValue,
    EnvArguments,
    JsonValue,
    is_json,
    read_word,
    with_home,
)
from fastac.config.wrappers import WrapperFactory, read_wrapper

__all__ = [
    "OTHER_NAMES",
    "OWN_ENVS",
    "PROTOCOLS",
    "ActionChoice",
    "ActivationName",
    "AlgoConfig",
    "AlgoName",
    "CollectMode",
    "Config",
    "ConfigValue",
    "EncoderName",
    "EnvArguments",
    "EnvConfig",
    "ExchangeName",
    "FileFormat",
    "JsonValue",
    "ModelConfig",
    "OptimConfig",
    "RateSchedule",
    "ResumeSettings",
    "RunConfig",
    "Schedule",
    "TrainSettings",
    "Vectorization",
    "WrapperFactory",
    "is_atari",
    "is_json",
    "read_settings",
    "read_settings_file",
    "read_word",
    "read_wrapper",
    "setting_names",
    "with_home",
    "write_settings",
]
