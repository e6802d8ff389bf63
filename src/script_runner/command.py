"""Turns the command of the configuration and a task's arguments into argv and environment. Pure."""

from collections.abc import Iterator, Mapping, Sequence

from script_runner.spec import Name, Part, Spec, Template

Values = Mapping[str, str | tuple[str, ...]]


def names(command: Sequence[Part]) -> frozenset[str]:
    """Every name the command mentions."""
    return frozenset(name for part in command for name in part.names)


def render(command: Sequence[Part], values: Values) -> tuple[str, ...]:
    """The argument vector: one value is one argument, whatever is in it; a group lacking a value is left out."""
    return tuple(
        argument
        for part in command
        if not part.is_group or all(name in values for name in part.names)
        for template in part.templates
        for argument in _arguments(template, values)
    )


def unknown(spec: Spec, values: Values) -> list[str]:
    """The names that the command cannot do without and that have no value, sorted."""
    return sorted(spec.needed - values.keys())


def values(spec: Spec, arguments: Values, *, run_folder: str, task_id: str) -> Values:
    """All that ``$NAME`` may mean in a run of this task."""
    return {**spec.environment.set, **arguments, "RUNDIR": run_folder, "TASK_ID": task_id}


def environment(inherited: Mapping[str, str], values: Values) -> dict[str, str]:
    """The script's environment; an input with many values has one a line."""
    own = {name: value if isinstance(value, str) else "\n".join(value) for name, value in values.items()}
    return {**inherited, **own}


def _arguments(template: Template, values: Values) -> Iterator[str]:
    if template.is_one_name and isinstance(many := values[template.names[0]], tuple):
        yield from many
    else:
        yield "".join(_text(part, values) for part in template.parts)


def _text(part: str | Name, values: Values) -> str:
    if isinstance(part, str):
        return part
    value = values[part.name]
    return value if isinstance(value, str) else " ".join(value)
