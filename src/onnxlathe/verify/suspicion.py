"""Asking quickly whether other states of a model are wrong like one that is."""

from __future__ import annotations

from collections.abc import Callable

from onnxlathe.model import Model
from onnxlathe.model.interface import interface_of
from onnxlathe.model.model import LOWERED

from .original import Original
from .piecewise import Allowed, Suspect, is_divisible, weight_bytes
from .runtime import RuntimeFailure
from .session import Session

_WORTH_DIVIDING = 1 << 27  # bytes of weights from which on the segment that is wrong is looked for first


def in_suspect_segment(
    wrong: Model,
    original: Original,
    session: Session,
    *,
    suspect: Suspect | None,
    allowed: Allowed,
    whole: Callable[[Model], bool],
) -> Callable[[Model], bool] | None:
    """Whether a state of a model is wrong in the segment in which `wrong` is.

    Args:
        wrong: a model that differs from the original.
        original: what it is compared with.
        session: where models are run.
        suspect: where it first differs, if that is known.
        allowed: the tolerances.
        whole: whether a model is wrong, by comparing all of it: asked where the segment cannot be run.

    Returns:
        None where the model cannot be divided, is too small for that, or is right in every segment.
    """
    model = original.model()
    plain = not original.unchecked and not interface_of(wrong.ir).since(original.interface)
    if not plain or not original.references or not is_divisible(model):
        return None
    if LOWERED in wrong.ir.metadata_props:
        return None
    pieces = original.pieces
    if pieces is None:
        weights = weight_bytes(model)
        if weights < _WORTH_DIVIDING:
            return None
        pieces = original.divided(model, weights // 8)
        for number, reference in enumerate(original.references):
            pieces.run(reference.inputs, session.folder / f"again{number}.npz")
    place = suspect or pieces.compare(wrong, allowed).suspect
    if place is None:
        return None

    def is_wrong(model: Model) -> bool:
        try:
            return pieces.is_wrong(model, place, allowed)
        except RuntimeFailure:
            return whole(model)

    return is_wrong
