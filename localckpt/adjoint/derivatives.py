"""A script's derivatives, for ``localckpt verify``: when one is computed, within which bounds, after what recording.

:mod:`localckpt.adjoint.patches` puts these functions into pyadjoint, for that command only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

__all__ = ["Request", "on_derivative"]


@dataclass(frozen=True)
class Request:
    """A call of ``ReducedFunctional.derivative``.

    Attributes
    ----------
    functional : pyadjoint.reduced_functional.AbstractReducedFunctional
    adj_input : object
        As in that call.
    bounds : list of tuple or None
        Lower and upper bound of each control, if an optimiser was given bounds.
    recording : float
        Seconds from the first to the last block of its tape; 0 if unknown.
    """

    functional: Any
    adj_input: Any
    bounds: list[tuple[Any, Any]] | None
    recording: float


_receivers: list[Callable[[Request], None]] = []
_bounds: list[tuple[Any, list[tuple[Any, Any]]]] = []  # functional, and its bounds
_recordings: dict[int, tuple[float, float]] = {}  # of a tape, by id: when its first and its last block were added


def on_derivative(receiver: Callable[[Request], None]) -> None:
    """Have `receiver` called before each derivative, its own ones included. Not collective."""
    _receivers.append(receiver)


def derivative(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """Tell the receivers, then compute the derivative."""
    adj_input = args[0] if args else kwargs.get("adj_input", 1.0)
    bounds = next((bounds for functional, bounds in reversed(_bounds) if functional is self), None)
    first, last = _recordings.get(id(getattr(self, "tape", None)), (0.0, 0.0))
    for receiver in _receivers:
        receiver(Request(self, adj_input, bounds, last - first))
    return original(self, *args, **kwargs)


def init_optimization_problem(original: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
    """Note the bounds of a problem for TAO, ROL or IPOPT."""
    original(self, *args, **kwargs)
    if self.bounds is not None:
        _bounds.append((self.reduced_functional, list(self.bounds)))


def serialise_bounds(original: Callable[..., Any], functional: Any, bounds: Any) -> Any:
    """Note the bounds that ``minimize`` was given: ``(lower, upper)``, or lists of these for several controls."""
    serialised = original(functional, bounds)  # raises an exception if they are none
    lower, upper = (one if isinstance(one, (list, tuple)) else [one] for one in bounds)
    _bounds.append((getattr(functional, "rf", functional), list(zip(lower, upper))))
    return serialised


def add_block(original: Callable[..., int], self: Any, block: Any) -> int:
    """Note when a tape is recorded."""
    index, now = original(self, block), monotonic()
    first = now if index == 0 else _recordings.get(id(self), (now, now))[0]
    _recordings[id(self)] = first, now
    return index
