"""DeepSpeed's configuration: generated from the training, with the user's own values on top."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAGES = (1, 2, 3)
"""Split over the workers: 1 = the optimiser's state, 2 = gradients too, 3 = weights too."""

OF_THE_EXPERIMENT = {
    "train_batch_size": "set --training.batch-size",
    "train_micro_batch_size_per_gpu": "set --training.batch-size and --workers",
    "gradient_accumulation_steps": "a step here is one batch: set --training.batch-size",
    "managed_gradient_accumulation": "a step here is one batch",
    "optimizer": "choose it with --training.optimizer",
    "scheduler": "choose it with --training.schedule",
    "gradient_clipping": "no training here clips gradients",
    "bf16": "set --training.precision bfloat16, which is autocast: networks with BatchNorm fail under bf16.enabled",
    **dict.fromkeys(("fp16", "torch_autocast", "amp"), "set --training.precision bfloat16"),
    "data_types": "set --training.precision",
    "communication_data_type": "gradients are reduced in float32, as without DeepSpeed",
    **dict.fromkeys(
        ("prescale_gradients", "gradient_predivide_factor", "gradient_allreduce_op"),
        "gradients are the mean over the workers",
    ),
    "sparse_gradients": "gradients are dense",
    "elasticity": "set --workers",
    **dict.fromkeys(("tensor_parallel", "sequence_parallel_size"), "every worker trains the whole network"),
    **dict.fromkeys(("data_efficiency", "curriculum_learning"), "the order of the data belongs to the experiment"),
    **dict.fromkeys(
        ("compression_training", "progressive_layer_drop", "quantize_training"), "choose one of Orchard's methods"
    ),
    "autotuning": "run its settings one by one",
    "compile": "set --training.compile",
    "checkpoint": "set --checkpoint-steps and --keep",
}
"""Keys that are not allowed in a user's configuration -> what to do instead."""

OF_THE_EXPERIMENT_IN_ZERO = {
    "stage": "set --zero-stage",
    "zero_quantized_weights": "weights are not quantized",
    "zero_quantized_nontrainable_weights": "weights are not quantized",
    "zero_quantized_gradients": "gradients are not quantized",
    "zero_hpz_partition_size": "weights are split over all workers",
    "zenflow": "every step applies every gradient",
    "memory_efficient_linear": "torch's own linear layer is kept",
    "elastic_checkpoint": "checkpoints are Orchard's own",
}
"""The same under "zero_optimization"."""


@dataclass(frozen=True)
class ZeroSettings:
    """What DeepSpeed needs to know about a training.

    batch_size: images per step over all workers. precision: "float32" or "bfloat16" (autocast, float32 weights).
    own: a user's configuration as JSON, checked by `read_own`.
    """

    stage: int = 2
    batch_size: int = 1
    precision: str = "float32"
    compile: bool = False
    own: str | None = None

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ValueError(f"--zero-stage must be 1, 2 or 3, not {self.stage}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(
                f"DeepSpeed keeps its weights in float32 and cannot train in {self.precision}: use --strategy ddp, or "
                "--training.precision float32"
            )
        if self.compile and self.stage == 3:
            raise ValueError(
                "--training.compile does not work with --zero-stage 3, which gathers weights inside the network: "
                "use --zero-stage 2, or leave out --training.compile"
            )

    def config(self, world_size: int) -> dict[str, Any]:
        """The configuration that DeepSpeed is given."""
        zero = {"stage": self.stage}
        if self.stage < 3:
            zero["compute_grad_norm"] = False  # unused, and it would cost a host sync in each step
        else:
            zero["memory_efficient_linear"] = False  # it would replace torch's linear in the whole process
        generated = {
            "train_batch_size": self.batch_size,
            "train_micro_batch_size_per_gpu": self.batch_size // world_size,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": zero,
            "steps_per_print": None,
            "timers": {"throughput": {"enabled": False, "synchronized": False}},
        }
        if self.precision == "bfloat16":
            # Gradients stay float32 in every layer, as with DDP.
            autocast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
            generated["torch_autocast"] = autocast
        return merged(generated, json.loads(self.own or "{}"))


def read_own(given: str) -> str:
    """A user's configuration as JSON on one line, from a file's path or from JSON itself.

    ValueError if it is no JSON object or contradicts the experiment; FileNotFoundError.
    """
    text = given
    if not given.lstrip().startswith("{"):
        path = Path(given).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"there is no DeepSpeed configuration {path}: give a JSON file")
        text = path.read_text()
    try:
        own = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the DeepSpeed configuration {given} is no JSON: {error}") from error
    zero = own.get("zero_optimization", {}) if isinstance(own, dict) else None
    if not isinstance(own, dict) or not isinstance(zero, dict):
        raise ValueError(f'the DeepSpeed configuration {given} must be {{"zero_optimization": {{...}}, ...}}')
    inside = {f"zero_optimization.{key}": advice for key, advice in OF_THE_EXPERIMENT_IN_ZERO.items()}
    known = {**dict.fromkeys(own), **{f"zero_optimization.{key}": None for key in zero}}
    wrong = [f"{key} ({advice})" for key, advice in {**OF_THE_EXPERIMENT, **inside}.items() if key in known]
    for part in ("offload_optimizer", "offload_param"):
        if (zero.get(part) or {}).get("device", "none") != "none":
            wrong.append(f"zero_optimization.{part} (everything stays on the workers' devices)")
    if wrong:
        raise ValueError(f"the DeepSpeed configuration contradicts the experiment; leave out {', '.join(wrong)}")
    return json.dumps(own, sort_keys=True)


def merged(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`defaults` with `values` on top, also in nested dicts."""
    result = dict(defaults)
    for key, value in values.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result
