"""One call of a module for many tasks, each with parameters of its own: by vmap, and where vmap cannot, by a loop."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metarl.errors import ConfigError, unknown_name
from metarl.networks.params import Params

Call = Callable[[Params, Params, tuple[Any, ...], dict[str, Any]], tuple[Any, Params]]
"""One task's parameters, its buffers, inputs and keyword arguments -> outputs, and the buffers afterwards."""

_VMAP_FAILS = (RuntimeError, ValueError, TypeError)
"""What vmap raises for an operation without a rule, for control flow that depends on data, or for odd outputs."""


@runtime_checkable
class RunsTasks(Protocol):
    """A module that itself runs many tasks at once, faster than vmap of its ``forward`` does.

    What it gives must be what ``forward`` gives for each of the tasks, and its buffers stay as they are. It is not
    asked where ``forward`` is that of a subclass, or where hooks stand in between.
    """

    def run_tasks(self, params: Params, x: Tensor, /) -> Tensor | None:
        """Outputs ``[task, ...]``; None if parts of the module are no longer those that it was made of.

        Args:
            params: all of the module's parameters, ``[task, ...]``.
            x: inputs ``[task, ...]``.
        """
        ...


class _Known:
    """What calls of a module have shown so far.

    Attributes:
        looped: training flags of all submodules with which only the loop ran.
        watched: training flags with which a call's buffers were compared with those before it.
        told_buffers: whether the user was told of buffers that calls change.
    """

    def __init__(self) -> None:
        self.looped: set[tuple[bool, ...]] = set()
        self.watched: set[tuple[bool, ...]] = set()
        self.told_buffers = False


_KNOWN: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def call(module: nn.Module, params: Params, /, *inputs: Any, **kwargs: Any) -> Any:
    """Run the module once for each task, with that task's parameters and inputs.

    All tasks run at once through ``vmap``, or in the module's own way (:class:`RunsTasks`). Modules that vmap cannot
    run (LSTM, dropout, branches that depend on data) run task by task instead, with the same results; a warning says so
    once for each module.

    Parameters that ``params`` lacks, as frozen ones, are the module's own. Every task begins with the module's buffers
    (running statistics, power iterations) and changes a copy that is dropped after the call: the module's stay as they
    are, and a warning names those that a call would have changed. So BatchNorm normalises by the task's own batch in
    training mode, and by the module's running statistics in evaluation mode.

    Args:
        module: any; its parameters and buffers are the same objects, with the same values, after the call.
        params: stacked parameters, ``[task, ...]``, under the names of ``module.named_parameters()``.
        *inputs: tensors ``[task, ...]``, also inside tuples and dicts; a list holds one entry for each task, whose
            sizes may differ; anything else is given to every task as it is.
        **kwargs: likewise.

    Returns:
        The module's outputs, ``[task, ...]``; with a list among the inputs, a list of the outputs of each task.

    Raises:
        ConfigError: for parameters that the module does not have; for a module that changes its inputs.
        ValueError: for inputs without an entry for each task.
    """
    parameter_names = {name for name, _ in module.named_parameters()}
    for name in params:
        if name not in parameter_names:
            raise unknown_name(f"parameter of {type(module).__name__}", name, parameter_names)
    if not params:
        raise ValueError("call needs the stacked parameters of the tasks, got none.")
    num_tasks = len(next(iter(params.values())))
    for name, value in params.items():
        _require_tasks(value, num_tasks, f"the parameter {name!r}")
    for index, given in enumerate(inputs):
        _require_tasks(given, num_tasks, f"input {index}")
    for name, given in kwargs.items():
        _require_tasks(given, num_tasks, f"the keyword argument {name!r}")
    with keeping(module, (inputs, kwargs)):
        if isinstance(module, RunsTasks) and len(inputs) == 1 and isinstance(inputs[0], Tensor) and not kwargs:
            shared = {name: value.expand(num_tasks, *value.shape) for name, value in module.named_parameters()}
            if _is_its_own(module) and (out := module.run_tasks(shared | params, inputs[0])) is not None:
                return out
        buffers = {name: value.detach() for name, value in module.named_buffers()}

        places = _places(module)

        def run(own: Params, kept: Params, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Params]:
            filled = _filled(places, {**kept, **own})
            out = torch.func.functional_call(module, filled, args, named, tie_weights=False)
            return out, {name: filled[name] for name in kept}

        with _plain_attention() if torch.is_grad_enabled() else contextlib.nullcontext():
            return _call_tasks(module, run, params, buffers, inputs, kwargs)


def call_shared(module: nn.Module, x: Tensor) -> Tensor:
    """The module's output for each task by itself, with the module's own parameters, ``[task, ...]``.

    By vmap, and where vmap cannot by a loop over tasks, of which a warning tells once for each module.

    Args:
        module: its buffers change as calls of its ``forward`` change them.
        x: ``[task, ...]``.
    """
    known = _KNOWN.setdefault(module, _Known())
    flags = tuple(part.training for part in module.modules())
    if flags not in known.looped:
        try:
            out: Tensor = torch.func.vmap(module, randomness="different")(x)
        except _VMAP_FAILS as error:
            _tell_loop(module, known, flags, error)
        else:
            return out
    return torch.stack([module(own) for own in x])


@contextlib.contextmanager
def keeping(module: nn.Module, inputs: Any) -> Iterator[None]:
    """Inside the block ``module`` is called with ``inputs``, which are used again afterwards.

    Raises:
        ConfigError: if it changes a tensor among them.
    """
    tensors = [value for value in _tensors(inputs) if not value.is_inference()]  # Those have no version.
    versions = [value._version for value in tensors]
    yield
    if versions != [value._version for value in tensors]:
        raise ConfigError(
            f"the network {type(module).__name__} changes its input in place, which is used again after it. Write "
            "x = x - 0.5 for x -= 0.5 or x.sub_(0.5), and leave out inplace=True in what the input meets first."
        )


def call_with(module: nn.Module, values: Mapping[str, Tensor], *inputs: Any) -> Any:
    """The module's output with other parameters than its own, by the names of ``module.named_parameters()``."""
    return torch.func.functional_call(module, _filled(_places(module), values), inputs, tie_weights=False)


def expect_buffers(module: nn.Module) -> None:
    """Do not tell that calls of ``module`` change buffers: whoever calls it knows, and sees to them."""
    _KNOWN.setdefault(module, _Known()).told_buffers = True


@torch.no_grad()
def mean_buffers(module: nn.Module, params: Params, /, *inputs: Any) -> Params:
    """The module's buffers after a call as :func:`call` makes it, averaged over tasks; whole numbers are the first's.

    Args:
        module: as it is, also in training mode; its own buffers stay as they are.
        params: stacked parameters, ``[task, ...]``.
        *inputs: ``[task, ...]``.
    """
    places = _places(module)

    def run(own: Params, kept: Params, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Params]:
        filled = _filled(places, {**kept, **own})
        torch.func.functional_call(module, filled, args, named, tie_weights=False)
        return kept, {name: filled[name] for name in kept}

    begun = {name: value.detach() for name, value in module.named_buffers()}
    after, _ = _looped(run, params, begun, inputs, {}, watch=False)
    return {
        name: torch.stack([own[name] for own in after]).mean(0) if value.is_floating_point() else after[0][name]
        for name, value in begun.items()
    }


def _is_its_own(module: nn.Module) -> bool:
    """Whether ``forward`` is still the function that the module's ``run_tasks`` was written for."""
    both = {"forward", "run_tasks"}
    definer = next(kind for kind in type(module).__mro__ if both & vars(kind).keys())
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    return (
        both <= vars(definer).keys()
        and "forward" not in vars(module)
        and not any(getattr(part, kind) for part in module.modules() for kind in hooks)
    )


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention of single operations: the fused kernels lack second derivatives, the fast path of encoders all."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _call_tasks(
    module: nn.Module, run: Call, params: Params, buffers: Params, inputs: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Every task's outputs, in the first way that works."""
    known = _KNOWN.setdefault(module, _Known())
    flags = tuple(part.training for part in module.modules())
    unequal = any(_holds_list(value) for value in (*inputs, *kwargs.values()))
    watch = flags not in known.watched
    reason: Exception | None = None
    if not unequal and flags not in known.looped:
        # One copy of the buffers for all tasks takes less memory; where a call changes them, vmap asks for one each.
        for stacked in (False, True) if buffers else (False,):
            try:
                out, changed = _vmapped(run, params, buffers, inputs, kwargs, stacked=stacked, watch=watch)
            except _VMAP_FAILS as error:
                reason = reason or error
            else:
                known.watched.add(flags)
                _tell_buffers(module, known, changed)
                return out
    outs, changed = _looped(run, params, buffers, inputs, kwargs, watch=watch)
    known.watched.add(flags)
    if unequal:
        _tell_buffers(module, known, changed)
        return outs
    result = _stacked(outs)
    if reason is not None:
        _tell_loop(module, known, flags, reason)
    _tell_buffers(module, known, changed)
    return result


def _vmapped(
    run: Call,
    params: Params,
    buffers: Params,
    inputs: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    stacked: bool,
    watch: bool,
) -> tuple[Any, set[str]]:
    """Outputs of all tasks at once, and, if ``watch`` is set, the names of the buffers that the call changed."""
    num_tasks = len(next(iter(params.values())))
    begun = {name: value.expand(num_tasks, *value.shape) if stacked else value for name, value in buffers.items()}
    copies = {name: value.clone() for name, value in begun.items()}
    replaced: set[str] = set()

    def one(own: Params, kept: Params, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        out, after = run(own, kept, args, named)
        replaced.update(name for name, value in after.items() if value is not kept[name])
        return out

    of_buffers = dict.fromkeys(copies, 0 if stacked else None)
    in_dims = (dict.fromkeys(params, 0), of_buffers, _dims(inputs), _dims(kwargs))
    out = torch.func.vmap(one, in_dims=in_dims)(params, copies, inputs, kwargs)
    return out, replaced | {name for name, value in copies.items() if watch and not torch.equal(value, begun[name])}


def _looped(
    run: Call, params: Params, buffers: Params, inputs: tuple[Any, ...], kwargs: dict[str, Any], *, watch: bool
) -> tuple[list[Any], set[str]]:
    """Outputs of each task, one after the other, and the names of changed buffers as in :func:`_vmapped`."""
    outs: list[Any] = []
    changed: set[str] = set()
    for task in range(len(next(iter(params.values())))):
        copies = {name: value.clone() for name, value in buffers.items()}
        own = {name: value[task] for name, value in params.items()}
        out, after = run(own, copies, _of_task(inputs, task), _of_task(kwargs, task))
        changed |= {name for name, value in after.items() if watch and not torch.equal(value, buffers[name])}
        outs.append(out)
    return outs, changed


def _places(module: nn.Module) -> dict[str, str]:
    """Every place of a parameter or buffer by its full name, and the first name of what stands there.

    A module that several paths lead to is there once, a tensor that several modules share as often as they hold it.
    """
    places: dict[str, str] = {}
    first: dict[int, str] = {}
    for prefix, part in module.named_modules():
        held = (
            *part.named_parameters(prefix, recurse=False, remove_duplicate=False),
            *part.named_buffers(prefix, recurse=False, remove_duplicate=False),
        )
        for name, value in held:
            places[name] = first.setdefault(id(value), name)
    return places


def _filled(places: Mapping[str, str], values: Mapping[str, Tensor]) -> Params:
    """The value for every place.

    Ties are in ``places``: torch's own way of tying would fill the places of a module that two paths lead to twice, and
    then leave plain tensors in it instead of its parameters.
    """
    return {place: values[name] for place, name in places.items() if name in values}


def _require_tasks(value: Any, num_tasks: int, what: str) -> None:
    if isinstance(value, tuple):
        for item in value:
            _require_tasks(item, num_tasks, what)
    elif isinstance(value, Mapping):
        for item in value.values():
            _require_tasks(item, num_tasks, what)
    elif isinstance(value, Tensor):
        if value.dim() == 0 or len(value) != num_tasks:
            raise ValueError(
                f"{what} must have the shape [task, ...] with {num_tasks} tasks, got {tuple(value.shape)}."
            )
    elif isinstance(value, list) and len(value) != num_tasks:
        raise ValueError(f"{what} must hold one entry for each of {num_tasks} tasks, got a list of {len(value)}.")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def _holds_list(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(_holds_list(item) for item in value)
    if isinstance(value, Mapping):
        return any(_holds_list(item) for item in value.values())
    return isinstance(value, list)


def _of_task(value: Any, task: int) -> Any:
    """What one task sees of an input."""
    if isinstance(value, tuple):
        return _rebuilt(value, [_of_task(item, task) for item in value])
    if isinstance(value, Mapping):
        return {name: _of_task(item, task) for name, item in value.items()}
    return value[task] if isinstance(value, Tensor | list) else value


def _dims(value: Any) -> Any:
    """The same for vmap: the axis of tasks, or None for what all tasks are given."""
    if isinstance(value, tuple):
        return _rebuilt(value, [_dims(item) for item in value])
    if isinstance(value, Mapping):
        return {name: _dims(item) for name, item in value.items()}
    return 0 if isinstance(value, Tensor) else None


def _stacked(outs: list[Any]) -> Any:
    """Outputs of single tasks with a task axis in front, as vmap gives them."""
    some = outs[0]
    if isinstance(some, Tensor):
        return torch.stack(outs)
    if isinstance(some, tuple | list):
        return _rebuilt(some, [_stacked(list(items)) for items in zip(*outs, strict=True)])
    if isinstance(some, Mapping):
        return {name: _stacked([out[name] for out in outs]) for name in some}
    raise TypeError(f"a module must return tensors, or tuples, lists or dicts of them, got {type(some).__name__}.")


def _rebuilt(like: Any, items: list[Any]) -> Any:
    """A tuple or list of the kind of ``like``, named tuples included."""
    return type(like)(*items) if hasattr(like, "_fields") else type(like)(items)


def _tell_loop(module: nn.Module, known: _Known, flags: tuple[bool, ...], reason: Exception) -> None:
    if not known.looped:
        why = str(reason).strip().partition("\n")[0]
        warnings.warn(
            f"vmap cannot run {type(module).__name__} for all tasks at once ({why}); it runs task by task instead, "
            "with the same results, but more slowly.",
            stacklevel=4,
        )
    known.looped.add(flags)


def _tell_buffers(module: nn.Module, known: _Known, changed: set[str]) -> None:
    if changed and not known.told_buffers:
        known.told_buffers = True
        warnings.warn(
            f"a call of {type(module).__name__} changes its buffers {', '.join(sorted(changed))}: every task changes "
            "a copy, which is dropped after the call, and the module's own stay as they are.",
            stacklevel=4,
        )
