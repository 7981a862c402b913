"""What the configuration of a PEFT adapter may say before peft sees it: known keys within limits, no code."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

# Of what is kept, everything else follows; in the order in which configs are written.
KEPT = {
    "LORA": (
        *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"),
        *("bias", "lora_bias", "use_dora", "modules_to_save", "task_type"),
    ),
    "VERA": (
        *("r", "projection_prng_key", "save_projection", "target_modules", "layers_to_transform", "layers_pattern"),
        *("fan_in_fan_out", "bias", "modules_to_save", "task_type"),
    ),
    "IA3": (
        *("target_modules", "exclude_modules", "feedforward_modules", "fan_in_fan_out", "modules_to_save"),
        "task_type",
    ),
}

# What says how an adapter was trained, or where it came from, and nothing of what it computes once it is loaded.
TRAINING = frozenset(
    "peft_version base_model_name_or_path revision inference_mode auto_mapping lora_dropout vera_dropout d_initial "
    "init_weights init_ia3_weights megatron_core runtime_config qalora_group_size eva_config lora_ga_config "
    "merge_weights".split()
)

# Keys of peft that make an adapter another kind; off, they say nothing.
OTHER_KINDS = {
    "layer_replication": "it builds another base out of the layers of this one",
    "megatron_config": "it names code of Megatron",
    "loftq_config": "its base is a quantised one that LoftQ has changed",
    "corda_config": "CorDA changes the base when it is loaded",
    "trainable_token_indices": "it has embeddings of single tokens",
    "target_parameters": "it targets parameters, not modules",
    "alora_invocation_tokens": "it is active behind some tokens only",
    "arrow_config": "it routes between other adapters",
    "use_qalora": "QA-LoRA pools the inputs",
    "use_bdlora": "its factors are block-diagonal",
    "kasa_config": "KaSA has a third factor",
    "monteclora_config": "its factors are random",
    "velora_config": "VeLoRA compresses activations",
    "ensure_weight_tying": "it ties adapters of tied weights",
}

# Ways to begin that leave the base as it is, also when the file is loaded.
PLAIN_INITS = (True, False, None, "gaussian", "orthogonal", "eva", "lora_ga", "mica")
CONVERT = (
    "convert it (save_pretrained(…, path_initial_model_for_weight_conversion=…) gives a plain LoRA of rank 2r), and "
    "import that"
)

TASKS = ("SEQ_CLS", "TOKEN_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM", "QUESTION_ANS", "FEATURE_EXTRACTION", None)
# What peft saves beside adapters of a task, whether it is asked to or not.
HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
BIASES = ("none", "all", "lora_only")

MAX_RANK = 4096
MAX_NAMES = 10_000
MAX_PATTERN = 2000
MAX_PATTERNS = 1000
# Matching of all expressions of a config with all modules of a base; milliseconds otherwise.
REGEX_SECONDS = 2.0


@dataclass(frozen=True)
class AdapterConfig:
    """The configuration of an adapter, as far as it says what is computed.

    Args:
        kind (`str`): `"LORA"`, `"VERA"` or `"IA3"`.
        values (`dict`): What [`KEPT`] names of it, JSON-able.
        base_name (`str`, *optional*): How the adapter calls its base.
        notes (`list[str]`): Keys of other versions of peft, which are off.
    """

    kind: str
    values: dict[str, Any]
    base_name: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The same for adapters that peft builds alike; the order of patterns counts, as it does for peft."""
        return json.dumps({"peft_type": self.kind, **self.values})

    def to_dict(self) -> dict[str, Any]:
        """As a base model reference has it, and an `adapter_config.json`."""
        named = {} if self.base_name is None else {"base_model_name_or_path": self.base_name}
        return {"peft_type": self.kind, **named, **self.values}


def read_adapter_config(values: Any) -> AdapterConfig:
    """Check the content of an `adapter_config.json`.

    Raises:
        ValueError: the kind is none that is known here, a key has a value out of its limits, or one that peft would
            run code for, change the base by, or ignore although it is on.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"expected an object of a PEFT config, found {type(values).__name__}.")
    kind = values.get("peft_type")
    if kind not in KEPT:
        raise ValueError(f"expected an adapter of the kind {', '.join(KEPT)}, found peft_type {kind!r:.80}.")
    version = values.get("peft_version")
    by = f" (written by peft {version})" if isinstance(version, str) and len(version) < 40 else ""
    notes = []
    for key, value in values.items():
        if key in KEPT[kind] or key in TRAINING or key in ("peft_type", "init_lora_weights"):
            continue
        if _is_off(value):
            if key not in OTHER_KINDS and not any(key in known for known in KEPT.values()):
                notes.append(f"the unknown key {key!r:.80} is off")
            continue
        if key in OTHER_KINDS:
            raise ValueError(f"{key} is {_shown(value)}: {OTHER_KINDS[key]}, which cannot be imported.")
        raise ValueError(f"the unknown key {key!r:.80} is {_shown(value)}{by}; what its tensors mean is not known.")
    _check_init(values.get("init_lora_weights"))
    found = {key: values[key] for key in KEPT[kind] if key in values and values[key] is not None}
    for key, value in found.items():
        _CHECKS[key](key, value)
    if "r" in KEPT[kind] and "r" not in found:
        raise ValueError("r: expected the rank, found none.")
    if kind == "LORA" and "lora_alpha" not in found:
        raise ValueError("lora_alpha: expected a number, found none; the strength of the adapter is not known.")
    if "target_modules" not in found:
        raise ValueError("target_modules: expected the names of the layers, found none; write them into the config.")
    if (heads := HEADS.get(found.get("task_type"))) is not None:
        saved = found.get("modules_to_save") or []
        saved = [saved] if isinstance(saved, str) else saved
        found["modules_to_save"] = [*saved, *(head for head in heads if head not in saved)]
    base = values.get("base_model_name_or_path")
    return AdapterConfig(kind, found, base if isinstance(base, str) else None, notes)


def check_patterns(config: AdapterConfig, modules: Sequence[str]) -> None:
    """Try the regular expressions of a config on the names of a base's modules, as peft will, in a process of its own.

    Raises:
        ValueError: one is malformed, or they take longer than [`REGEX_SECONDS`].
    """
    values, tries = config.values, []
    for key in ("target_modules", "exclude_modules", "feedforward_modules"):
        if isinstance(pattern := values.get(key), str) and pattern != "all-linear":
            tries.append((key, pattern))
    for key in ("rank_pattern", "alpha_pattern"):
        tries += [(key, rf"(.*\.)?({pattern})$") for pattern in values.get(key, ())]
    layers = values.get("layers_pattern") or ()
    tries += [("layers_pattern", rf".*\.{p}\.(\d+)\.") for p in ([layers] if isinstance(layers, str) else layers)]
    for key, pattern in tries:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{key}: {pattern!r:.80} is no regular expression: {error}.") from error
    # Without repetition in repetition, or two in a row, none can take long.
    slow = [pattern for _, pattern in tries if len(re.findall(r"[*+{]", pattern)) > 2]
    if not slow:
        return
    code = "import json, re, sys\np, n = json.load(sys.stdin)\nfor e in map(re.compile, p):\n  [e.match(x) for x in n]"
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", code],
            input=json.dumps([slow, list(modules)]).encode(),
            timeout=REGEX_SECONDS,
            check=True,
            capture_output=True,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"the regular expression {max(slow, key=len)!r:.120} takes more than {REGEX_SECONDS:.0f} s on the names "
            "of the base's modules; write the names of the layers instead."
        ) from error


def _is_off(value: Any) -> bool:
    return value is None or value is False or (not isinstance(value, bool) and value in (0, "", [], {}, ()))


def _shown(value: Any) -> str:
    return f"{value!r:.60}"


def _check_init(value: Any) -> None:
    if not isinstance(value, (bool, str, type(None))):
        raise ValueError(f"init_lora_weights: expected a name, found {_shown(value)}.")
    if value not in PLAIN_INITS:
        raise ValueError(
            f"init_lora_weights is {value!r:.60}: peft changes the base when such an adapter is loaded; {CONVERT}."
        )


def _rank(key: str, value: Any) -> None:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise ValueError(f"{key}: expected a rank from 1 to {MAX_RANK}, found {_shown(value)}.")


def _number(key: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{key}: expected a finite number, found {_shown(value)}.")


def _flag(key: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{key}: expected true or false, found {_shown(value)}.")


def _name(key: str, value: Any) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_PATTERN:
        raise ValueError(f"{key}: expected a text of at most {MAX_PATTERN} characters, found {_shown(value)}.")


def _names(key: str, value: Any) -> None:
    if isinstance(value, str):
        return _name(key, value)
    if not isinstance(value, list) or len(value) > MAX_NAMES:
        raise ValueError(f"{key}: expected a text, or a list of at most {MAX_NAMES} of them, found {_shown(value)}.")
    for item in value:
        _name(key, item)


def _layers(key: str, value: Any) -> None:
    for number in value if isinstance(value, list) and len(value) <= MAX_NAMES else [value]:
        if type(number) is not int or number < 0:
            raise ValueError(f"{key}: expected numbers of layers, found {_shown(value)}.")


def _patterns(check: Any) -> Any:
    def checked(key: str, value: Any) -> None:
        if not isinstance(value, Mapping) or len(value) > MAX_PATTERNS:
            raise ValueError(f"{key}: expected at most {MAX_PATTERNS} patterns with numbers, found {_shown(value)}.")
        for pattern, number in value.items():
            _name(key, pattern)
            check(f"{key}[{pattern!r:.60}]", number)

    return checked


def _one_of(allowed: Collection[Any]) -> Any:
    def checked(key: str, value: Any) -> None:
        if not isinstance(value, str) or value not in allowed:
            names = ", ".join(str(name) for name in allowed if name is not None)
            raise ValueError(f"{key}: expected one of {names}, found {_shown(value)}.")

    return checked


def _seed(key: str, value: Any) -> None:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{key}: expected a seed, found {_shown(value)}.")


_CHECKS = {
    "r": _rank,
    "lora_alpha": _number,
    "use_rslora": _flag,
    "rank_pattern": _patterns(_rank),
    "alpha_pattern": _patterns(_number),
    "target_modules": _names,
    "exclude_modules": _names,
    "feedforward_modules": _names,
    "layers_to_transform": _layers,
    "layers_pattern": _names,
    "fan_in_fan_out": _flag,
    "bias": _one_of(BIASES),
    "lora_bias": _flag,
    "use_dora": _flag,
    "modules_to_save": _names,
    "task_type": _one_of(TASKS),
    "projection_prng_key": _seed,
    "save_projection": _flag,
}
