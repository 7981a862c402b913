"""The diffusers pipeline that generates network parameters."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import hf_hub_download

from ..base_model import BaseModel
from ..files import read_json, replacing, write_json
from ..identity import NetworkIdentity, pipeline_identity, shown
from ..layout import ParameterLayout
from .conditioning import Conditions, check_components, prepare_guidance
from .hub import download_pipeline
from .inputs import check_counts, check_fraction, check_generator, check_latents, replaced_latents
from .schedulers import check_scheduler, saved_scheduler, state_schedule, step_options

OUTPUT_TYPES = ("state_dict", "pt", "np", "latent")

# Of `from_pretrained`, what is about downloading.
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")

ENCODER = "condition_encoder"

SHIM = "from pdiff_hf import PDiffPipeline  # noqa: F401\n"


@dataclass
class PDiffPipelineOutput(BaseOutput):
    """Output of [`PDiffPipeline`].

    Args:
        parameters (`list[dict[str, torch.Tensor]]`, `torch.Tensor` or `np.ndarray`):
            One state dict of the generated tensors per network, or vectors of shape `(B, D)`, or, with
            `output_type="latent"`, scaled latents of shape `(B, C, L)`.
    """

    parameters: list[dict[str, torch.Tensor]] | torch.Tensor | np.ndarray


class PDiffPipeline(DiffusionPipeline):
    r"""Generates network parameters: noise → reverse diffusion → decoder (Source: Wang et al. 2024, arXiv 2402.13144).

    This model inherits from [`DiffusionPipeline`]. Check the superclass documentation for the generic methods the
    library implements for all pipelines (downloading, saving, running on a particular device, etc.).

    Args:
        autoencoder ([`ModelMixin`]):
            Of a kind of `pdiff_hf.models.auto.AUTOENCODERS`: decodes latents to parameter vectors; its config carries
            their layout.
        unet ([`ModelMixin`]):
            Of a kind of `pdiff_hf.models.auto.DENOISERS`: denoises the scaled latents.
        scheduler ([`SchedulerMixin`]):
            The one of training, a [`DDPMScheduler`]. In its place may be put what its `compatibles` are and draws the
            same spread, made by `from_config` from its config.
        base_model (`dict`, *optional*):
            `BaseModel.to_dict()`; set the attribute `base_model` instead to also carry the weights.
        condition_encoder ([`ConditionEncoder`], *optional*):
            Of a denoiser that was trained with conditions: what they are, and how the denoiser is given them.
    """

    model_cpu_offload_seq = "unet->autoencoder"
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "noise_pred"]
    _optional_components: ClassVar[list[str]] = ["condition_encoder"]

    def __init__(
        self,
        autoencoder: ModelMixin,
        unet: ModelMixin,
        scheduler: SchedulerMixin,
        base_model: dict | None = None,
        condition_encoder: ModelMixin | None = None,
    ):
        super().__init__()
        components = {"autoencoder": autoencoder, "unet": unet, "scheduler": scheduler}
        self.register_modules(**components, condition_encoder=condition_encoder)
        shape = (unet.config.get("in_channels"), unet.config.get("sample_size"))
        if None not in shape and shape != autoencoder.latent_shape:
            raise ValueError(
                f"the unet is for latents {shape}, the autoencoder gives {autoencoder.latent_shape}; give those that "
                "were trained together."
            )
        check_components(unet, condition_encoder)
        if hasattr(unet, "check_scheduler"):
            unet.check_scheduler(scheduler)
        self.register_to_config(base_model=base_model)
        self._base_root = None
        self._interrupt, self._num_timesteps = False, 0
        state_schedule(scheduler)
        # A copy, because its config and schedule may be edited in place.
        self._trained_scheduler = copy.deepcopy(scheduler)

    @property
    def layout(self) -> ParameterLayout:
        """Layout of the generated vectors."""
        return self.autoencoder.layout

    @property
    def num_timesteps(self) -> int:
        """Number of denoising steps of the call that is running, or of the last one."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback has set `pipe._interrupt`: the steps that are left are skipped."""
        return self._interrupt

    @property
    def identity(self) -> NetworkIdentity:
        """Which network the generated parameters belong to.

        Raises:
            ValueError: the autoencoder was trained for another one.
        """
        where = self.config.get("_name_or_path") or "the pipeline"
        return pipeline_identity(shown(where), self.autoencoder.identity, self.base_model)

    @property
    def base_model(self) -> BaseModel | None:
        """The network that the generated parameters belong to, or `None` when the pipeline carries none."""
        component = self.unet.config.get("_name_or_path")
        if self.config.base_model is not None and self._base_root is None and component:
            # Loaded by plain diffusers, which downloads components only; a folder in the cache is named by its commit.
            self._base_root = Path(component).parent
            weights = BaseModel.from_dict(self.config.base_model).carried_weights
            if weights is not None and self._base_root.parent.name == "snapshots":
                hf_hub_download(self.config._name_or_path, weights, revision=self._base_root.name)
        return BaseModel.from_dict(self.config.base_model, root=self._base_root)

    @base_model.setter
    def base_model(self, base_model: BaseModel | None) -> None:
        if self.autoencoder.config.layout is not None:
            pipeline_identity("the base model", self.autoencoder.identity, base_model)
        self.register_to_config(base_model=None if base_model is None else base_model.to_dict())
        self._base_root = None if base_model is None else base_model.root

    def build_model(
        self, parameters: Mapping[str, torch.Tensor] | torch.Tensor, trusted_imports: Sequence[str] = ()
    ) -> torch.nn.Module:
        """Build the base model with generated parameters in place, in eval mode.

        Args:
            parameters (`Mapping[str, torch.Tensor]` or `torch.Tensor` of shape `(D,)`):
                One element of the pipeline's output.
            trusted_imports (`Sequence[str]`, *optional*):
                Import paths outside of this package that the base model may be built by.

        Raises:
            ValueError: the pipeline has no base model, or the parameters do not fit its layout.
        """
        if self.base_model is None:
            raise ValueError("this pipeline carries no base model; set pipe.base_model = BaseModel.timm(...) first.")
        model = self.base_model.build(trusted_imports=trusted_imports)
        vector = parameters if isinstance(parameters, torch.Tensor) else self.layout.flatten(parameters)
        self.layout.load_into(model, vector)
        return model

    def save_adapter(self, parameters: Mapping[str, torch.Tensor] | torch.Tensor, save_directory: str | Path) -> None:
        """Save generated parameters as a folder that `peft.PeftModel.from_pretrained(base, save_directory)` loads.

        Args:
            parameters (`Mapping[str, torch.Tensor]` or `torch.Tensor` of shape `(D,)`):
                One element of the pipeline's output.
            save_directory (`str` or `Path`):
                Made when it does not exist.

        Raises:
            ValueError: what it generates are no adapters, or the parameters do not fit its layout.
        """
        if self.base_model is None:
            raise ValueError("this pipeline carries no base model; set pipe.base_model = BaseModel.timm(...) first.")
        vector = parameters if isinstance(parameters, torch.Tensor) else self.layout.flatten(parameters)
        self.base_model.save_adapter(self.layout, vector, save_directory)

    def save_pretrained(self, save_directory: str | Path, **kwargs) -> None:
        """Save the pipeline with its base model's weights and the `pipeline.py` that plain diffusers needs.

        Keyword arguments: [`DiffusionPipeline.save_pretrained`]. What is there stays until all is written.

        Raises:
            OSError: a file cannot be written.
        """
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", Path(save_directory).name)
        with replacing(save_directory, merge=True) as folder:
            super().save_pretrained(str(folder), **kwargs)
            if self.condition_encoder is None:
                # As those of versions that knew no conditions, which can then load it.
                index = read_json(folder / "model_index.json")
                write_json(folder / "model_index.json", {key: index[key] for key in index if key != ENCODER})
            if self.base_model is not None and self.base_model.carried_weights is not None:
                self.base_model.copy_to(folder)
            (folder / "pipeline.py").write_text(SHIM, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs) -> "PDiffPipeline":
        """Load a pipeline from a folder or the Hub, with its base model's weights.

        Weights are read from safetensors only, and no code of the repository is run.

        Args:
            pretrained_model_name_or_path (`str` or `Path`):
                A folder, or `user/name` on the Hub.
            kwargs:
                Those of [`DiffusionPipeline.from_pretrained`]: `revision`, `token`, `cache_dir`, `variant`,
                `torch_dtype`, components by their names, and so on.

        Raises:
            ValueError: there is no such pipeline on the Hub, or a file of it is missing, damaged or not safe to load.
        """
        source = str(pretrained_model_name_or_path)
        options = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        folder = Path(source)
        if not folder.is_dir():
            components = [name for name in ("autoencoder", "unet", ENCODER) if name in kwargs]
            folder = download_pipeline(source, kwargs.get("variant"), components, **options)
        pipeline = super().from_pretrained(str(folder), **{"use_safetensors": True, **kwargs})
        pipeline._base_root = folder
        if "scheduler" in kwargs and (folder / "scheduler").is_dir():
            pipeline._trained_scheduler = saved_scheduler(read_json(folder / "scheduler" / "scheduler_config.json"))
        pipeline.register_to_config(_name_or_path=source)
        # One that was passed in may be another network's.
        if "autoencoder" in kwargs:
            _ = pipeline.identity
        return pipeline

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """As in diffusers. Models without parameters, such as a PCA, stay on the device: Accelerate asks for one."""
        models = {name: model for name, model in self.components.items() if isinstance(model, torch.nn.Module)}
        staying = {name for name, model in models.items() if next(model.parameters(), None) is None}
        self.model_cpu_offload_seq = "->".join(
            name for name in type(self).model_cpu_offload_seq.split("->") if name not in staying
        )
        self._exclude_from_cpu_offload = sorted(staying)
        super().enable_model_cpu_offload(gpu_id, device)

    def push_to_hub(self, repo_id: str, *, variant: str | None = None, **options) -> str:
        """Push the pipeline with its base model's weights and a card in one commit, see [`push_pipeline`].

        Args:
            repo_id (`str`): `user/name`; made when it does not exist.
            variant (`str`, *optional*): Save the weights as this variant, such as `"fp16"`.
            options: `private`, `revision`, `token`, `create_pr` and `standalone`, see [`push_pipeline`].

        Returns:
            `str`: address of the commit or pull request.

        Raises:
            ValueError: the Hub refuses; nothing is committed then.
        """
        # Here, because a stand-alone export does not carry it.
        from .push import push_loaded

        return push_loaded(self, repo_id, variant, **options)

    def check_inputs(
        self,
        batch_size: int,
        num_inference_steps: int,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        latents: torch.Tensor | None,
        truncation: float,
        output_type: str,
        callback_on_step_end: Callable | None,
        callback_on_step_end_tensor_inputs: list[str],
    ) -> None:
        """Raise `ValueError` for arguments of `__call__` that cannot be served."""
        check_counts(batch_size=batch_size, num_inference_steps=num_inference_steps)
        check_generator(generator, batch_size)
        check_latents(latents, (batch_size, *self.autoencoder.latent_shape))
        check_fraction("truncation", truncation)
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {output_type!r}.")
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise ValueError(f"callback_on_step_end must be callable, got {callback_on_step_end!r}.")
        if not isinstance(callback_on_step_end_tensor_inputs, (list, tuple)):
            raise ValueError(
                "callback_on_step_end_tensor_inputs must be a list of names, got "
                f"{callback_on_step_end_tensor_inputs!r}."
            )
        if unknown := set(callback_on_step_end_tensor_inputs) - {*self._callback_tensor_inputs}:
            raise ValueError(f"a callback can only be given {self._callback_tensor_inputs}, not {sorted(unknown)}.")
        check_scheduler(self.scheduler, self._trained_scheduler, int(num_inference_steps))

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 1000,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        truncation: float = 1.0,
        output_type: str = "state_dict",
        return_dict: bool = True,
        condition: Conditions | None = None,
        condition_embeds: torch.Tensor | None = None,
        negative_condition_embeds: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict | None]
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 - diffusers' signature
    ) -> PDiffPipelineOutput | tuple:
        r"""The call function to the pipeline for generation.

        Args:
            batch_size (`int`, *optional*, defaults to 1):
                The number of networks to generate.
            num_inference_steps (`int`, *optional*, defaults to 1000):
                The number of denoising steps: 1000 for the `DDPMScheduler` that was trained with, about 20 for a
                solver such as `DPMSolverMultistepScheduler`.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                Makes generation deterministic; a list gives every network its own.
            latents (`torch.Tensor` of shape `(batch_size, C, L)`, *optional*):
                Standard normal noise to start from, instead of drawing it.
            truncation (`float`, *optional*, defaults to 1.0):
                Shrinks the final latents towards the mean of the dataset's, with a condition towards what a regression
                expects of it, where the UNet has one: 1 as sampled, 0 the decoded mean.
            output_type (`str`, *optional*, defaults to `"state_dict"`):
                `"state_dict"`, `"pt"` or `"np"` for vectors `(B, D)`, `"latent"` for scaled latents `(B, C, L)`.
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether or not to return a [`PDiffPipelineOutput`] instead of a plain tuple.
            condition (`Mapping` or `Sequence[Mapping]`, *optional*):
                What the networks are for, as `{kind: value}`, such as `{"classes": ["cat", "dog"]}`; see
                [`ConditionEncoder.encode`]. One for all networks, or one each.
            condition_embeds (`torch.Tensor` of shape `(1, n)` or `(batch_size, n)`, *optional*):
                The same as the condition encoder gives it.
            negative_condition_embeds (`torch.Tensor` of shape `(1, n)` or `(batch_size, n)`, *optional*):
                What guidance leads away from, in the place of no condition.
            guidance_scale (`float`, *optional*, defaults to 1.0):
                Of classifier-free guidance, unconditioned + scale · (conditioned - unconditioned): 1 the condition as
                it was learned, more exaggerates it for twice the time, 0 leaves it out.
            callback_on_step_end (`Callable`, [`PipelineCallback`] or [`MultiPipelineCallbacks`], *optional*):
                Called as `callback(pipe, step, timestep, tensors)` after every step; may return replaced latents as
                `{"latents": tensor}`, and may set `pipe._interrupt = True` to skip the steps that are left.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*, defaults to `["latents"]`):
                Names of the tensors the callback is given: `"latents"` after the step, and `"noise_pred"`, what the
                UNet predicted from the latents before it (noise, velocity or sample, as the scheduler's config says).

        Returns:
            [`PDiffPipelineOutput`] or `tuple`:
                The generated parameters, as the only element of the tuple if `return_dict` is `False`.

        Raises:
            ValueError: an argument cannot be served.
        """
        # 1. Check inputs
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        self.check_inputs(
            batch_size,
            num_inference_steps,
            generator,
            latents,
            truncation,
            output_type,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        batch_size, num_inference_steps = int(batch_size), int(num_inference_steps)
        conditions = (condition, condition_embeds, negative_condition_embeds)
        guidance = prepare_guidance(self.condition_encoder, batch_size, *conditions, guidance_scale)
        generator = list(generator) if isinstance(generator, tuple) else generator
        device = self._execution_device
        self._interrupt = False

        # 2. Prepare timesteps and latents
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        self._num_timesteps = len(self.scheduler.timesteps)
        shape = (batch_size, *self.autoencoder.latent_shape)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        # In float32, whatever the UNet computes in: the same seeds give the same networks, and steps do not round.
        latents = latents.to(device=device, dtype=torch.float32) * self.scheduler.init_noise_sigma
        options = step_options(self.scheduler, generator)
        dtype = self.unet.dtype
        guidance = guidance.to(device, dtype).prepared(self.unet)

        # 3. Denoise
        with self.progress_bar(total=self.num_timesteps) as progress_bar:
            for i, t in enumerate(self.scheduler.timesteps):
                if self.interrupt:
                    continue
                model_input = self.scheduler.scale_model_input(latents, t).to(dtype)
                noise_pred = guidance.predict(self.unet, model_input, t)
                latents = self.scheduler.step(noise_pred, t, latents, return_dict=False, **options)[0]
                if callback_on_step_end is not None:
                    known = {"latents": latents, "noise_pred": noise_pred}
                    tensors = {name: known[name] for name in callback_on_step_end_tensor_inputs}
                    latents = replaced_latents(callback_on_step_end(self, i, t, tensors), latents)
                progress_bar.update()

        # 4. Truncate
        mean = self.autoencoder.scale_latents(self.autoencoder.latent_mean).to(device=device, dtype=latents.dtype)
        mean = guidance.expected(self.unet, mean)
        latents = torch.lerp(mean.expand_as(latents), latents, float(truncation))

        # 5. Decode
        if output_type == "latent":
            parameters = latents
        else:
            parameters = torch.cat([*self.autoencoder.decode_rows(self.autoencoder.unscale_latents(latents))])
        if output_type == "np":
            parameters = parameters.cpu().numpy()
        elif output_type == "state_dict":
            parameters = [self.layout.unflatten(vector) for vector in parameters]

        # 6. Offload all models
        self.maybe_free_model_hooks()

        return PDiffPipelineOutput(parameters=parameters) if return_dict else (parameters,)
