"""Objects by name: ``module:attribute``, in both directions, for agents, learners and tasks that a user wrote."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from metarl.errors import ConfigError, MetarlError, unknown_name

Config = TypeVar("Config")

_importing: list[str] = []
"""Modules that :func:`load_attribute` is importing right now, the innermost last."""


def load_attribute(name: str, kind: str, accepts: Callable[[Any], bool]) -> Any:
    """The object called ``name``, as ``module:attribute``; modules are also looked for in the working directory.

    Args:
        name: e.g. ``"my_tasks:pendulums"``.
        kind: what is expected, for messages, e.g. ``"TaskDistribution"``.
        accepts: whether an object is of that kind.

    Raises:
        ConfigError: for a module that cannot be imported, with the line where it failed; for an attribute that is
            missing or of another kind, with the attributes that would do.
    """
    module_name, _, attribute = name.partition(":")
    _see_working_directory()
    expected = f"expected module:attribute, with the module in {os.getcwd()} or installed"
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigError(f"{module_name!r} of {name!r} is not a module's name; {expected}.")
    failed = f"the module {module_name!r} of {name!r} failed while it was imported"
    try:
        if attribute_name("__main__", attribute) == name:
            # The script that runs would run once more, as a second module.
            module = sys.modules["__main__"]
        else:
            with _while_importing(module_name):
                module = importlib.import_module(module_name)
    except MetarlError as error:
        raise ConfigError(f"{failed}: {error}") from error
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            stem = module_name.removesuffix(".py")
            hint = f" Leave out the '.py': {stem}:{attribute}." if stem != module_name else ""
            raise ConfigError(f"cannot import the module {module_name!r} of {name!r}; {expected}.{hint}") from error
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"{failed}: {type(error).__name__}: {error} ({place.filename}, line {place.lineno})."
        ) from error
    found = {key: value for key, value in vars(module).items() if accepts(value)}
    if attribute not in found:
        held = getattr(module, attribute, None)
        got = f"the class {attribute}" if isinstance(held, type) else type(held).__name__
        got = got if hasattr(module, attribute) else "nothing"
        raise ConfigError(
            f"{name!r}: expected a {kind}, found {got}. "
            f"What {module_name} has of that kind: {', '.join(found) or 'nothing'}."
        )
    return found[attribute]


def require_trust(name: str, part: str, where: Path | str, *, trusted: bool, folder: Path | None = None) -> None:
    """Keep a file that somebody else may have written from choosing the code that runs here.

    An id of metarl's own and a module that this process has imported already need no trust: no new code would run.

    Args:
        name: an agent or tasks as a file names them, e.g. ``"my_tasks:pendulums"``.
        part: ``"agent"`` or ``"tasks"``.
        where: the file.
        trusted: whether the user named the module, or said that modules of this file may be imported.
        folder: a run's folder, which is data: a module inside it is refused, trusted or not.

    Raises:
        ConfigError: saying what to type.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or module_name in sys.modules or attribute_name("__main__", attribute) == name:
        return
    _see_working_directory()
    places = _locate(module_name)
    if folder is not None and any(_is_inside(place, folder) for place in places):
        raise ConfigError(
            f"{part} {name!r}: the module {module_name!r} lies inside the run folder {folder}, and nothing in a run "
            "folder is ever imported, since a run may come from somebody else. If you know what it does, move it out "
            "of there."
        )
    # A module that is not there runs nothing; importing it says so.
    if places and not trusted:
        raise ConfigError(
            f"{where} names the {part} {name!r}, and importing the module {module_name!r} ({places[-1]}) runs its "
            f"code. If you trust it, add --{part} {name}, or --trust-tasks for every module that this file names."
        )


def names_module_of(name: str, named: Collection[str | None]) -> bool:
    """Whether one of the names that a user typed is ``name``, or lies in the same module, whose code is trusted so."""
    module_name, colon, _ = name.partition(":")
    return name in named or any(colon and other and other.partition(":")[:2] == (module_name, ":") for other in named)


def is_module(name: str) -> bool:
    """Whether :func:`load_attribute` would find a module of this name; nothing is imported."""
    _see_working_directory()
    return all(part.isidentifier() for part in name.split(".")) and bool(_locate(name))


def _see_working_directory() -> None:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def _is_inside(place: Path, folder: Path) -> bool:
    """Whether a file lies in a folder, by its own name or by what it links to."""
    return place.resolve().is_relative_to(folder.resolve()) or place.absolute().is_relative_to(folder.absolute())


def _locate(module_name: str) -> list[Path]:
    """Files and folders that importing a module would read, packages around it first; nothing is imported.

    The list ends at the last package that is found; it is empty for a module that cannot be imported at all.
    """
    top, *inner = module_name.split(".")
    spec = importlib.util.find_spec(top) if top else None
    if spec is None:
        return []
    places: list[Path] = []
    search = list(spec.submodule_search_locations or [])
    places += [Path(place) for place in ([spec.origin] if spec.has_location and spec.origin else search)]
    name = top
    for part in inner:
        name += f".{part}"
        # Asking importlib for the whole name would import the packages around it.
        finders = [finder for entry in search if (finder := pkgutil.get_importer(entry)) is not None]
        specs = [found for finder in finders if (found := finder.find_spec(name)) is not None]
        search = [place for found in specs for place in found.submodule_search_locations or []]
        places += [Path(found.origin) for found in specs if found.has_location and found.origin]
        places += [Path(place) for place in search]
    return places


def attribute_name(module_name: str, attribute: str) -> str | None:
    """The name by which :func:`load_attribute` finds an attribute of an imported module in another process.

    Args:
        module_name: as in ``sys.modules``; the script that was started is called ``__main__`` there.
        attribute: a name in that module.

    Returns:
        ``module:attribute``; None for what another process would not find so: in a script outside the working
        directory, in a session without a file, or below ``if __name__ == "__main__":``.
    """
    if module_name == "__main__":
        main = sys.modules["__main__"]
        script = Path(getattr(main, "__file__", None) or os.devnull).resolve()
        if not script.is_file() or not _binds_on_import(script.read_bytes(), attribute):
            return None
        spec = getattr(main, "__spec__", None)
        if spec is not None:
            module_name = spec.name  # Started by python -m.
        elif script.parent == Path.cwd() and script.stem.isidentifier():
            module_name = script.stem
        else:
            return None
    return f"{module_name}:{attribute}"


def _binds_on_import(source: bytes, name: str) -> bool:
    """Whether a script gives ``name`` a value also when it is imported and not started; False if it is no Python."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError):
        return False
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound = {statement.name}
        elif isinstance(statement, ast.If) and "__name__" in _names(statement.test, ast.Load):
            continue
        else:
            bound = _names(statement, ast.Store)
        if name in bound:
            return True
    return False


def _names(tree: ast.AST, context: type[ast.expr_context]) -> set[str]:
    """Variables that are read or bound anywhere in ``tree``; what it imports is bound."""
    nodes = list(ast.walk(tree))
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, context)}
    if context is ast.Store:
        names |= {(node.asname or node.name).split(".")[0] for node in nodes if isinstance(node, ast.alias)}
    return names


def load_config(
    name: str, known: Mapping[str, type[Config]], base: type[Config], kind: str, example: str
) -> type[Config]:
    """A class of settings: one of metarl's own, or a user's as ``module:attribute``.

    Args:
        name: as users write it.
        known: metarl's own, by name.
        base: class that the user's must be a concrete subclass of.
        kind: what the settings are of, for messages, e.g. ``"agent"``.
        example: a name of a user's own, for messages.

    Raises:
        ConfigError: for an unknown name, a module that cannot be imported, an attribute of another kind, or a class
            whose fields cannot be read or lack defaults.
    """
    if ":" not in name:
        if name not in known:
            error = unknown_name(kind, name, known)
            raise ConfigError(f"{error} {kind.capitalize()}s of your own: module:attribute, e.g. {example}.")
        return known[name]

    def accepts(value: Any) -> bool:
        return isinstance(value, type) and issubclass(value, base) and not inspect.isabstract(value)

    found: type[Config] = load_attribute(name, f"concrete subclass of {base.__name__}", accepts)
    if "__annotations__" in vars(found) and "__dataclass_fields__" not in vars(found):
        raise ConfigError(f"{name!r}: its fields need the decorator @dataclasses.dataclass(frozen=True) on the class.")
    required = [
        field.name
        for field in dataclasses.fields(found)  # type: ignore[arg-type]
        if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if required:
        raise ConfigError(f"{name!r}: every field needs a default, and these have none: {', '.join(required)}.")
    return found


def config_name(config: object, known: Mapping[str, type[Any]]) -> str:
    """The name by which :func:`load_config` finds the class of ``config`` again, in this process or another one.

    Raises:
        ConfigError: if its class is neither metarl's own nor held by a module that can be imported.
    """
    kind = type(config)
    for name, candidate in known.items():
        if candidate is kind:
            return name
    module = sys.modules.get(kind.__module__)
    own = attribute_name(kind.__module__, kind.__name__) if getattr(module, kind.__name__, None) is kind else None
    if own is None:
        raise ConfigError(
            f"the class {kind.__qualname__} is not held by a module that can be imported from this folder"
        )
    return own


def find_attribute(value: object) -> str | None:
    """``module:attribute`` of an object that an imported module holds; None if none does, or none that can be named."""
    # Names of the script that was started, of which multiprocessing knows another one, come last: importing the script
    # runs it again.
    main = sys.modules["__main__"]
    modules = [item for item in sys.modules.items() if item[1] is not main]
    for module_name, module in [*modules, ("__main__", main)]:
        for attribute, held in list(getattr(module, "__dict__", {}).items()):
            if held is value and (name := attribute_name(module_name, attribute)) is not None:
                return name
    return None


@contextlib.contextmanager
def _while_importing(module_name: str) -> Iterator[None]:
    _importing.append(module_name)
    try:
        yield
    finally:
        _importing.pop()


def refuse_while_importing(what: str) -> None:
    """Keep a script from training once more when it is imported only for the agent or the tasks that it defines.

    Raises:
        ConfigError: if :func:`load_attribute` is importing a module now.
    """
    if _importing:
        raise ConfigError(
            f'{_importing[-1]}.py {what} while it is imported. Move that part below `if __name__ == "__main__":`, '
            "so that its agent and its tasks can be imported alone."
        )
