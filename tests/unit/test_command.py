"""Rendering: what a task's arguments become in argv and in the script's environment."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from script_runner import command
from script_runner.spec import Part, Spec

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


def rendered(parts: list[Any], **values: Any) -> tuple[str, ...]:
    return command.render([Part.parse(part) for part in parts], values)


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "a b",
        "it's",
        '"',
        ";rm -rf /",
        "$(id)",
        "`id`",
        "a\nb",
        "*",
        "é漢😀",
        "-x",
        "\\",
        "$RUNDIR",
        "a\tb",
    ],
)
def test_one_value_is_one_argument(value) -> None:
    """A value is exactly one argument, whatever is in it."""
    assert rendered(["run", "$A", "end"], A=value) == ("run", value, "end")


def test_text_around_a_value() -> None:
    """Text around a value stays in the same argument."""
    assert rendered(["--dir=$RUNDIR/out"], RUNDIR="/r d") == ("--dir=/r d/out",)


def test_short_name_does_not_eat_a_long_one() -> None:
    """$CITY never eats $CITY_NAME, in whatever order they are known."""
    assert rendered(["$CITY_NAME $CITY"], CITY="x", CITY_NAME="y") == ("y x",)


@pytest.mark.parametrize("value", ["$B", "${B}", "$$", "$"])
def test_value_is_never_expanded_again(value) -> None:
    """A value that looks like a name is not expanded again."""
    assert rendered(["$A-$B"], A=value, B="secret") == (f"{value}-secret",)


def test_dollar_sign() -> None:
    """$$ is one dollar sign."""
    assert rendered(["$$A", "5$$"], A="x") == ("$A", "5$")


def test_group_with_all_values() -> None:
    """A group whose values are all there gives each of its arguments."""
    assert rendered(["x", ["--a", "$A", "--b=$B"]], A="1", B="2") == ("x", "--a", "1", "--b=2")


def test_group_lacking_a_value() -> None:
    """A group is left out whole when one value in it is absent."""
    assert rendered(["x", ["--a", "$A", "--b=$B"], "y"], A="1") == ("x", "y")


def test_group_with_an_empty_value() -> None:
    """An empty value is not an absent one."""
    assert rendered(["x", ["--a", "$A"]], A="") == ("x", "--a", "")


def test_group_without_names() -> None:
    """A group without names is always there."""
    assert rendered([["x", "y"]]) == ("x", "y")


def test_many_values() -> None:
    """A name of many values that stands alone becomes one argument a value."""
    assert rendered(["x", ["--a", "$A"]], A=("1", "2 3", "")) == ("x", "--a", "1", "2 3", "")


def test_names() -> None:
    """The names of a command are those of all its parts, groups included."""
    parts = [Part.parse("$A$B"), Part.parse(["--c", "${C}", "$$D"])]

    assert command.names(parts) == {"A", "B", "C"}


@given(st.lists(ANY_TEXT, max_size=6))
def test_no_value_is_lost_or_split(values) -> None:
    """Whatever the values, each arrives whole, once, in its place."""
    known = {f"V{number}": value for number, value in enumerate(values)}

    assert rendered(["run", *(f"${name}" for name in known)], **known) == ("run", *values)


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_text_and_values_in_one_argument(before, first, second) -> None:
    """Text written with doubled dollar signs, and values, stand in one argument as they are."""
    part = before.replace("$", "$$") + "${A}${B}"

    assert rendered([part], A=first, B=second) == (before + first + second,)


@given(st.lists(ANY_TEXT))
def test_many_values_stay_apart(values) -> None:
    """Of many values none is lost or split."""
    assert rendered(["$A"], A=tuple(values)) == tuple(values)


# Environment


def spec(**environment: Any) -> Spec:
    return Spec.read({"command": ["x"], "environment": {"set": environment}})


def test_inputs_are_exported() -> None:
    """Every input stands in the script's environment under its name, with RUNDIR and TASK_ID."""
    values = command.values(spec(), {"SEASON": "winter"}, run_folder="/run/results-1", task_id="7")

    assert command.environment({"HOME": "/home/me"}, values) == {
        "HOME": "/home/me",
        "SEASON": "winter",
        "RUNDIR": "/run/results-1",
        "TASK_ID": "7",
    }


def test_environment_set() -> None:
    """environment.set goes before what is inherited, and an input of the same name before that."""
    values = command.values(spec(MODE="fast", LANG="C"), {"MODE": "slow"}, run_folder="/r", task_id="7")

    found = command.environment({"MODE": "inherited", "LANG": "inherited"}, values)

    assert (found["MODE"], found["LANG"]) == ("slow", "C")


def test_runner_names_go_first() -> None:
    """Nothing inherited stands in for RUNDIR and TASK_ID."""
    values = command.values(spec(), {}, run_folder="/r", task_id="7")

    assert command.environment({"RUNDIR": "/other", "TASK_ID": "0"}, values) == {"RUNDIR": "/r", "TASK_ID": "7"}


def test_many_values_in_the_environment() -> None:
    """Many values are exported one a line."""
    assert command.environment({}, {"A": ("1", "2")}) == {"A": "1\n2"}


def test_absent_input_is_not_exported() -> None:
    """An input that is absent has no variable."""
    assert "SEASON" not in command.values(spec(), {}, run_folder="/r", task_id="7")
