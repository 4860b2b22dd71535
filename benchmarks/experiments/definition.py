"""What an experiment is: arms, what is measured in each, and how it is shown; all of it data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fastac.config import Config
from fastac.install import Extra

Number: TypeAlias = float | None  # None: it did not come to that, such as seconds to a return never reached


@dataclass(frozen=True, slots=True)
class Curve:
    """Something that is measured along a run.

    Attributes:
        x: rising, such as environment steps.
        y: as many.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one arm measured with one seed.

    Attributes:
        curves: by name.
        values: by name.
    """

    curves: Mapping[str, Curve]
    values: Mapping[str, Number]


# Trains, or does whatever else there is to measure; the configuration's seed drives all of it. A function at the top
# level of a module, as it goes to another process.
Measure: TypeAlias = Callable[[Config], Measurement]


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the things that are compared.

    Attributes:
        group: what is compared with each other has the same; a row of panels, and a table.
        name: in tables and legends, the same in other groups for the same thing.
        config: complete but for the seed; `workers` says how many cores a trial takes.
        measure: what is done with it.
    """

    group: str
    name: str
    config: Config
    measure: Measure


@dataclass(frozen=True, slots=True)
class CurvePlot:
    """A panel of learning curves: a line per arm, the mean over seeds, and a band, its 95 % interval.

    Attributes:
        curve: which.
        title: of the panel, after the group's name.
        x_label: with the unit.
        y_label: with the unit.
        y_scale: of the axis.
    """

    curve: str
    title: str
    x_label: str
    y_label: str
    y_scale: Literal["linear", "log"] = "linear"


@dataclass(frozen=True, slots=True)
class ValuePlot:
    """A panel of one value per arm: its mean over seeds, a bar for the 95 % interval, and a dot for each seed.

    Attributes:
        values: which, each a colour of its own, and the legend's word for it.
        title: of the panel, after the group's name.
        y_label: with the unit.
        x_setting: the setting that an arm's place to the right is, on a logarithmic axis; None: one after the other.
        x_label: of that axis.
        y_scale: of the axis.
        none_is_last: None is beyond every number, as in a time to something that did not happen; see `Column`.
    """

    values: Mapping[str, str]
    title: str
    y_label: str
    x_setting: str | None = None
    x_label: str = ""
    y_scale: Literal["linear", "log"] = "linear"
    none_is_last: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the tables: a value's mean, interquartile mean and 95 % interval over seeds.

    Attributes:
        value: which.
        label: with the unit.
        meaning: what it is, in a sentence below the tables.
        digits: after the point.
        none_is_last: None is beyond every number, as in a time to something that did not happen. Where there is one the
            cell has the median of all seeds: a mean of the rest would flatter whoever seldom comes there.
    """

    value: str
    label: str
    meaning: str
    digits: int = 1
    none_is_last: bool = False


@dataclass(frozen=True, slots=True)
class Experiment:
    """One question.

    Attributes:
        name: on the command line.
        question: in one sentence.
        arms: in the order in which they are shown.
        plots: of every group.
        columns: of every group's table.
        extras: those of fastac's that it cannot do without.
    """

    name: str
    question: str
    arms: tuple[Arm, ...]
    plots: tuple[CurvePlot | ValuePlot, ...]
    columns: tuple[Column, ...]
    extras: tuple[Extra, ...] = ("experiments",)
