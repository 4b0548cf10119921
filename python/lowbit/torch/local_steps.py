"""Local steps: ranks train by themselves, and now and then agree by messages of few bits (docs/torch-local.md)."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
import torch.distributed as dist
from torch import Tensor, nn

import lowbit as lb
from lowbit import _arguments
from lowbit.torch._exchange import run
from lowbit.torch._local_stats import LocalStats
from lowbit.torch._replicas import copy_of, digest, moved_by, parameters_of, spread, statistics_of, strange
from lowbit.torch._rounds import Rounds, Strategy, shared_seed
from lowbit.torch._site import alone

if TYPE_CHECKING:
    from torch.optim import Optimizer

_MOST = (1 << 63) - 1
#: What `state_dict` gives.
_STATE = {"steps", "rounds", "since", "seed", "config", "inner", "outer", "shared", "own", "memory"}


def _diloco(shared: list[Tensor]) -> Optimizer:
    return torch.optim.SGD(shared, lr=0.7, momentum=0.9, nesterov=True)


class LocalSteps:
    """An optimizer whose ranks step by themselves, and average what they have moved in every so many steps (DiLoCo).

    Every rank makes one with the same arguments, and calls `step` equally often. The ranks' models become the first
    one's, if they differ.

    Parameters
    ----------
    model : torch.nn.Module
        Not wrapped in DistributedDataParallel: of such a one give ``model.module``, if its ranks are a site of their
        own and `group` joins sites. Parameters of any float dtype. Those that need no gradient are left alone.
    inner : torch.optim.Optimizer
        Steps on `model`'s parameters, on each rank by itself: AdamW, as a rule.
    outer : callable, optional
        Makes, of a list of tensors, the optimizer that moves what all share: ``outer.step()`` is called with the mean
        of what the ranks have moved as gradient. Default: SGD with learning rate 0.7 and Nesterov momentum 0.9. SGD
        with learning rate 1 takes the mean of the ranks' models (local SGD, FedAvg).
    every : int
        Local steps from one round to the next.
    codec : Codec, optional
        How a rank writes what it has moved: ``lb.Eden(4)``, ``lb.Eden(1)``, ``lb.Sign()``, ... Default: exactly.
    seed : int, optional
        Of all randomness; the group's first rank's counts.
    error_feedback : bool, optional
        Whether each rank remembers what its messages leave out and adds it to the next. Default: where `codec` is
        biased (but for `Summable`).
    strategy : {"auto", "all_gather", "two_phase", "sum"}
        As for `lowbit.torch.ddp.register`.
    second_codec : Codec, optional
        How "two_phase" sends means. Default `codec`.
    min_numel : int, optional
        Parameters of fewer numbers travel exactly, as float32.
    group : torch.distributed.ProcessGroup, optional
        Whose ranks these are. Default: the default group.
    check_every : int, optional
        Every so many rounds ranks compare a hash of all that they should share; 0 is never.

    Attributes
    ----------
    inner, outer : torch.optim.Optimizer
        Both; learning-rate schedules work on either.
    steps : int
        How many steps were asked for.
    rounds : int
        How many times ranks have averaged.
    since : int
        Local steps since then.
    seed : int
        That of the first rank.

    Raises
    ------
    TypeError
        An argument has the wrong type, or the model is wrapped, sharded or not of floats.
    lowbit.Error
        A value is out of range; `inner` moves parameters that `model` does not have; ranks gave different arguments or
        models.

    Notes
    -----
    A. Douillard et al., "DiLoCo: Distributed low-communication training of language models", 2023, arXiv:2311.08105,
    algorithm 1 and its hyperparameters: inner AdamW, outer Nesterov momentum. What all share is kept in float32, also
    of models in bfloat16. A rank's pseudo-gradient is what the model was after the last round, less what it is now.
    Keys are ``Key(seed).fold("local steps", round)``, folded with the parameter's name as for DDP.

    Buffers of floats that are in the model's ``state_dict`` and finite at the start (the statistics of batch norm) are
    averaged too, exactly; other buffers stay each rank's own.

    Examples
    --------
    >>> import torch, lowbit as lb, lowbit.torch
    >>> torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = lowbit.torch.LocalSteps(model, torch.optim.AdamW(model.parameters()), every=8, codec=lb.Eden(1))
    >>> for _ in range(20):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(8, 64)).square().mean().backward()
    ...     optimizer.step()
    >>> optimizer
    LocalSteps(AdamW, every 8, Eden(bits=1.0, scale='unbiased', rounds=2, entropy_coded=False), rank 0 of 1, round 2)
    >>> torch.distributed.destroy_process_group()
    """

    #: Tells GradScaler to say what it found, in place of leaving `step` out: ranks count steps alike.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        model: nn.Module,
        inner: Optimizer,
        outer: Callable[[list[Tensor]], Optimizer] | None = None,
        *,
        every: SupportsIndex,
        codec: lb.Codec | None = None,
        seed: SupportsIndex = 0,
        error_feedback: bool | None = None,
        strategy: Strategy = "auto",
        second_codec: lb.Codec | None = None,
        min_numel: SupportsIndex = 1024,
        group: dist.ProcessGroup | None = None,
        check_every: SupportsIndex = 0,
    ) -> None:
        self._parameters, self._fixed = parameters_of(model, inner)
        if outer is not None and (isinstance(outer, torch.optim.Optimizer) or not callable(outer)):
            raise TypeError(
                f"outer: expected a function that makes an optimizer of a list of tensors, as functools.partial("
                f"torch.optim.SGD, lr=0.7, momentum=0.9, nesterov=True), got {type(outer).__name__}"
            )
        self.every = _arguments.within(every, "every", 1, _MOST)
        self.check_every = _arguments.within(check_every, "check_every", 0, _MOST)
        self._rounds = Rounds(
            lb.Float32() if codec is None else codec,
            group=group,
            strategy=strategy,
            second_codec=second_codec,
            min_numel=min_numel,
            error_feedback=error_feedback,
        )
        everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        shapes = [(name, t.shape, t.dtype, t.requires_grad) for name, t in everything.items()]
        self._rounds.agree(
            every=self.every,
            check_every=self.check_every,
            model=f"{len(shapes)} tensors; a hash of names, shapes, dtypes is {zlib.crc32(repr(shapes).encode()):08x}",
        )
        spread(everything, self._rounds.exchange)
        self.seed = shared_seed(seed, self._rounds.group)
        self._model, self._averaged = model, set(statistics_of(model))
        self.inner, self.steps, self.rounds, self.since = inner, 0, 0, 0
        self._shared = {name: nn.Parameter(copy_of(p), requires_grad=False) for name, p in self._parameters.items()}
        self._statistics = {name: copy_of(b) for name, b in self._buffers.items()}
        self.outer = (outer or _diloco)(list(self._shared.values()))
        if not isinstance(self.outer, torch.optim.Optimizer):
            raise TypeError(f"outer: expected a function that makes an optimizer, not a {type(self.outer).__name__}")
        moved = {id(p) for p in moved_by(self.outer)}
        if any(id(p) not in moved for p in self._shared.values()):
            raise lb.Error("outer: its optimizer must move all the tensors that it is given, not the model's")
        self._rounds.agree(inner=type(inner).__name__, outer=type(self.outer).__name__)
        self._skipped = 0

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of `inner`."""
        return self.inner.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients, as `inner` does."""
        self.inner.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let `inner` step, and average if it is time to.

        Parameters
        ----------
        closure : callable, optional
            As of `inner`.

        Returns
        -------
        object
            What ``inner.step`` gives.

        Raises
        ------
        lowbit.Error
            On every rank: one could not encode or decode (`lowbit.DecodeError`), or replicas differ. Models are as the
            local steps left them; the next step tries again.
        torch.distributed.DistError
            The backend lost another rank, or waited for it too long; the same holds.
        """
        try:
            loss = self._inner_step(closure)
            self.steps += 1
            self.since += 1
            if self.since >= self.every:
                self.sync()
        except Exception:
            # GradScaler removes them after a step that ends well only, and multiplies the next one's scale by this.
            self.__dict__.pop("grad_scale", None)
            self.__dict__.pop("found_inf", None)
            raise
        return loss

    def _inner_step(self, closure: Callable[[], Any] | None) -> Any:
        """Step as GradScaler would have it: not where it found an infinity, and without the scale."""
        found, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found is not None and found.item():
            return None
        if scale is not None:
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad.div_(scale.to(p.grad.device))
        with alone():  # quantized layers let ranks vote on the scales of gradients, in every step
            return self.inner.step(closure) if closure is not None else self.inner.step()

    @torch.no_grad()
    def sync(self) -> None:
        """Average now what was moved since the last round, if anything was: before an evaluation, or at the end.

        All ranks call this after equally many steps.

        Raises
        ------
        lowbit.Error, torch.distributed.DistError
            As by `step`.
        """
        if not self.since:
            return
        moved = {name: self._start(name) - p.to(self._shared[name].dtype) for name, p in self._parameters.items()}
        moved = {name: t.contiguous() for name, t in moved.items()}
        statistics = {name: copy_of(b) for name, b in self._buffers.items()}
        key = lb.Key(self.seed).fold("local steps", self.rounds)
        for p in strange(self._parameters.values(), [*self._model.parameters(), *moved_by(self.inner)])[:1]:
            name = next((repr(name) for name, each in self._model.named_parameters() if each is p), "what inner moves")
            self._rounds.note(
                lb.Error("make a new LocalSteps when that changes"), f"{name} was not among what is trained"
            )
        try:
            run(self._rounds.begin(moved, key))
            run(self._rounds.begin(statistics, key, exact=True))
            finite = self._rounds.settle(self._digest(moved, statistics))
        except RuntimeError as error:
            self._rounds.reset()
            raise dist.DistError(
                f"round {self.rounds} did not end: the group has lost a rank, or waited for it too long. This rank's "
                f"model is as its local steps left it, and its state_dict() can go on in another group: {error}"
            ) from error
        if finite:
            for name, shared in self._shared.items():
                shared.grad = moved[name]
            with alone():
                self.outer.step()
            self.outer.zero_grad()
            self._statistics = statistics
        else:
            self._skip()
        for name, p in self._parameters.items():
            p.copy_(self._shared[name])
        for name, b in self._buffers.items():
            b.copy_(self._statistics[name])
        self.rounds += 1
        self.since = 0

    @property
    def _buffers(self) -> dict[str, Tensor]:
        """What is averaged beside parameters. Modules may have put other tensors in their place."""
        return {name: b for name, b in self._model.named_buffers() if name in self._averaged}

    def _start(self, name: str) -> Tensor:
        """Give what a parameter was after the last round: all that its dtype holds of what is shared."""
        shared = self._shared[name].detach()
        return shared.to(self._parameters[name].dtype).to(shared.dtype)

    def _digest(self, moved: Mapping[str, Tensor], statistics: Mapping[str, Tensor]) -> int:
        """Give a checksum of all that is the same on every rank, if it is time to compare."""
        if not self.check_every or self.rounds % self.check_every:
            return 0
        return digest([*self._fixed.values(), *self._shared.values(), *moved.values(), *statistics.values()])

    def _skip(self) -> None:
        """Say that a round is lost, and forget what has met an infinity: it would come back in the next."""
        bad = [name for name, p in {**self._parameters, **self._buffers}.items() if not p.isfinite().all()]
        for p in [self._parameters[name] for name in bad if name in self._parameters]:
            self.inner.state.pop(p, None)
        here = f"; here it is {', '.join(bad[:3])}{', ...' * (len(bad) > 3)}" if bad else ""
        self._skipped += 1
        warnings.warn(
            f"round {self.rounds} is skipped: some rank's parameters or statistics are not all finite{here}. "
            f"All ranks go back to the round before",
            UserWarning,
            stacklevel=4,
        )

    @property
    def stats(self) -> LocalStats:
        """What was sent and received."""
        traffic = self._rounds.traffic
        return LocalStats(
            self._rounds.strategy,
            self._rounds.size,
            self.rounds,
            traffic.numbers,
            traffic.message,
            traffic.sent_payload,
            traffic.sent_overhead,
            traffic.received_payload,
            traffic.received_overhead,
            self._skipped,
            local_steps=self.steps,
        )

    def _config(self) -> dict[str, str]:
        rounds = self._rounds
        return {
            "codec": repr(rounds.codec),
            "second_codec": repr(rounds.second),
            "strategy": rounds.strategy,
            "min_numel": repr(rounds.min_numel),
            "every": repr(self.every),
        }

    def state_dict(self) -> dict[str, Any]:
        """Give all that is needed to go on exactly, in the middle of a round too; tensors and plain values only.

        Every rank saves its own. The trained parameters are in it: what ranks share, and between two rounds this
        rank's own.
        """
        own = {**self._parameters, **self._buffers} if self.since else {}
        return {
            "steps": self.steps,
            "rounds": self.rounds,
            "since": self.since,
            "seed": self.seed,
            "config": self._config(),
            "inner": self.inner.state_dict(),
            "outer": self.outer.state_dict(),
            "shared": {name: t.detach() for name, t in {**self._shared, **self._statistics}.items()},
            "own": {name: t.detach().clone() for name, t in own.items()},
            "memory": self._rounds.memories.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, in this group, which may have fewer or more ranks.

        Parameters
        ----------
        state : mapping
            This rank's. One of another rank, or of another number of ranks, will do, but for error feedback, which is
            then dropped with a warning.

        Raises
        ------
        TypeError
            `state` is not such a mapping.
        lowbit.Error
            It is of another model; or the ranks' states are not of the same round.
        """
        if not isinstance(state, Mapping) or set(state) != _STATE:
            raise TypeError(f"state: expected what state_dict gave: {', '.join(sorted(_STATE))}")
        shared = {**self._shared, **self._statistics}
        theirs = {name: t.shape for name, t in state["shared"].items()}
        if theirs != {name: t.shape for name, t in shared.items()}:
            raise lb.Error("state: it is of another model, with other parameters or shapes")
        for name, value in self._config().items():
            if state["config"][name] != value:
                was = state["config"][name]
                warnings.warn(f"{name}: it was {was} when this was saved, and is {value}", UserWarning, stacklevel=3)
        self.inner.load_state_dict(state["inner"])
        self.outer.load_state_dict(state["outer"])
        for name, t in shared.items():
            t.copy_(state["shared"][name])
        for name, t in {**self._parameters, **self._buffers}.items():
            t.copy_(state["own"].get(name, state["shared"][name]))
        self.steps, self.rounds, self.since, self.seed = (state[name] for name in ("steps", "rounds", "since", "seed"))
        self._rounds.memories.load_state_dict(state["memory"])
        seed = [self.seed >> 32, self.seed & 0xFFFFFFFF]
        rows = self._rounds.exchange.gathered([self.rounds, self.since, *seed, digest(shared.values())])
        if rows.count(rows[0]) != len(rows):
            rounds = ", ".join(f"{row[0]} and {row[1]} steps" for row in rows)
            raise lb.Error(
                f"state: ranks are not at the same point, or do not share the same numbers; they have made rounds: "
                f"{rounds}. Load states of one moment, or the same one on every rank"
            )

    def __repr__(self) -> str:
        r = self._rounds
        name = type(self.inner).__name__
        return f"LocalSteps({name}, every {self.every}, {r.codec}, rank {r.rank} of {r.size}, round {self.rounds})"
