"""The definition of an experiment, as data: its arms, their measurements, and how to show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fastac.config import Config
from fastac.install import Extra

Number: TypeAlias = float | None  # None: not reached, such as the seconds to a return


@dataclass(frozen=True, slots=True)
class Curve:
    """A quantity measured during a run.

    Attributes:
        x: increasing, such as environment steps.
        y: as many values.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Measurement:
    """The measurement of one arm with one seed.

    Attributes:
        curves: by name.
        values: by name.
    """

    curves: Mapping[str, Curve]
    values: Mapping[str, Number]


# Trains, or measures anything else; the configuration's seed determines all randomness. It must be a module-level
# function, since it is sent to another process.
Measure: TypeAlias = Callable[[Config], Measurement]


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the compared variants.

    Attributes:
        group: arms of the same group are compared; a group is a row of panels, and a table.
        name: shown in tables and legends; the same variant has the same name in every group.
        config: complete except for the seed; `workers` determines how many cores a trial takes.
        measure: the measurement to run.
    """

    group: str
    name: str
    config: Config
    measure: Measure


@dataclass(frozen=True, slots=True)
class CurvePlot:
    """A panel of learning curves: a line per arm, the mean over seeds, and a band, its 95 % interval.

    Attributes:
        curve: the curve's name.
        title: the panel's title, after the group's name.
        x_label: with the unit.
        y_label: with the unit.
        y_scale: scale of the y-axis.
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
        values: names of the values, with their labels in the legend; each has its own colour.
        title: the panel's title, after the group's name.
        y_label: with the unit.
        x_setting: the setting that determines an arm's x, on a logarithmic axis; None: arms side by side.
        x_label: label of the x-axis.
        y_scale: scale of the y-axis.
        none_is_last: None counts as infinite, as the time to an event that did not occur; see `Column`.
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
        value: the value's name.
        label: with the unit.
        meaning: its explanation, a sentence below the tables.
        digits: after the decimal point.
        none_is_last: None counts as infinite, as the time to an event that did not occur. If any seed has None, the
            cell shows the median of all seeds: a mean of the rest would favour arms that seldom reach the event.
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
        name: its name on the command line.
        question: one sentence.
        arms: in display order.
        plots: the panels of each group.
        columns: the columns of each group's table.
        extras: fastac's extras that it requires.
    """

    name: str
    question: str
    arms: tuple[Arm, ...]
    plots: tuple[CurvePlot | ValuePlot, ...]
    columns: tuple[Column, ...]
    extras: tuple[Extra, ...] = ("experiments",)
