"""What keeps a step from being another one than was asked for, without a word.

A step's gradient is the mean over its passes only if every contribution to ``.grad`` came from a ``backward()`` in a
pass, none of them was cleared or changed on the way, and the weights stayed where they had been moved to. All of it is
told from what torch keeps anyway: which tensor ``.grad`` is, how often it and the weights were written to, and a hook
that autograd calls at every accumulation. Writes through ``.data`` torch does not count: to the weights they are seen
in the first loop only, to the gradients (``p.grad.data.mul_()`` inside a pass) never. Nothing here waits for the device
but on the way to an error, in the first loop, and where gradients from outside have been cleared in place.
"""

import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn

from .processes import grouped
from .sharding import is_gathering, is_sharded


class _Loops(threading.local):
    """The pass loops that are under way in this thread, outermost first."""

    def __init__(self) -> None:
        self.running: list[GradientWatch] = []


_loops = _Loops()
_latest: "dict[int, weakref.ref[GradientWatch]]" = {}  # the last loop to begin, by the thread that it began in


class GradientWatch:
    """Knows of every contribution to the gradients of some parameters where it came from."""

    def __init__(self) -> None:
        self._covered: dict[int, weakref.ref[Tensor]] = {}
        self._handles: list[Any] = []
        self._sharded: set[int] = set()  # FSDP2 writes their gradients itself, and not in every pass
        self._hook, self._uncompiled = _calling(self), False
        # Of each gradient from outside: the parameter, the gradient, and how often this had been written to.
        self._outside: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor], int]] = {}
        self._running = False
        self.seed: int | None = None  # of the noise, where there is any
        self._thread = threading.get_ident()  # where its loops begin; autograd may call the hook in one of its own
        self._beside: weakref.WeakSet[GradientWatch] = weakref.WeakSet()
        self._told: weakref.WeakSet[GradientWatch] = weakref.WeakSet()
        self._start(clearing=False)
        weakref.finalize(self, remove_hooks, self._handles).atexit = False

    def _start(self, clearing: bool) -> None:
        self._clearing = clearing
        self._nested = 0  # loops of other optimizers inside the present one
        self._outer: list[GradientWatch] = []
        self._counts: list[int] = []  # contributions in each pass
        self._marks: dict[int, tuple[Tensor, Tensor | None, int]] = {}
        self._entangled = False
        self._altered: Tensor | None = None

    def cover(self, parameters: Iterable[Tensor]) -> None:
        """Watches ``parameters`` from now on, those that it already watches once."""
        if _compiles() and not self._uncompiled:  # whoever compiles a whole step would have the hook compiled too
            self._uncompiled, self._hook = True, torch._disable_dynamo(self._hook)
            remove_hooks(self._handles)
            self._handles.clear()
            self._covered.clear()
        for p in parameters:
            known = self._covered.get(id(p))
            if (known is None or known() is not p) and p.requires_grad and p.is_leaf:
                self._covered[id(p)] = weakref.ref(p)
                self._handles.append(p.register_post_accumulate_grad_hook(self._hook))
                if is_sharded(p):
                    self._sharded.add(id(p))

    # ---- what autograd reports -------------------------------------------------------------------------------------

    def arrived(self, p: Tensor) -> None:
        """Called by autograd after each contribution to ``p.grad``."""
        gradient, key = p.grad, id(p)
        if gradient is None:
            return
        if not self._running:
            self._outside[key] = weakref.ref(p), weakref.ref(gradient), gradient._version
            latest = _latest.get(self._thread)
            if latest is not None and (other := latest()) is not None and other._running:
                self._beside.add(other)
            return
        if self._counts:
            self._counts[-1] += 1
        if self._nested:
            self._entangled = True
        if key in self._sharded:
            return
        _, before, version = self._marks.get(key, (p, None, 0))
        if before is not None and (before is not gradient or version + 1 != gradient._version):
            if not self._clearing and not _accumulated_elsewhere(before, gradient):
                self._altered = p
        # Data-parallel training may write to the gradient after this, so that there only the first one can be told.
        self._marks[key] = p, gradient if self._alone else None, gradient._version

    # ---- a loop and its passes -------------------------------------------------------------------------------------

    def start_loop(self, clearing: bool) -> None:
        """A pass loop starts; in that of a closure, gradients may be cleared (``clearing``)."""
        self._start(clearing)
        self._alone = not grouped()
        self._running, self._outer = True, list(_loops.running)
        for outer in self._outer:
            outer._nested += 1
        _loops.running.append(self)
        self._thread = threading.get_ident()
        _latest[self._thread] = weakref.ref(self)

    def end_loop(self) -> None:
        """The loop has ended, well or not."""
        if self._running:
            self._running, self._marks = False, {}
            if self in _loops.running:  # or it was ended in another thread than it began in
                _loops.running.remove(self)
            for outer in self._outer:
                outer._nested -= 1

    def start_pass(self, parameters: Iterable[Tensor]) -> None:
        """From now on contributions belong to the next pass; notes the gradients of ``parameters`` as they are."""
        self._counts.append(0)
        watched = [] if self._clearing else [p for p in parameters if id(p) in self._covered]  # none without noise
        self._marks = {
            id(p): (p, p.grad, p.grad._version) for p in watched if p.grad is not None and id(p) not in self._sharded
        }

    def end_pass(self, name_of: Callable[[Tensor], str]) -> None:
        """Checks that what came in this pass is all that has happened to the gradients.

        Raises:
            RuntimeError: gradients were cleared, replaced or changed, or another optimizer's loop ran inside.
        """
        if self._entangled:
            raise RuntimeError(
                "two pass loops over one model at a time: each would count the passes of the other. Put both base "
                "optimizers under one noise: SymmetricNoise(Together(first, second))"
            )
        for p, before, version in self._marks.values():
            now = p.grad
            if now is None or (before is not None and (now is not before or now._version != version)):
                if now is None or before is None or not _accumulated_elsewhere(before, now):
                    self._altered = p
        if self._altered is not None:
            raise RuntimeError(
                f"the gradient of {name_of(self._altered)} was cleared, replaced or changed inside a pass, so that it "
                "is no longer the sum over the passes. Inside the loop only call backward(); zero_grad() belongs "
                "before the loop or after step(), clipping between the loop and step(). Hooks that write to .grad "
                "(register_post_accumulate_grad_hook, as to clip or to step in backward) do this too: remove them"
            )

    def check_passes(self) -> bool:
        """Checks that every pass has contributed, or none; gives which.

        Raises:
            RuntimeError: a pass was without ``backward()``.
        """
        if any(self._counts) and not all(self._counts) and not self._sharded:
            raise RuntimeError(
                f"the pass of index {self._counts.index(0)}, of {len(self._counts)}, had no backward(): the step would "
                "be that of the others alone. To skip a minibatch, leave the loop with break, and call zero_grad() in "
                "place of step()"
            )
        return any(self._counts)

    # ---- gradients from outside ------------------------------------------------------------------------------------

    def cleared(self) -> None:
        """All gradients have been cleared."""
        self._outside.clear()

    def condemn(self, parameters: Iterable[Tensor]) -> None:
        """What is now in the gradients of ``parameters`` is of no use."""
        for p in parameters:
            if p.grad is not None:
                self._outside[id(p)] = weakref.ref(p), weakref.ref(p.grad), p.grad._version

    def draws_as_another(self) -> bool:
        """Whether another optimizer with this one's seed takes gradients of the same losses; true once for the two."""
        found = [other for other in self._beside if other.seed == self.seed and other not in self._told]
        self._beside.clear()
        for other in found:
            self._told.add(other)
            other._told.add(self)
        return bool(found)

    def check_closure(self, copies: list[tuple[Tensor, Tensor]], name_of: Callable[[Tensor], str]) -> None:
        """Checks what a closure has made of the gradients that it found, ``copies`` of what was there before.

        Raises:
            RuntimeError: it has added to a gradient from outside, or changed its own, as by clipping them.
        """
        for p, copy in copies:
            if id(p) in self._outside and p.grad is copy:
                raise _from_outside(name_of(p))
        self.end_pass(name_of)
        self._marks = {}  # what becomes of them now is ours

    def check_outside(self, name_of: Callable[[Tensor], str]) -> None:
        """Checks that no gradient has a part that came from outside a pass loop.

        Raises:
            RuntimeError: one has.
        """
        for key, (parameter, gradient, version) in list(self._outside.items()):
            p, g = parameter(), gradient()
            if p is None or g is None or p.grad is not g or (g._version != version and not g.any()):  # cleared
                del self._outside[key]
            else:
                raise _from_outside(name_of(p))


def check_all_in_groups(model: nn.Module, parameters: Iterable[Tensor]) -> None:
    """Checks that what several passes train of ``model`` is all among ``parameters``, those of the optimizer.

    Raises:
        ValueError: a parameter is not: it would get the sum over the passes, not the mean.
    """
    if any(is_gathering(module) for module in model.modules()):  # FSDP2: while gathered, it names other tensors
        return
    known = {id(p) for p in parameters}
    # Weight dropout puts what it has computed in the place of a parameter; that is trained where it came from.
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad and p.is_leaf]
    missing = [name for name, p in trained if id(p) not in known]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"parameters of the model are trained, but not by this optimizer: {', '.join(missing[:3])}{more}. Their "
            "gradients would be the sum over the passes, where those of its own are the mean. Put them into a group "
            'with "noise": 0 (noise_groups does), into another base optimizer under the same noise (Together), or '
            "freeze them: requires_grad_(False)"
        )


def check_gradients(parameters: Iterable[Tensor]) -> None:
    """Checks that there are gradients to step on, where no pass had a ``backward()``: they may be made by hand.

    Raises:
        RuntimeError: all of them are missing or 0. (Of sharded parameters nobody can tell.)
    """
    params = list(parameters)
    if not any(p.requires_grad for p in params) or any(is_sharded(p) for p in params):
        return
    if all(p.grad is None or not (p.grad.is_sparse or p.grad.any()) for p in params):
        raise RuntimeError(
            "step() after passes without gradients: no pass had a backward(), or it did not reach the parameters. "
            "Call backward() in every pass; to skip a minibatch, call zero_grad() in place of step()"
        )


def without_graph(loss: Any) -> Any:
    """What a closure has returned, off its graph.

    Raises:
        TypeError: it is no loss.
    """
    if loss is None or isinstance(loss, (Tensor, Number)):
        return loss.detach() if isinstance(loss, Tensor) else loss
    raise TypeError(
        f"step(closure): the closure must return the loss, a tensor or a number, not {torch.typename(loss)}"
    )


def norms_of(weights: Sequence[Tensor]) -> list[Tensor]:
    """The norm of each of ``weights``, to compare with :func:`check_still` later on."""
    return list(torch._foreach_norm(list(weights)))


@torch.no_grad()
def check_still(
    weights: Sequence[Tensor], writes: Sequence[int], norms: Sequence[Tensor] | None, name_of: Callable[[int], str]
) -> None:
    """Checks that ``weights`` are where they were moved to.

    Args:
        writes: how often each had been written to (its ``_version``).
        norms: what their norms were, or None: writes through ``.data`` are not counted, so that the first loop looks
            at the values too.
        name_of: the name of a weight, by its number.

    Raises:
        RuntimeError: a weight was changed meanwhile.
    """
    changed = [i for i, (w, count) in enumerate(zip(weights, writes, strict=True)) if w._version != count]
    if not changed and norms is not None:
        now = norms_of(weights)
        changed = [i for i, (a, b) in enumerate(zip(norms, now, strict=True)) if a != b and not a.isnan()]
    if changed:
        raise RuntimeError(
            f"{name_of(changed[0])} was changed inside a pass, so that its gradient is not that at w+n or w-n: "
            "the model writes to it itself (nn.Embedding(max_norm=...), a clamp in forward), or somebody else does. Do "
            'that after step(), or give the weight a group of its own with "noise": 0'
        )


def check_whose(closure: Callable[[], Any]) -> None:
    """Refuses a closure that does more than to compute gradients.

    Raises:
        RuntimeError: it is Lightning's, which clips, calls hooks and logs as well: in every pass.
    """
    function = getattr(closure, "func", None)  # a partial function
    if getattr(function, "__name__", "") == "_wrap_closure" and "lightning" in str(function.__module__):
        raise RuntimeError(
            "Lightning would clip and call its hooks in every pass. With automatic optimization give its Trainer "
            "callbacks=[MultiPass()], from seqssgd.integrations.lightning; with manual optimization write "
            "`for _ in optimizer.passes():` around self.manual_backward(loss), before optimizer.step()"
        )


def _from_outside(name: str) -> RuntimeError:
    return RuntimeError(
        f"the gradient of {name} did not come through passes(): it is from a backward() outside a pass loop (before "
        "it, after it, in a loop over list(optimizer.passes()), or by a trainer that accumulates), or from a loop that "
        "was left half-way, or of a step() that failed. Call zero_grad() first, and backward() only inside "
        "`for _ in optimizer.passes():`, for every minibatch of a step; a gradient of another kind is "
        "added by hand: p.grad.add_(...)"
    )


def _calling(watch: GradientWatch) -> Callable[[Tensor], None]:
    """A hook that does not keep the watch alive."""
    reference = weakref.ref(watch)

    def hook(p: Tensor) -> None:
        if (alive := reference()) is not None:
            alive.arrived(p)

    return hook


def _compiles() -> bool:
    """Whether anything has been given to torch.compile in this process."""
    return bool(getattr(sys.modules.get("torch._dynamo.eval_frame"), "cached_backends", False))


def remove_hooks(handles: list[Any]) -> None:
    """Removes hooks, by the handles that torch gave for them."""
    for handle in handles:
        handle.remove()


def _accumulated_elsewhere(before: Tensor, now: Tensor) -> bool:
    """Whether autograd itself may have made ``now`` out of ``before`` in another way than by adding in place."""
    graph = now.requires_grad  # backward(create_graph=True)
    shared = now is before and now._is_view()  # pieces of one buffer count each other's writes
    return graph or shared or before.is_sparse or now.is_sparse
