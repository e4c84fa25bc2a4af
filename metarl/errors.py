"""Errors that say what came, what was expected and what the choices are."""

from __future__ import annotations

import collections
import difflib
import reprlib
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from metarl.version import DISTRIBUTION

_MOST_LISTED = 16
"""Choices of one group (what stands before a slash) that an error lists one by one."""


class MetarlError(Exception):
    """Base of every error that metarl raises on purpose; the command line prints it without a traceback."""


@contextmanager
def told_errors() -> Iterator[None]:
    """End the program with one line instead of a traceback; also a decorator, for a benchmark's ``main``.

    Raises:
        SystemExit: in place of a :class:`MetarlError`.
    """
    try:
        yield
    except MetarlError as error:
        raise SystemExit(f"error: {told(error)}") from error


def told(error: BaseException) -> str:
    """An error's sentence and the notes that were added to it."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


class ConfigError(MetarlError, ValueError):
    """A setting, name or argument that cannot work."""


class CheckFailedError(ConfigError):
    """What a check found; one sentence per problem.

    Args:
        subject: what was checked, and in how many ways it is wrong.
        problems: what came and what was expected, a sentence each.
    """

    def __init__(self, subject: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        listed = "".join(f"\n  {number}. {problem}" for number, problem in enumerate(problems, 1))
        super().__init__(f"{subject}:{listed}")


class TaskCheckError(CheckFailedError):
    """A task distribution with faults."""

    def __init__(self, distribution_id: str, problems: Sequence[str]) -> None:
        super().__init__(f"{distribution_id} has {len(problems)} problem(s)", problems)


class AgentCheckError(CheckFailedError):
    """An agent that breaks the contract."""

    def __init__(self, agent: str, problems: Sequence[str]) -> None:
        super().__init__(f"{agent} breaks the contract of Agent in {len(problems)} way(s)", problems)


class LearnerCheckError(CheckFailedError):
    """A few-shot learner that breaks the contract."""

    def __init__(self, learner: str, problems: Sequence[str]) -> None:
        super().__init__(f"{learner} breaks the contract of Learner in {len(problems)} way(s)", problems)


class NonFiniteError(MetarlError, FloatingPointError):
    """A NaN or infinity turned up in rewards, observations, a loss or a parameter."""


class WorkerError(MetarlError, RuntimeError):
    """A worker process died, hung or raised."""


class ReplayError(MetarlError, RuntimeError):
    """A replayed episode is not the recorded one."""


class CheckpointError(MetarlError, RuntimeError):
    """A checkpoint could not be written or read."""


class RunInUseError(CheckpointError):
    """Another process has locked the run."""


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> ConfigError:
    """An error for an unknown ``name``, with the nearest match and every valid choice."""
    in_order = list(choices)
    choices = sorted(in_order)
    # "maml" is the beginning of several names, of which the first is meant, however near others are.
    begun = [choice for choice in in_order if name and choice.startswith(name)]
    nearest = begun or difflib.get_close_matches(name, choices, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return ConfigError(f"unknown {kind} {name!r}.{hint} Valid choices: {', '.join(folded(choices))}.")


def missing_extra(package: str, extra: str, what: str) -> ConfigError:
    """An error for ``what`` (the subject of a sentence), which needs ``package``, of one of metarl's extras."""
    return ConfigError(
        f"{what} needs the package {package}, which is not installed: pip install '{DISTRIBUTION}[{extra}]'"
    )


def raised(what: str, error: BaseException, title: str = "Traceback") -> str:
    """A sentence on foreign code that raised, with its traceback below unless the error is metarl's own.

    Args:
        what: subject and predicate, e.g. ``"make_env raised with task 3"``.
        error: caught by the function that called the foreign code, whose own frame is left out.
        title: stands above the traceback.
    """
    sentence = f"{what}: {type(error).__name__}: {error}"
    if isinstance(error, MetarlError):
        return sentence  # It says what was wrong with what the foreign code returned; the lines would be metarl's.
    inner = error.__traceback__ and error.__traceback__.tb_next
    lines = traceback.format_exception(type(error), error, inner or error.__traceback__)
    text = "".join(lines).removeprefix("Traceback (most recent call last):\n").rstrip()
    return f"{sentence}\n\n{title}:\n{text}"


def folded(names: Sequence[str]) -> list[str]:
    """``names`` with large groups of the form ``group/name`` counted instead of listed."""
    groups = collections.Counter(name.split("/")[0] for name in names if "/" in name)
    large = {group for group, count in groups.items() if count > _MOST_LISTED}
    listed = [name for name in names if name.split("/")[0] not in large]
    return listed + [f"{group}/... ({groups[group]} of them)" for group in sorted(large)]


def require_kind(name: str, value: object, kind: type, hint: str) -> None:
    """Refuse a value of another class.

    Args:
        name: of the argument.
        value: what came.
        kind: what was expected.
        hint: how to come by it.

    Raises:
        ConfigError: naming both, with the hint.
    """
    if not isinstance(value, kind):
        raise ConfigError(
            f"{name} must be of the class {kind.__name__}, got the {type(value).__name__} {reprlib.repr(value)}; "
            f"{hint}."
        )
