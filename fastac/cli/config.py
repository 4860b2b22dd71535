"""fastac config: the complete configuration of a run, as a file for `fastac train --config`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastac.cli.train import read_settings
from fastac.config import FileFormat, write_settings
from fastac.garbage import loading


@dataclass(frozen=True)
class ConfigOptions:
    """Print the complete configuration of a run, which fastac train --config FILE trains. It trains nothing itself."""

    preset: str | None = None
    """Name of a preset, instead of the one named like the algorithm (see fastac list)."""
    config: Path | None = None
    """File of settings (.json, .yaml, .toml), flat or as in config.json; flags win over it, it wins over the preset."""
    from_: Path | None = None
    """Directory of a run whose configuration to begin with. ENV_ID may be left out."""
    format: FileFormat = "json"
    """Format of the file: json, yaml or toml."""


def config(words: Sequence[str]) -> int:
    """Run `fastac config`."""
    with loading():
        options, asked = read_settings("config", ConfigOptions, words)
    print(write_settings(asked.config, options.format))
    return 0
