"""The settings as DeepSpeed's configuration."""

from typing import Any

from videoclip.experiment import Optim, Run


def config_of(optim: Optim, run: Run) -> dict[str, Any]:
    """What DeepSpeed is started with."""
    zero = {"stage": run.zero, "overlap_comm": False}
    if run.zero == 3:
        zero |= {"stage3_param_persistence_threshold": 0}
    return {
        "train_micro_batch_size_per_gpu": 1,  # it must be there; a batch may have any size
        "gradient_clipping": (optim.max_norm or 0.0) if run.zero else 0.0,
        "zero_optimization": zero,
        # `step` alone says when a batch is complete, after one backward pass or many.
        "managed_gradient_accumulation": False,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
