"""The settings as DeepSpeed's configuration, and a file of DeepSpeed's own beside them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from videoclip import distributed
from videoclip.config import ConfigError
from videoclip.errors import nearest
from videoclip.experiment import Optim, Run
from videoclip.training.faults import GROWTH, LossScale

AUTO = "auto"
"""What stands in a file for a value that the trainer fills in."""
ZERO = "zero_optimization"
PASSED_ON = (
    "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "comms_logger",
    "flops_profiler", "communication_data_type", "prescale_gradients", "gradient_predivide_factor",
    "disable_allgather", "dataloader_drop_last", "tensorboard", "csv_monitor", "aio",
)  # fmt: skip
"""What DeepSpeed may be told beyond the settings: what it logs and how it sends."""
ZERO_PASSED_ON = (
    "allgather_partitions", "allgather_bucket_size", "overlap_comm", "reduce_scatter",
    "reduce_bucket_size", "contiguous_gradients", "sub_group_size",
    "stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold", "stage3_model_persistence_threshold",
    "memory_efficient_linear", "ignore_unused_parameters", "use_multi_rank_bucket_allreduce",
    "stage3_module_granularity_threshold", "log_trace_cache_warnings",
    "offload_optimizer.pin_memory", "offload_param.pin_memory",
)  # fmt: skip
REFUSED = {
    "scheduler": "learning rates follow optim.schedule and optim.warmup",
    "activation_checkpointing": "set optim.checkpointing",
    "checkpoint": "states are kept whole, for any engine and any number of processes",
    "amp": "set optim.precision",
    "managed_gradient_accumulation": "a batch ends with its step",
    "zero_force_ds_cpu_optimizer": "the optimizer is torch's",
    "sparse_gradients": "gradients of words are dense",
    f"{ZERO}.stage3_gather_16bit_weights_on_model_save": "weights are saved whole, in float32",
    f"{ZERO}.elastic_checkpoint": "states are kept whole, for any number of processes",
    f"{ZERO}.load_from_fp32_weights": "states are kept whole, for any number of processes",
}
"""What cannot be asked for, and what to do in its place."""


class Said(NamedTuple):
    """What both the settings and DeepSpeed's file can say."""

    value: Any
    """In DeepSpeed's terms."""
    name: str
    """Where the settings say it."""
    setting: Any
    """In the settings' terms."""


def config_of(optim: Optim, run: Run) -> dict[str, Any]:
    """What DeepSpeed is started with.

    Raises ConfigError for settings that need another stage of ZeRO, and for a file that cannot be
    read, contradicts the settings, or asks for what is not done here.
    """
    if run.offload == "all" and run.zero != 3:
        raise ConfigError(f"offload is 'all', which needs zero 3, not {run.zero}: only there the "
                          "weights are spread; take offload 'optimizer'")  # fmt: skip
    if run.offload == "optimizer" and run.zero == 0:
        raise ConfigError("offload is 'optimizer', which zero 0 cannot do; take zero 1")
    zero: dict[str, Any] = {"stage": run.zero, "overlap_comm": False}
    if run.zero == 3:
        zero["stage3_param_persistence_threshold"] = 0
    if run.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if run.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # it must be there; a batch may have any size
        # At stage 0 the engine scales them down itself, before it looks at their norm.
        "gradient_clipping": (optim.max_norm or 0.0) if run.zero else 0.0,
        # `step` alone says when a batch is complete, after one backward pass or many.
        "managed_gradient_accumulation": False,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        ZERO: zero,
    }
    if run.deepspeed_config is not None:
        for place, value in _asked(run.deepspeed_config, said_twice(optim, run)).items():
            *groups, name = place.split(".")
            inside = config
            for group in groups:
                inside = inside.setdefault(group, {})
            inside[name] = value
    return config


def said_twice(optim: Optim, run: Run) -> dict[str, Said]:
    """What a file may repeat: by its place there, the value that the settings ask for."""
    processes, size = distributed.world_size(), optim.batch_size
    share = -(-size // processes)
    micro = min(optim.chunk_size or share, share)
    precision, scale = optim.precision, LossScale()
    low = {"bf16": "bfloat16", "fp16": "float16"}.get(precision)
    weights, moments = run.offload == "all", run.offload != "none"
    adam = optim.optimizer == "adamw"
    said = {
        "train_batch_size": Said(size, "optim.batch_size", size),
        "train_micro_batch_size_per_gpu": Said(micro, "optim.chunk_size", optim.chunk_size),
        "gradient_accumulation_steps": Said(-(-share // micro), "optim.chunk_size",
                                            optim.chunk_size),
        "zero_allow_untested_optimizer": Said(True, "engine", run.engine),
        "gradient_clipping": Said(optim.max_norm or 0.0, "optim.max_norm", optim.max_norm),
        f"{ZERO}.stage": Said(run.zero, "run.zero", run.zero),
        f"{ZERO}.offload_optimizer.device": Said(_device(moments), "run.offload", run.offload),
        f"{ZERO}.offload_param.device": Said(_device(weights), "run.offload", run.offload),
        "bf16.enabled": Said(precision == "bf16", "optim.precision", precision),
        "fp16.enabled": Said(precision == "fp16", "optim.precision", precision),
        "torch_autocast.enabled": Said(low is not None, "optim.precision", precision),
        "torch_autocast.dtype": Said(low, "optim.precision", precision),
        "fp16.loss_scale": Said(0, "the scale of the loss", "dynamic"),
        "fp16.initial_scale_power": Said(16, "the scale of the loss", scale.factor),
        "fp16.loss_scale_window": Said(GROWTH, "steps until the scale of the loss grows", GROWTH),
        "optimizer.type": Said({"adamw": "AdamW", "sgd": "SGD"}.get(optim.optimizer),
                               "optim.optimizer", optim.optimizer),
        "optimizer.params.lr": Said(optim.tower_rate, "optim.tower_rate", optim.tower_rate),
        "optimizer.params.weight_decay": Said(optim.weight_decay, "optim.weight_decay",
                                              optim.weight_decay),
    }  # fmt: skip
    if adam and optim.epsilon is not None:
        said["optimizer.params.eps"] = Said(optim.epsilon, "optim.epsilon", optim.epsilon)
    return said


def _device(offloaded: bool) -> str:
    return "cpu" if offloaded else "none"


def _asked(path: Path, said: dict[str, Said]) -> dict[str, Any]:
    """What a file asks for beyond the settings, by its place there."""
    passed = {*PASSED_ON, *(f"{ZERO}.{name}" for name in ZERO_PASSED_ON)}
    more: dict[str, Any] = {}
    for name, value in _leaves(_read(path), {*said, *passed, *REFUSED}):
        if value == AUTO or (name in REFUSED and not value):
            continue
        if name in REFUSED:
            raise ConfigError(f"{path} sets {name}, which is not done here: {REFUSED[name]}")
        if name in said:
            own = said[name]
            if value != own.value:
                raise ConfigError(
                    f"{path} sets {name} to {value!r}, but {own.name} is {own.setting!r}, which is "
                    f"{own.value!r} there; make them agree, or leave one of them out"
                )
        elif name in passed:
            more[name] = value
        else:
            known = [*said, *passed]
            raise ConfigError(
                f"{path} sets {name}, which is not passed on to DeepSpeed; {nearest(name, known)}"
            )
    return more


def _leaves(tree: dict[str, Any], known: set[str], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with the place where it stands; what is known by its place is not gone into."""
    for key, value in tree.items():
        name = f"{before}{key}"
        if isinstance(value, dict) and name not in known:
            yield from _leaves(value, known, f"{name}.")
        else:
            yield name, value


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as DeepSpeed's JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds {type(tree).__name__}; DeepSpeed's JSON is an object")
    return tree
