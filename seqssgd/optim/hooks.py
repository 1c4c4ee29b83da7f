"""What a method writes: where its passes are, and what becomes of their gradients.

A method is a class with :meth:`~Hooks.pass_signs` and :meth:`~Hooks.perturb`; all else has a default. One step calls

======================  =============================================================================================
``before_loop``         the gradients are those of loops before, if any
``perturb``             for each pass: moves the weights
``after_pass``          for each pass, its ``backward()`` done and the weights still moved
``after_loop``          the weights are back; ``.grad`` holds the weighted mean
``before_step``         the gradients are those to step on, clipped and unscaled as may be
``after_step``          the base optimizer has stepped
======================  =============================================================================================

and the first four anew for every loop over passes, where gradients are accumulated over several. Hooks run without
autograd. They get the weights as a list of :class:`Entry`, in the order of the groups; it is the same list in all hooks
of a loop. Hooks of random noise (its draws, its shape) are :class:`~seqssgd.optim.RandomNoise`'s.

What changes from step to step belongs into an object that the method makes in ``__init__`` and changes in place, not
into attributes that are set anew: proxies of an optimizer, as trainers make them, share its objects.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .delegate import DelegatingOptimizer
from .entry import Entry
from .gradients import Gradients
from .halves import Halves
from .part import Pass


class Hooks(DelegatingOptimizer):
    """The hooks of a multi-pass optimizer, with what they do if a method does not write them."""

    @property
    def averaged(self) -> nn.Module | None:
        """The model to evaluate, where that is another than the one that is trained; else None."""
        return None

    def entries(self) -> list[Entry]:
        """The weights that are moved, those with a level above 0: in a loop over passes, as they were at its start."""
        if self._run.entries is not None:
            return self._run.entries
        return self._entries(moved_only=True)

    def _entries(self, moved_only: bool) -> list[Entry]:
        """The weights that are trained, whatever their level, or those that are moved."""
        found, first = [], 0
        for index, group in enumerate(self.param_groups):
            params, level = group["params"], group.get(self.level_key)
            if level or not moved_only:
                layers = group.get("layers") or range(len(params))
                found += [
                    Entry(p, group, float(level or 0), f"{index}.{layer}", number)
                    for number, (layer, p) in enumerate(zip(layers, params, strict=True), first)
                    if p.requires_grad
                ]
            first += len(params)
        return found

    # ---- the passes of a step --------------------------------------------------------------------------------------

    def pass_signs(self) -> Sequence[int]:
        """The sign of each pass of a step, in order; 0 for one at the weights themselves."""
        raise NotImplementedError(f"{type(self).__name__} has no pass_signs, which says how many passes a step has")

    def perturb(self, part: Pass, entries: list[Entry]) -> None:
        """Moves every ``entry.weight`` in place to where ``part`` takes its gradient. They are where the pass before
        had them, and ``entry.gradient`` is the sum of the gradients so far.
        """
        raise NotImplementedError(f"{type(self).__name__} has no perturb, which moves the weights of a pass")

    def pass_weights(self, passes: int, share: Halves | None) -> Sequence[float]:
        """How much each pass counts in the step's gradient, the last one not 0.

        Args:
            passes: how many there are.
            share: how the minibatch is divided among them, as :meth:`share` has it.
        """
        return [1 / passes] * passes if share is None else share.weights()

    def share(self) -> Halves | None:
        """How a minibatch is divided among the passes; None: every pass gets all of it."""
        return None

    def weigher(self, index: int) -> Callable[[Tensor], Tensor] | None:
        """A function from the examples' losses (B,) in pass ``index`` to their weights (B,) in the mean of the losses.

        None: all weights are 1.
        """
        return None

    # ---- the gradients ---------------------------------------------------------------------------------------------

    def before_loop(self, entries: list[Entry]) -> None:
        """Called before the first pass of a loop."""

    def after_pass(self, part: Pass, entries: list[Entry]) -> None:
        """Called after each pass: may read or alter ``entry.gradient``, the weighted sum over the loop's passes so far.

        The weights of the passes are ``part.importance``. The sum is kept divided by the weight of the pass that has
        just ended: multiply by that to have it in full. In the last pass the sum contains :attr:`Entry.earlier`, which
        is divided in the same way.
        """

    def after_loop(self, entries: list[Entry]) -> None:
        """Called after the last pass of a loop, when the weights are back."""

    def carry_over(self, earlier: Gradients) -> Gradients | None:
        """The gradients of earlier loops in the same step, as :meth:`after_pass` of the last pass is to find them.

        They are added before that pass, since data-parallel training exchanges them together with the pass's own. None:
        they are added after the pass, and are not exchanged.

        Args:
            earlier: pairs of a parameter and its gradient.
        """
        return earlier

    def before_step(self) -> None:
        """Called when the base optimizer is about to step: once, also where that fails and is tried again."""

    def after_step(self) -> None:
        """Called when the base optimizer has stepped."""
