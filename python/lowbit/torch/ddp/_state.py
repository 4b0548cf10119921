"""A hook of DistributedDataParallel that averages gradients by messages, and what it remembers."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import lowbit as lb
from lowbit import _arguments
from lowbit.torch._rounds import Rounds, Strategy, shared_seed
from lowbit.torch.ddp._stats import Stats

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch._C._distributed_c10d import GradBucket

    from lowbit.torch._exchange import Steps

    #: A bucket on its way: what is left to do, what DDP waits for, and the buffer.
    Running = tuple[Steps[None], torch.futures.Future[Tensor], Tensor]

_MOST = (1 << 63) - 1


class State:
    """What one rank's hook remembers: the step, keys, error feedback, and what was sent.

    `register` makes it and hands it to the model; ``model.register_comm_hook(State(model, codec), hook)`` is the same.

    Parameters
    ----------
    model, codec, seed, error_feedback, start_step, min_numel, strategy, second_codec, group, check_every, measure_every
        As for `register`.

    Attributes
    ----------
    step : int
        How many times gradients were averaged; the same on all ranks.
    seed : int
        That of the first rank.
    """

    def __init__(
        self,
        model: DistributedDataParallel,
        codec: lb.Codec,
        *,
        seed: SupportsIndex = 0,
        error_feedback: bool | None = None,
        start_step: SupportsIndex = 2,
        min_numel: SupportsIndex = 1024,
        strategy: Strategy = "auto",
        second_codec: lb.Codec | None = None,
        group: dist.ProcessGroup | None = None,
        check_every: SupportsIndex = 0,
        measure_every: SupportsIndex = 0,
    ) -> None:
        if not isinstance(model, DistributedDataParallel):
            raise TypeError(f"model: expected a DistributedDataParallel, got {type(model).__name__}")
        if complex_ones := [name for name, p in model.module.named_parameters() if p.is_complex() and p.requires_grad]:
            # DDP's buckets say half of what these take.
            raise TypeError(
                f"model: {complex_ones} are complex, which no codec writes; train torch.view_as_real of them"
            )
        self.start_step = _arguments.within(start_step, "start_step", 0, _MOST)
        self.check_every = _arguments.within(check_every, "check_every", 0, _MOST)
        self.measure_every = _arguments.within(measure_every, "measure_every", 0, _MOST)
        self._rounds = Rounds(
            codec,
            group=model.process_group if group is None else group,
            strategy=strategy,
            second_codec=second_codec,
            min_numel=min_numel,
            error_feedback=error_feedback,
        )
        self._rounds.agree(start_step=self.start_step, check_every=self.check_every, measure_every=self.measure_every)
        self.seed = shared_seed(seed, self._rounds.group)
        self.step = 0
        self._agreed = False
        ignored = model.parameters_to_ignore
        # A compiled model's parameters keep the names, and so the keys and memories, of the model it was.
        self._parameters = {
            name.replace("_orig_mod.", ""): p for name, p in model.module.named_parameters() if name not in ignored
        }
        self._names = {id(parameter): name for name, parameter in self._parameters.items()}
        self._trained = {name for name, parameter in self._parameters.items() if parameter.requires_grad}
        #: Parameters whose bucket this step has had.
        self._seen: set[str] = set()
        self._running: list[Running] = []
        self._steps = self._skipped = 0
        self._error, self._energy = 0.0, 0.0
        self._digest = 0

    def take(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Begin to average a bucket; the last one of a step brings all to their end.

        Every call goes on with the buckets before: communication overlaps with the backward pass, and all ranks launch
        the same collectives in the same order.
        """
        buffer = bucket.buffer()
        if buffer.layout is not torch.strided:
            names = [self._names[id(parameter)] for parameter in bucket.parameters()]
            raise TypeError(f"model: the gradients of {names} are sparse, which no codec writes; make them dense")
        now = {self._names[id(parameter)] for parameter in bucket.parameters()}
        if not self._seen or self._seen & now:
            self._begin_step()
        self._seen |= now
        devices: list[int | str | torch.device] = [] if buffer.device.type == "cpu" else [buffer.device]
        future: torch.futures.Future[Tensor] = torch.futures.Future(devices=devices)
        started = self._go_on([(self._average(bucket), future, buffer)])
        # In its first iteration a static graph calls each of several buckets number 0, and none of them the last.
        if bucket.is_last() or (bucket.index() == 0 and self._seen == self._trained):
            self._seen = set()
            self._running += started
            while self._running:
                self._running = self._go_on(self._running)
            self._end_step()
        else:
            self._running = self._go_on(self._running) + started
        return future

    def _begin_step(self) -> None:
        """Forget what a step that never came to its end has left."""
        if not self._agreed:
            # A rank that has not loaded what others have would launch other collectives than they.
            self._rounds.agree(step=self.step, seed=self.seed)
            self._agreed = True
        self._seen = set()
        self._running.clear()
        self._rounds.reset()
        self._digest = 0

    def _go_on(self, running: list[Running]) -> list[Running]:
        """Take buckets one collective further, and give those that have not come to their end."""
        unfinished = []
        for steps, future, buffer in running:
            try:
                next(steps)
            except StopIteration:
                self._look(buffer)
                future.set_result(buffer)
            else:
                unfinished.append((steps, future, buffer))
        return unfinished

    def _average(self, bucket: GradBucket) -> Steps[None]:
        """Average one bucket in place."""
        buffer, exchange = bucket.buffer(), self._rounds.exchange
        exact: Tensor | None = None
        work: Any = None
        if self.step < self.start_step:
            work = torch.distributed.all_reduce(buffer.div_(exchange.size), group=exchange.group, async_op=True)
            yield
            work.wait()
            return
        if self._due(self.measure_every):
            exact = buffer.to(torch.float32, copy=True).div_(exchange.size)
            work = torch.distributed.all_reduce(exact, group=exchange.group, async_op=True)
        yield from self._rounds.begin(self._gradients(bucket), self._key)
        if exact is not None:
            work.wait()
            if exact.isfinite().all():
                self._error += float((buffer.double() - exact).square().sum())
                self._energy += float(exact.double().square().sum())

    def _gradients(self, bucket: GradBucket) -> dict[str, Tensor]:
        """Give the runs of the bucket's buffer that are gradients, by parameter: flat, however strided these are."""
        buffer = bucket.buffer()
        runs = {}
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            at = gradient.storage_offset() - buffer.storage_offset()
            runs[self._names[id(parameter)]] = buffer[at : at + gradient.numel()]
        return runs

    @property
    def _key(self) -> lb.Key:
        return lb.Key(self.seed).fold("ddp", self.step)

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _look(self, tensor: Tensor) -> None:
        """Let a tensor's bits into the digest that ranks compare."""
        if self._due(self.check_every):
            flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            self._digest = zlib.crc32(flat.cpu().numpy().data, self._digest)

    def _end_step(self) -> None:
        """Count the step, and let ranks tell each other how it went."""
        for parameter in self._parameters.values():
            self._look(parameter)
        coded = self.step >= self.start_step
        if coded or self._due(self.check_every):
            finite = self._rounds.settle(self._digest)
            self._steps += coded
            self._skipped += coded and not finite
        self.step += 1

    @property
    def stats(self) -> Stats:
        """What was sent and received, compared with an all_reduce."""
        traffic = self._rounds.traffic
        return Stats(
            self._rounds.strategy,
            self._rounds.size,
            self._steps,
            traffic.numbers,
            traffic.message,
            traffic.sent_payload,
            traffic.sent_overhead,
            traffic.received_payload,
            traffic.received_overhead,
            self._skipped,
            self._error / self._energy if self._energy else float("nan"),
        )

    def rescale(self, factor: float) -> None:
        """Multiply error feedback, when from now on gradients are scaled by another factor (a loss scale).

        Parameters
        ----------
        factor : float
            New scale divided by the old one. All ranks call this, between two steps.

        Raises
        ------
        lowbit.Error
            `factor` is negative or not finite, or takes the memory beyond float32.
        """
        self._rounds.memories.rescale(factor)

    def state_dict(self) -> dict[str, Any]:
        """Give all that is needed to go on as if training had not stopped; tensors and plain values only.

        Error feedback differs from rank to rank: where there is some, every rank saves its own.
        """
        config = {name: repr(value) for name, value in self._config().items()}
        return {"step": self.step, "seed": self.seed, "config": config, "memory": self._rounds.memories.state_dict()}

    def _config(self) -> Mapping[str, object]:
        rounds = self._rounds
        return {
            "codec": rounds.codec,
            "second_codec": rounds.second,
            "strategy": rounds.strategy,
            "min_numel": rounds.min_numel,
            "start_step": self.start_step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, on a fresh model and hook.

        Parameters
        ----------
        state : mapping
            This rank's; every rank loads one, of the same step. One of another rank, or of another number of ranks,
            will do, but for error feedback, which is then dropped with a warning.

        Raises
        ------
        TypeError
            `state` is not such a mapping.
        """
        if not isinstance(state, Mapping) or set(state) != {"step", "seed", "config", "memory"}:
            raise TypeError("state: expected what state_dict gave: step, seed, config, memory")
        for name, value in self._config().items():
            if state["config"][name] != repr(value):
                was = state["config"][name]
                warnings.warn(f"{name}: it was {was} when this was saved, and is {value!r}", UserWarning, stacklevel=2)
        self.step = _arguments.within(state["step"], "step", 0, _MOST)
        self.seed = _arguments.within(state["seed"], "seed", 0, (1 << 64) - 1)
        self._agreed = False
        self._rounds.memories.load_state_dict(state["memory"])

    def __deepcopy__(self, memo: object) -> State:
        """Stay one: DDP's copies mention the hook, and do not call it."""
        return self

    def __getstate__(self) -> NoReturn:
        raise TypeError("a State belongs to its processes and cannot be pickled; save its state_dict()")

    def __repr__(self) -> str:
        rounds = self._rounds
        return f"State({rounds.codec}, {rounds.strategy!r}, rank {rounds.rank} of {rounds.size}, step {self.step})"
