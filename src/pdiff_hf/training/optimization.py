"""A step of training: gradient, optimiser, schedule and moving average, on one process or shared by many."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast
from diffusers.optimization import get_scheduler
from torch import nn

from ..graphs import GraphedUpdate
from ..models.config import OptimizationConfig
from .checkpoints import is_sharded
from .ema import ShardedEMA, whole_tensor
from .step_choice import StepChoice


class Optimization:
    """A model with what trains it, prepared for all processes: optimiser, schedule and moving average."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        config: OptimizationConfig,
        loss_fn: Callable[..., torch.Tensor],
    ):
        self.accelerator, self.config, self.loss_fn = accelerator, config, loss_fn
        if accelerator.num_processes > 1 and accelerator.device.type != "cpu":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        # FSDP replaces the parameters; the trained ones are put together in here.
        self.whole = copy.deepcopy(model).to(accelerator.device) if is_sharded(accelerator) else None
        if self.whole is None:
            model.to(accelerator.device)
        options = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        optimizer = torch.optim.AdamW(model.parameters(), **options, fused=True)
        # Not prepared by Accelerate, which would step it once per process.
        self.lr_scheduler = get_scheduler(
            config.lr_scheduler, optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=config.steps
        )
        with warnings.catch_warnings():
            # torch has another name for the option that Accelerate passes on.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.parameters = list(self.model.parameters())
        # No processes that have to agree, nothing compiled, no scale of the loss, a batch in one part.
        is_alone = accelerator.distributed_type == DistributedType.NO and self.model is model
        self._is_plain = is_alone and accelerator.scaler is None and config.gradient_accumulation_steps == 1
        self._graphed: GraphedUpdate | None = None
        # Autocast keeps weights that it has cast, which a graph would not cast again.
        if self._is_plain and accelerator.device.type == "cuda" and accelerator.mixed_precision == "no":
            self._graphed = GraphedUpdate(self.update, optimizer)
        self.ema = None
        if config.use_ema:
            average = {"decay": config.ema_decay, "use_ema_warmup": True, "power": 0.75, "foreach": True}
            self.ema = ShardedEMA(self.parameters, **average)
            accelerator.register_for_checkpointing(self.ema)
        accelerator.register_for_checkpointing(self.lr_scheduler)

    def step(self, batches: Iterable[Sequence[torch.Tensor]]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """One optimiser step on all parts of a batch: their losses, and the norm of the gradient."""
        losses = []
        for inputs in batches:
            loss, norm = self._advance(*inputs)
            losses.append(loss)
        self.lr_scheduler.step()
        if self.ema is not None:
            self.ema.step(self.parameters)
        # With fp16 an infinite gradient only lowers the scale of the loss.
        return losses, norm if self.accelerator.scaler is None else torch.zeros_like(norm)

    def _advance(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self._graphed is not None:
            return self._graphed(*inputs)
        return self.update(*inputs) if self._is_plain else self._accumulate(*inputs)

    def update(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimiser step of a single process: its loss and the norm of its gradient. Nothing waits for values."""
        # Without the wrapper of Accelerate, which would count the parts of a batch.
        optimizer = self.optimizer.optimizer
        optimizer.zero_grad()
        with self.accelerator.autocast():
            loss = self.loss_fn(self.model, *inputs)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm, foreach=True)
        optimizer.step()
        return loss.detach(), norm

    def _accumulate(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One part of the batch of an optimiser step, the last of which does it and knows the norm of the gradient."""
        accelerator, norm = self.accelerator, None
        with accelerator.accumulate(self.model):
            with accelerator.autocast():
                loss = self.loss_fn(self.model, *inputs)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norm = whole_tensor(accelerator.clip_grad_norm_(self.parameters, self.config.max_grad_norm))
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach(), norm

    @torch.no_grad()
    def consider(self, choice: StepChoice, step: int) -> None:
        """Let a choice consider the model, averaged if there is an average."""
        present = [parameter.detach().clone() for parameter in self.parameters] if self.ema is not None else ()
        if self.ema is not None:
            self.ema.copy_to(self.parameters)
        choice.consider(step, self.model.eval())
        self.model.train()
        if self.whole is not None:
            # What a forward pass has gathered stays for a backward pass, and the next step would take it for weights.
            self.model.reshard()
        for parameter, value in zip(self.parameters, present, strict=False):
            parameter.copy_(value)

    def whole_model(self, choice: StepChoice | None = None) -> nn.Module:
        """The model without wrappers, in eval mode, the same on all processes: as chosen, or averaged, if it is."""
        accelerator, model = self.accelerator, self.whole
        # What only training needs goes first.
        self.optimizer.zero_grad()
        self._graphed = None
        if choice is not None:
            choice.restore()
        elif self.ema is not None:
            self.ema.copy_to(self.parameters)
        if model is None:
            model = accelerator.unwrap_model(self.model, keep_torch_compile=False)
            if accelerator.num_processes > 1:
                # Without SyncBatchNorm, running statistics are those of each process's rows.
                broadcast(dict(model.named_buffers()))
        else:
            weights = accelerator.get_state_dict(self.model)
            if accelerator.is_main_process:
                model.load_state_dict(weights)
            broadcast(dict(model.state_dict()))
        return model.eval()
