"""Gradients of ``torch.nn.parallel.DistributedDataParallel`` in few bits: a communication hook (docs/torch-ddp.md).

>>> import torch, lowbit as lb
>>> from lowbit.torch import ddp
>>> torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
>>> model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 64))
>>> state = ddp.register(model, lb.Eden(1), start_step=0)
>>> model(torch.ones(1, 64)).sum().backward()
>>> state
State(Eden(bits=1.0, scale='unbiased', rounds=2, entropy_coded=False), 'all_gather', rank 0 of 1, step 1)
>>> torch.distributed.destroy_process_group()
"""

# No postponed annotations: DDP looks at those of the hook.
from typing import SupportsIndex

import torch
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

import lowbit as lb
from lowbit.torch._rounds import Strategy
from lowbit.torch.ddp._state import State
from lowbit.torch.ddp._stats import Stats

__all__ = ["State", "Stats", "hook", "register"]


def hook(state: State, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Average one bucket of gradients: for ``model.register_comm_hook(state, hook)``.

    Parameters
    ----------
    state : State
        Made for the same model.
    bucket : torch.distributed.GradBucket
        What DDP hands over.

    Returns
    -------
    torch.futures.Future
        Of the bucket's buffer, in which the average then is.

    Raises
    ------
    lowbit.Error
        With the step's last bucket, on every rank: some rank could not encode or decode, or replicas differ.
    RuntimeError
        The backend lost another rank, or waited for too long.
    """
    return state.take(bucket)


def register(
    model: DistributedDataParallel,
    codec: lb.Codec,
    *,
    seed: SupportsIndex = 0,
    error_feedback: bool | None = None,
    start_step: SupportsIndex = 2,
    min_numel: SupportsIndex = 1024,
    strategy: Strategy = "auto",
    second_codec: lb.Codec | None = None,
    group: torch.distributed.ProcessGroup | None = None,
    check_every: SupportsIndex = 0,
    measure_every: SupportsIndex = 0,
) -> State:
    """Let a model's ranks average their gradients by messages of few bits.

    Every rank calls it with the same arguments, before the first backward pass.

    Parameters
    ----------
    model : torch.nn.parallel.DistributedDataParallel
        Without another hook. Float gradients of any dtype (of float64 what float32 can hold), none of them sparse
        or complex.
    codec : Codec
        How a rank writes a gradient: ``lb.Eden(1)``, ``lb.Sign()``, ``lb.Summable(4)``, ...
    seed : int, optional
        Of all randomness; the group's first rank's counts.
    error_feedback : bool, optional
        Whether each rank remembers what its messages leave out and adds it to the next gradient. Default: where `codec`
        is biased (but for `Summable`, nearly unbiased). A float32 copy of all gradients; during a step, two.
    start_step : int, optional
        Before that step (counted from 0) gradients are averaged by a plain all_reduce.
    min_numel : int, optional
        Parameters of fewer numbers travel exactly, as float32.
    strategy : {"auto", "all_gather", "two_phase", "sum"}
        "all_gather": every message to all ranks. "two_phase": every rank averages a part and sends the mean, encoded
        once more. "sum": the integers of `Summable` by an all_reduce. "auto": "sum" for `Summable`; "all_gather" for
        two ranks, and while it brings a rank less than 0.3 of a bfloat16 ring's bytes (9 ranks at one bit, 4 at two);
        else "two_phase".
    second_codec : Codec, optional
        How "two_phase" sends means. Default `codec`.
    group : torch.distributed.ProcessGroup, optional
        Default: the model's.
    check_every : int, optional
        Every so many steps ranks compare a hash of all parameters and averages; 0 is never.
    measure_every : int, optional
        Every so many steps the averages are compared with those of a float32 all_reduce, for ``stats.error``; 0 is
        never.

    Returns
    -------
    State
        Its ``stats`` count bytes; its ``state_dict()`` belongs into checkpoints.

    Raises
    ------
    TypeError
        An argument has the wrong type.
    lowbit.Error
        A value is out of range; error feedback for a codec that it does not work with; ranks gave different arguments.
    RuntimeError
        The model has a hook already, or has begun to train.

    Notes
    -----
    Every parameter is a message of its own, with its own scales and, of codecs that rotate, its own rotation: gradients
    of very different size do not drown each other, and what a parameter gets does not depend on DDP's buckets. Keys are
    ``Key(seed).fold("ddp", step).fold("first", name, 0)``, with the rank as sender; torch's generators are not used.
    Each step ends in one collective of 32 bytes for each rank, which says whether all went well.

    Two phases as by H. Tang et al., "1-bit Adam", ICML 2021, arXiv:2102.02888; error feedback as by S. P. Karimireddy
    et al., ICML 2019, arXiv:1901.09847; sums of integers as by M. Li et al., NSDI 2024, arXiv:2302.08545.

    Examples
    --------
    >>> import torch, lowbit as lb
    >>> from lowbit.torch import ddp
    >>> torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    >>> model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1000, 100))
    >>> state = ddp.register(model, lb.Eden(1), start_step=0)
    >>> model(torch.randn(8, 1000)).square().mean().backward()
    >>> print(f"{state.stats.bits_per_number:.2f} bits for each number")
    1.05 bits for each number
    >>> torch.distributed.destroy_process_group()
    """
    state = State(
        model,
        codec,
        seed=seed,
        error_feedback=error_feedback,
        start_step=start_step,
        min_numel=min_numel,
        strategy=strategy,
        second_codec=second_codec,
        group=group,
        check_every=check_every,
        measure_every=measure_every,
    )
    model.register_comm_hook(state, hook)
    return state
