import io
import os
import pty

import pytest

from fastac.text import fit, fit_command, width_of


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    return Terminal()


def test_lines_break_between_words(terminal):
    text = fit("the quick brown fox jumps over\n\n  an indented line that is long\nshort", terminal)
    assert text == "the quick brown fox\njumps over\n\n  an indented line\n  that is long\nshort"


def test_a_hanging_indent_comes_on_top_of_the_lines_own(terminal):
    assert fit("  name  what it is and does", terminal, hang=6) == "  name  what it is\n        and does"


def test_a_word_longer_than_the_terminal_stays_whole(terminal):
    path = "/a-very/long-path/of-a-run/config.json"
    assert fit(f"see {path} for more", terminal) == f"see\n{path}\nfor more"


def test_commands_break_before_flags_so_that_a_shell_takes_them(terminal, monkeypatch):
    command = "fastac train CartPole-v1 --num-envs 8 --seed 3"
    text = fit_command(command, terminal)
    assert text == "  fastac train CartPole-v1 \\\n      --num-envs 8 \\\n      --seed 3"
    assert text.replace("\\\n", "").split() == command.split()
    monkeypatch.setenv("COLUMNS", "40")
    assert fit_command(command, terminal) == "  fastac train CartPole-v1 \\\n      --num-envs 8 --seed 3"
    monkeypatch.setenv("COLUMNS", "50")  # just as many
    assert fit_command(command, terminal) == f"  {command}"


def test_what_is_no_terminal_gets_the_text_as_it_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    text = "a line of more than twenty columns"
    assert fit(text, io.StringIO()) == text
    assert fit_command(text, io.StringIO(), indent=0) == text


@pytest.mark.parametrize(("columns", "width"), [("", 80), ("0", 80), ("many", 80), ("132", 132)])
def test_width_is_the_variables_or_80(monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    assert width_of(Terminal()) == width


def test_width_is_the_terminals(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    ours, theirs = pty.openpty()
    with open(theirs, "w") as stream:
        termios = pytest.importorskip("termios")
        termios.tcsetwinsize(theirs, (24, 57))
        assert width_of(stream) == 57
    os.close(ours)
