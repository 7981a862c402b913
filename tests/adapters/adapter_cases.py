"""Small bases and adapters of them, made by the real peft; and what has to become of each."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import timm
import torch
import transformers
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Large enough initial weights to be seen in the logits: with the usual ones, a wrong scaling passes.
COMMON = {"vocab_size": 64, "num_labels": 5, "pad_token_id": 0, "initializer_range": 0.3}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16, "bos_token_id": 1, "eos_token_id": 2}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
# With timm's zero_init_last, blocks of an untrained ResNet add nothing, and no adapter in them is seen.
RESNEXT = {"layers": (1,) * 4, "channels": (8,) * 4, "cardinality": 2, "base_width": 64, "num_classes": 5}
TIMM = {"vit": ("vit_tiny_patch16_224", VIT), "resnext": ("resnext50_32x4d", RESNEXT | {"zero_init_last": False})}


def make_base(folder: Path, name: str) -> Path:
    """A base with random weights in a folder that its library loads."""
    torch.manual_seed(0)
    place = folder / name
    if name in TIMM:
        architecture, arguments = TIMM[name]
        model = timm.create_model(architecture, **arguments)
        timm.models.save_for_hf(model, place, model_args=arguments, safe_serialization=True)
    elif name == "gpt2":
        transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**COMMON, **GPT2)).save_pretrained(place)
    else:
        own = BERT | ({"hidden_size": 48} if name == "bert-wide" else {})
        transformers.BertForSequenceClassification(transformers.BertConfig(**COMMON, **own)).save_pretrained(place)
    return place


def load_base(place: Path) -> torch.nn.Module:
    """The base of a folder, as people load it."""
    if place.name in TIMM:
        return timm.create_model(f"local-dir:{place}", pretrained=True).eval()
    auto = transformers.AutoModelForSequenceClassification
    return auto.from_pretrained(place).eval()


@torch.no_grad()
def probe(model: torch.nn.Module, base: str) -> torch.Tensor:
    """Logits `(2, 5)` on an input that is a formula, not a draw."""
    if base in TIMM:
        return model(torch.sin(torch.arange(2 * 3 * 32 * 32) * 0.37).reshape(2, 3, 32, 32))
    tokens = (torch.arange(16).reshape(2, 8) * 7 + 3) % 60 + 1
    return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits


def make_adapter(folder: Path, base: Path, config, seed: int = 0, change: Callable[[Path], object] | None = None):
    """An adapter with random factors as peft saves it, then changed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(load_base(base), config)
        torch.manual_seed(seed)
        for _, tensor in sorted(model.named_parameters()):
            if tensor.requires_grad:
                tensor.data = tensor.data * 0.5 + 0.2 * torch.randn(tensor.shape)
        model.peft_config["default"].base_model_name_or_path = f"someone/{base.name}"
        model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    if change is not None:
        change(folder)
    return folder


def logits_of(folder: Path, base: Path) -> torch.Tensor:
    """What plain peft computes with an adapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return probe(PeftModel.from_pretrained(load_base(base), folder).eval(), base.name)


def lora(*targets: str, **values):
    """A config with defaults for the small BERT."""
    values = {"r": 4, "lora_alpha": 4, "task_type": "SEQ_CLS", **values}
    return LoraConfig(target_modules=list(targets) or values.pop("target_modules", ["query", "value"]), **values)


def tensors(edit: Callable[[str, torch.Tensor], tuple[str, torch.Tensor] | None]) -> Callable[[Path], None]:
    """A change of a file: the new name and tensor of each, or `None` to leave it out."""

    def change(folder: Path) -> None:
        new = dict(filter(None, (edit(*item) for item in load_file(folder / WEIGHTS).items())))
        save_file({k: v.contiguous() for k, v in new.items()}, folder / WEIGHTS, metadata={"format": "pt"})

    return change


def config(**values) -> Callable[[Path], None]:
    """A change of the config."""
    return lambda folder: set_config(folder, values)


def set_config(folder: Path, values: Mapping) -> None:
    known = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(known | dict(values)))


def to_bin(folder: Path, content=None) -> None:
    content = content or load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(content, folder / "adapter_model.bin")


def factors(edit):
    return tensors(lambda k, v: (k, edit(k, v) if "lora_" in k else v))


def without(part: str):
    return tensors(lambda k, v: None if part in k else (k, v))


def renamed(pattern: str, new: str):
    return tensors(lambda k, v: (re.sub(pattern, new, k), v))


TURN = torch.tensor([[1.0, 2, 0, 0], [0, 1, 0, 0.5], [0.3, 0, 2, 0], [0, 0, 1, 0.7]])
OTHERS = {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}
CONV = {"task_type": None, "lora_alpha": 8}


def turned(k: str, v: torch.Tensor) -> torch.Tensor:
    return TURN @ v if "lora_A" in k else v @ TURN.inverse()


# By name: the base, a function that makes the config (peft changes what it is given), and a change of the files.
GOOD = {
    "plain": ("bert", lora, None),
    "rslora": ("bert", lambda: lora(lora_alpha=16, use_rslora=True), None),
    "patterns": (
        "bert",
        lambda: lora(rank_pattern={"layer.0.*query": 2}, alpha_pattern={".*value": 12}),
        None,
    ),
    "patterns-rslora": (
        "bert",
        lambda: lora(r=9, use_rslora=True, alpha_pattern={"1.attention.self.query": 6}),
        None,
    ),
    "dora": ("bert", lambda: lora(use_dora=True, lora_alpha=8), None),
    "lora-bias": ("bert", lambda: lora(lora_bias=True, lora_alpha=8), None),
    "base-bias": ("bert", lambda: lora(bias="lora_only"), None),
    "no-head": ("bert", lambda: lora(task_type=None), None),
    "regex": ("bert", lambda: lora(target_modules=r".*layer\.1\.attention\.self\.(query|key)"), None),
    "part": (
        "bert",
        lambda: lora("query", "dense", layers_to_transform=[1], layers_pattern="layer", exclude_modules=".*output.*"),
        None,
    ),
    "rank-above-width": ("bert", lambda: lora(r=40, lora_alpha=40), None),
    "vera": ("bert", lambda: VeraConfig(r=8, **OTHERS), None),
    "ia3": ("bert", lambda: IA3Config(**OTHERS | {"target_modules": ["key", "value"]}, feedforward_modules=[]), None),
    "conv1d": ("gpt2", lambda: lora("c_attn", "c_proj", fan_in_fan_out=True, lora_alpha=8), None),
    "embedding": ("gpt2", lambda: lora("wte", "c_fc", fan_in_fan_out=True, lora_alpha=8), None),
    "timm-vit": ("vit", lambda: lora("qkv", "fc1", task_type=None, modules_to_save=["head"]), None),
    "timm-conv": ("resnext", lambda: lora("conv1", "conv3", **CONV), None),
    "timm-groups": ("resnext", lambda: lora("conv2", "conv3", **CONV), None),
    "timm-conv-dora": ("resnext", lambda: lora("conv1", "conv3", use_dora=True, **CONV), None),
    "zero": ("bert", lora, factors(lambda k, v: v * ("lora_B" not in k))),
    "bf16": ("bert", lambda: lora(lora_alpha=16), tensors(lambda k, v: (k, v.bfloat16()))),
    "bin": ("bert", lora, to_bin),
    "default-in-names": ("bert", lora, renamed(r"(lora_.)\.", r"\1.default.")),
    "foreign-config": (
        "bert",
        lora,
        config(use_hyper=False, hyper_config=None, base_model_name_or_path="/content/gone"),
    ),
}


class Payload:
    """Runs code where it is unpickled by torch's own reader."""

    def __reduce__(self):
        return print, ("it was executed",)


def kohya_name(name: str) -> str:
    inner = re.sub(r"\.(?!lora_|weight)", "_", name[17:])
    return "lora_te_" + inner.replace("lora_A", "lora_down").replace("lora_B", "lora_up")


def soft_prompts(folder: Path) -> None:
    settings = PromptTuningConfig(num_virtual_tokens=2, task_type="SEQ_CLS")
    set_config(folder, {"peft_type": settings.peft_type.value})


# By name: what is done to the plain adapter (or that of `no-head`), and a part of the one line that says what it is.
BROKEN = {
    "rank-lies": (config(r=8), "has rank 4, where the config says r = 8"),
    "missing-b": (without("0.attention.self.query.lora_B"), "has no lora_B"),
    "missing-a": (without("0.attention.self.query.lora_A"), "has no lora_A"),
    "extra-module": (config(target_modules=["query"]), "of no layer that the config targets"),
    "other-name": (renamed(r"(lora_.)\.", r"\1.task7."), "carries the name of an adapter, 'task7'"),
    "prefix": (renamed("base_model.model.bert", "transformer.bert"), "names begin with 'transformer.'"),
    "kohya": (tensors(lambda k, v: (kohya_name(k), v) if "lora_" in k else None), "kohya's format"),
    "head-missing": (without("classifier"), "the head was not saved"),
    "no-magnitude": (config(use_dora=True), "has no lora_magnitude_vector"),
    "nan": (factors(lambda k, v: v.index_fill(0, torch.tensor([1]), float("nan"))), "NaN or infinite"),
    "empty": (factors(lambda k, v: v[:0]), "ZeRO-3"),
    "int8": (factors(lambda k, v: (v * 50).to(torch.int8)), "expected floating-point numbers"),
    "pickle": (lambda folder: to_bin(folder, Payload()), "whose code would run"),
    "truncated": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:900]), "no complete safetensors"),
    "no-config": (lambda f: (f / CONFIG).unlink(), "expected adapter_config.json"),
    "unknown-kind": (config(peft_type="HYPERLORA"), "found peft_type 'HYPERLORA'"),
    "unknown-key": (config(use_hyper=True), "the unknown key 'use_hyper' is True (written by peft"),
    "pissa": (config(init_lora_weights="pissa"), "peft changes the base"),
    "replication": (config(layer_replication=[[0, 2], [0, 2]]), "builds another base"),
    "code": (config(megatron_config={"a": 1}, megatron_core="os.path"), "names code of Megatron"),
    "alpha-text": (config(lora_alpha="16"), "lora_alpha: expected a finite number"),
    "alpha-nan": (config(lora_alpha=float("nan")), "expected a finite number"),
    "huge-rank": (config(r=2**40), "expected a rank from 1 to 4096"),
    "dilated": (config(target_parameters=["weight"]), "target_parameters"),
    "prompts": (soft_prompts, "found peft_type 'PROMPT_TUNING'"),
}
