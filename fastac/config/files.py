"""Settings in JSON, TOML and YAML files: any of them, by flat names or in the sections of a run's config.json."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from fastac.config.config import Config, read_settings
from fastac.config.values import ConfigValue, JsonValue

FileFormat: TypeAlias = Literal["json", "yaml", "toml"]

_RUN_ID = "run_id"  # beside the sections in a run's config.json
_EXPONENT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")


def read_settings_file(path: Path) -> dict[str, ConfigValue]:
    """Return the settings in a file by their flat names; the text "None" means None, which TOML does not have.

    Raises:
        ValueError: the file cannot be read, or has an unknown key or a value of the wrong type; the message names both.
    """
    readers: dict[str, Callable[[str], object]] = {
        ".json": json.loads,
        ".toml": tomllib.loads,
        ".yaml": _read_yaml,
        ".yml": _read_yaml,
    }
    if path.suffix not in readers:
        raise ValueError(f"config is {str(path)!r}, expected a file that ends with {', '.join(readers)}.")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"config is {str(path)!r}, which cannot be read ({error.strerror}).") from error
    try:
        content = _parse(readers[path.suffix], text)
        if not isinstance(content, Mapping):
            raise ValueError(f"it holds a {type(content).__name__}, expected settings by name.")
        return read_settings({name: value for name, value in content.items() if name != _RUN_ID})
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def write_settings(config: Config, kind: FileFormat) -> str:
    """Return a complete configuration as the text of a file, from which `read_settings_file` reads the same."""
    plain: dict[str, dict[str, JsonValue]] = json.loads(json.dumps(config.to_dict()))
    if kind == "json":
        return json.dumps(plain, indent=2)
    if kind == "yaml":
        import yaml

        text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)
        return text.rstrip("\n")
    tables = ["\n".join([f"[{name}]", *_write_lines(section)]) for name, section in plain.items()]
    return "\n\n".join(tables)


def _parse(read: Callable[[str], object], text: str) -> object:
    try:
        return read(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"it is not {'JSON' if read is json.loads else 'TOML'} ({error}).") from error


def _read_yaml(text: str) -> object:
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads 1e-3 as a number, which is a text in YAML 1.1."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
    try:
        return yaml.load(text, Loader)  # a subclass of the safe loader
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML ({' '.join(str(error).split())}).") from error


def _write_lines(section: Mapping[str, JsonValue]) -> list[str]:
    return [f"{name} = {_to_toml(value)}" for name, value in section.items()]


def _to_toml(value: JsonValue) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_to_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_to_toml, value))}]"
    return json.dumps("None" if value is None else value)
