"""From what a user gives to a run's configuration: a preset, above it files and earlier runs, above them settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeAlias, cast

from fastac.build import EnvFactory, apply_settings, default_config, shorten_rollout
from fastac.config import PROTOCOLS, Config, ConfigValue, ModelConfig, read_settings, read_settings_file
from fastac.runs.run_dir import RunDirectory

# A file, a run's directory, or the settings themselves, flat or in sections.
ConfigLike: TypeAlias = Path | str | Config | Mapping[str, object]

_NETWORK = tuple(field.name for field in fields(ModelConfig))


@dataclass(frozen=True, slots=True)
class Base:
    """Settings that stand above the preset, and below those that are given one by one.

    Attributes:
        settings: by their flat names.
        origins: the file or directory of each.
    """

    settings: dict[str, ConfigValue] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, *sources: ConfigLike | None) -> Base:
        """Read them; later sources win.

        Raises:
            ValueError: a file or a directory cannot be read, or has an unknown key or a value of the wrong type.
        """
        base = cls()
        for source in sources:
            if source is not None:
                found, origin = _read(source)
                base = cls(base.below(found), {**base.origins, **dict.fromkeys(found, origin)})
        return base

    def below(self, settings: Mapping[str, ConfigValue]) -> dict[str, ConfigValue]:
        """Return its settings with the given ones above them.

        What follows from a setting is left out where that is given: the fields of an Atari protocol, and which of
        num_envs and envs_per_worker says the other.
        """
        kept = dict(self.settings)
        if "atari_protocol" in settings:
            for name in PROTOCOLS["dqn"]:
                kept.pop(name, None)
        if kept.get("envs_per_worker") is not None or "envs_per_worker" in settings:
            kept.pop("num_envs", None)
        if "num_envs" in settings:
            kept.pop("envs_per_worker", None)
        return {**kept, **settings}

    @contextmanager
    def blamed(self, settings: Mapping[str, ConfigValue]) -> Iterator[None]:
        """Name the file in errors about its settings, but not about given ones."""
        try:
            yield
        except ValueError as error:
            origin = self.origins.get(str(error).partition(" ")[0])
            if origin and str(error).partition(" ")[0] not in settings:
                raise ValueError(f"{origin}: {error}") from error
            raise


def _read(source: ConfigLike) -> tuple[dict[str, ConfigValue], str]:
    if isinstance(source, Config):
        return source.to_flat(), "config"
    if isinstance(source, Mapping):
        return read_settings(source), "config"
    path = Path(source)
    if path.suffix and not path.is_dir():
        return read_settings_file(path), str(path)
    directory = RunDirectory.open(path)
    return directory.read_config().to_flat(), str(directory.config_path)


def configure(
    env_id: str,
    preset: str | None,
    settings: Mapping[str, ConfigValue],
    base: Base,
    factory: EnvFactory | None = None,
) -> tuple[Config, dict[str, ConfigValue]]:
    """Return a run's configuration, and the settings that were given in any way, apart from the preset.

    A run with `init_from` has the network of that run, apart from what is given.

    Raises:
        ValueError: the settings are not valid; the message names the file of a setting that stands in one.
    """
    with base.blamed(settings):
        given = base.below(settings)
        given.pop("env_id", None)  # the argument, which may be another one than that of a file
        if given.get("init_from") is not None:
            origin = Path(str(given["init_from"])).absolute()
            network = RunDirectory.open(origin).read_config().to_flat()
            given = {**{name: network[name] for name in _NETWORK}, **given, "init_from": str(origin)}
        defaults = default_config(env_id, cast("str | None", given.get("algo")), preset, factory, given)
        return shorten_rollout(apply_settings(defaults, given), is_asked="num_steps" in given), given
