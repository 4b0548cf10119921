"""``watch``: what happens to scales, clips and gradients while a model trains."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import lowbit as lb
from lowbit.torch._layers import sites_of
from lowbit.torch._site import Site

if TYPE_CHECKING:
    from types import TracebackType

    from matplotlib.figure import Figure

#: What is drawn: a row's key, the title, and whether the axis is logarithmic.
_PANELS = (
    ("grad_scale", "GradScale (by what gradients are multiplied)", True),
    ("clip", "clip of PACT", False),
    ("input_clipped", "share of inputs clipped", False),
    ("weight_clipped", "share of weights clipped", False),
    ("gradient_clipped", "share of gradients clipped", False),
    ("gradient_zeros", "share of gradients rounded to zero", False),
    ("running_mean", "largest running mean of batch norms", False),
)
_NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class Watch:
    """Rows of what each layer saw, one for each layer and optimizer step that is recorded.

    Made by `watch`; it records until `close`, or until the ``with`` block ends.

    Attributes
    ----------
    rows : list of dict
        ``"step"`` and ``"layer"`` in each. Of a quantized product, of the step that the optimizer is about to take:
        ``input_scale``, ``weight_scale``, ``gradient_scale`` (means), ``input_clipped``, ``input_zeros`` and so on (the
        share beyond the largest value, and the share that was rounded to zero), ``peak`` (the largest dL/dy),
        ``grad_scale`` (GradScale's power of two) and ``clip`` (PACT's), where the layer has them. Of a batch norm:
        ``running_mean`` and ``running_var``, the largest magnitude over channels.
    step : int
        Steps of optimizers of this model's parameters since `watch`.
    """

    def __init__(self, model: nn.Module, every: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self.step = 0
        self._every = every
        self._sites: dict[str, Site] = {}
        for name, module in model.named_modules():
            for weight, site in sites_of(module).items():
                path = name if weight == "weight" and name else f"{name}.{weight}".lstrip(".")
                self._sites[path] = site
        self._norms = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _NORMS) and module.running_mean is not None
        }
        self._parameters = {id(p) for p in model.parameters()}
        self._recorded_before = {site: site.recording for site in self._sites.values()}
        self._hook: Any = register_optimizer_step_pre_hook(self._see)
        self._record_next()

    def _record_next(self) -> None:
        """Look at shares, which costs time, only in the steps that will be recorded."""
        for site, before in self._recorded_before.items():
            site.recording = before or self.step % self._every == 0

    def _see(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Record, before the optimizer moves anything and the scales vote."""
        moved = (id(p) for group in optimizer.param_groups for p in group["params"])
        if self._parameters.isdisjoint(moved):
            return
        if self.step % self._every == 0:
            self.rows += [{"step": self.step, "layer": name, **_of_site(site)} for name, site in self._sites.items()]
            for name, norm in self._norms.items():
                averages = {key: float(getattr(norm, key).abs().amax()) for key in ("running_mean", "running_var")}
                self.rows.append({"step": self.step, "layer": name, **averages})
        self.step += 1
        self._record_next()

    def close(self) -> None:
        """Stop recording and leave the model as it was; the rows stay."""
        self._hook.remove()
        for site, before in self._recorded_before.items():
            site.recording = before

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        watched = f"{len(self._sites)} products, {len(self._norms)} batch norms"
        return f"Watch({watched}, {self.step} steps, {len(self.rows)} rows)"

    def plot(self) -> Figure:
        """Draw every quantity that was seen against the step, a line for each layer.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            matplotlib is not installed: ``pip install lowbit[plot]``.
        lowbit.Error
            Nothing was recorded yet.
        """
        from matplotlib.figure import Figure  # noqa: PLC0415  # only who draws needs it

        panels = [panel for panel in _PANELS if any(panel[0] in row for row in self.rows)]
        if not panels:
            raise lb.Error("rows: nothing was recorded yet; an optimizer of this model's parameters must step")
        columns = min(2, len(panels))
        lines = math.ceil(len(panels) / columns)
        figure = Figure(figsize=(6 * columns, 3 * lines), layout="constrained")
        for ax, (key, title, logarithmic) in zip(
            figure.subplots(lines, columns, squeeze=False).flat, panels, strict=False
        ):
            for layer in dict.fromkeys(row["layer"] for row in self.rows if key in row):
                seen = [row for row in self.rows if row["layer"] == layer and key in row]
                ax.plot([row["step"] for row in seen], [row[key] for row in seen], label=layer, linewidth=1)
            ax.set(title=title, xlabel="step")
            if logarithmic:
                ax.set_yscale("log", base=2)
            ax.legend(fontsize="x-small")
        for ax in figure.axes[len(panels) :]:
            ax.remove()
        return figure

    def to_tensorboard(self, writer: Any) -> None:
        """Write all rows as scalars ``<layer>/<quantity>``.

        Parameters
        ----------
        writer : torch.utils.tensorboard.SummaryWriter
            Or anything with ``add_scalar(tag, value, step)``.
        """
        for row in self.rows:
            for key, value in row.items():
                if key not in ("step", "layer"):
                    writer.add_scalar(f"{row['layer']}/{key}", value, row["step"])


def _of_site(site: Site) -> dict[str, float]:
    """Read a site's record and state."""
    seen = dict(zip(site.SLOTS, site.record.tolist(), strict=True))
    row = {name: seen[name] for name in site.SLOTS if name.startswith(("input_", "weight_"))}
    row |= {name.replace("grad_", "gradient_"): seen[name] for name in site.SLOTS if name.startswith("grad_")}
    row["peak"] = seen["peak"]
    if site.grad_scale is not None:
        row["grad_scale"] = float(site.grad_scale)
    if site.clip is not None:
        row["clip"] = float(site.clip.detach())
    return row


def watch(model: nn.Module, every: int = 1) -> Watch:
    """Record scales, clipped and vanished shares, GradScale, clips and running means while a model trains.

    Parameters
    ----------
    model : torch.nn.Module
        A prepared model; of a float one the batch norms are recorded.
    every : int
        Record the first step and every so many after it. A recorded step takes longer: shares are counted.

    Returns
    -------
    Watch
        It records whenever an optimizer of this model's parameters is about to step, until closed.

    Raises
    ------
    lowbit.Error
        `every` is not positive, or there is nothing in the model to watch.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch import prepare, recipes
    >>> _ = torch.manual_seed(0)
    >>> net = prepare(torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3))), recipes.sun2020())
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> with watch(net) as seen:
    ...     for _ in range(4):
    ...         optimizer.zero_grad()
    ...         net(torch.randn(16, 8)).square().mean().backward()
    ...         optimizer.step()
    >>> seen
    Watch(1 products, 0 batch norms, 4 steps, 4 rows)
    >>> [row["grad_scale"] for row in seen.rows]
    [1.0, 2.0, 4.0, 8.0]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(every, bool) or not isinstance(every, int):
        raise TypeError(f"every: expected an int, got {type(every).__name__}")
    if every < 1:
        raise lb.Error(f"every: {every} is not 1 or more")
    if not any(isinstance(module, Site | _NORMS) for module in model.modules()):
        raise lb.Error("model: there is nothing to watch; prepare it first")
    return Watch(model, every)
