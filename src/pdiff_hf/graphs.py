"""Steps of a training as a CUDA graph: recorded once, then replayed by one launch instead of some hundred."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

# Steps that are launched operation by operation before one is recorded: libraries prepare themselves in the first.
WARM_UP_STEPS = 3
# Inputs of a step, above which the GPU is busy for longer than it takes to launch all operations.
MAX_INPUT_BYTES = 2**24

# Inputs on the device → loss and whatever else is wanted of the step, such as the norm of the gradient.
Update = Callable[..., tuple[torch.Tensor, ...]]


class StaticStep:
    """A step of training on memory that stays where it is, and without values of the host: so it can be recorded.

    Args:
        update (`Callable`): Does the step, from its inputs.
        optimizer (`torch.optim.Optimizer`): That `update` uses, fused; a schedule sets its learning rates.
        inputs (`Sequence[torch.Tensor]`): Like those of all steps, in shape, type and device.
    """

    def __init__(self, update: Update, optimizer: torch.optim.Optimizer, inputs: Sequence[torch.Tensor]):
        self._update, self._groups = update, optimizer.param_groups
        self.inputs = [torch.empty_like(tensor) for tensor in inputs]
        self._rates = [torch.zeros((), device=inputs[0].device) for _ in self._groups]

    def load(self, inputs: Sequence[torch.Tensor]) -> None:
        """Take over the inputs of a step, and its learning rates."""
        torch._foreach_copy_(self.inputs, list(inputs))
        for rate, group in zip(self._rates, self._groups, strict=True):
            rate.fill_(group["lr"])

    def run(self) -> tuple[torch.Tensor, ...]:
        """Do the step: what the update returns, in memory that later steps may overwrite."""
        with self._capturable():
            return self._update(*self.inputs)

    @contextmanager
    def _capturable(self) -> Iterator[None]:
        """The optimiser's options for a graph: its own for everybody else, such as schedules and checkpoints."""
        own = [(group["lr"], group["capturable"]) for group in self._groups]
        for group, rate in zip(self._groups, self._rates, strict=True):
            group.update(lr=rate, capturable=True)
        try:
            yield
        finally:
            for group, (rate, capturable) in zip(self._groups, own, strict=True):
                group.update(lr=rate, capturable=capturable)


class GraphedUpdate:
    """Does steps as `update` does, after a few of them by replaying a CUDA graph.

    The step before the recording shows whether anything waits for the GPU. If so, as in a base network that looks at
    its own results, or if CUDA refuses to record, all later operations are launched one by one, with one warning.
    """

    def __init__(self, update: Update, optimizer: torch.optim.Optimizer):
        self._update, self._optimizer = update, optimizer
        self._stream = torch.cuda.Stream()
        self._num_launched = 0
        self._can_record = True
        self._step: StaticStep | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outputs: tuple[torch.Tensor, ...] | None = None

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """One step on inputs on the GPU, which have the same shapes in all steps."""
        if self._graph is None and self._can_record:
            try:
                if self._num_launched == WARM_UP_STEPS:
                    self._record(inputs)
                elif self._num_launched == WARM_UP_STEPS - 1:
                    with _refused_waits():
                        outputs = self._launch(inputs)
                    return outputs
            except RuntimeError as error:
                self._can_record = False
                warnings.warn(
                    "expected a training step that can be recorded as a CUDA graph, found that it cannot "
                    f"({error}); its operations are launched one by one, which takes longer.",
                    stacklevel=2,
                )
        if self._graph is None:
            return self._launch(inputs)
        self._step.load(inputs)
        self._graph.replay()
        return self._outputs

    def _record(self, inputs: Sequence[torch.Tensor]) -> None:
        if sum(tensor.nbytes for tensor in inputs) > MAX_INPUT_BYTES:
            self._can_record = False
            return
        step, graph = StaticStep(self._update, self._optimizer, inputs), torch.cuda.CUDAGraph()
        # Other threads, such as those that pin memory, may go on with what they do.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = step.run()
        self._step, self._graph, self._outputs = step, graph, outputs

    def _launch(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        # On a stream of its own: what is recorded must not depend on anything that was begun on that of everybody.
        present = torch.cuda.current_stream()
        self._stream.wait_stream(present)
        with torch.cuda.stream(self._stream):
            outputs = self._update(*inputs)
        present.wait_stream(self._stream)
        self._num_launched += 1
        return outputs


@contextmanager
def _refused_waits() -> Iterator[None]:
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        # That it does not detect all of them.
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def takes_graphs(device: torch.device) -> bool:
    """Whether steps on a device may be recorded; their optimiser has to be fused."""
    return device.type == "cuda"


def graphed(update: Update, optimizer: torch.optim.Optimizer) -> Update:
    """An update as a CUDA graph where it may be one, else as it is."""
    device = optimizer.param_groups[0]["params"][0].device
    return GraphedUpdate(update, optimizer) if takes_graphs(device) else update
