"""A file of DeepSpeed's own beside the settings: what is passed on, compared and refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from videoclip.config import ConfigError
from videoclip.experiment import Optim, Run
from videoclip.training.deepspeed_config import config_of

OPTIM = Optim(batch_size=24, chunk_size=8, tower_rate=1e-5, precision="bf16", max_norm=1.0)
AGREES = {
    "train_batch_size": 24,
    "train_micro_batch_size_per_gpu": 8,
    "gradient_accumulation_steps": 3,
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "fp16": {"enabled": False, "loss_scale": 0, "initial_scale_power": 16},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-5, "weight_decay": 0.2, "betas": "auto"}},
    "scheduler": "auto",
    "zero_allow_untested_optimizer": True,
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "reduce_bucket_size": 12345,
        "stage3_gather_16bit_weights_on_model_save": False,
    },
    "wall_clock_breakdown": True,
    "flops_profiler": {"enabled": False},
}


def asked(tmp_path: Path, tree: Any, **changes: Any) -> dict[str, Any]:
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps(tree))
    chosen = {"zero": 2, "offload": "optimizer"} | changes
    run = Run(engine="deepspeed", deepspeed_config=path, **chosen)
    return config_of(OPTIM, run)


def test_what_agrees_is_taken_and_the_rest_passed_on(tmp_path: Path) -> None:
    config = asked(tmp_path, AGREES)
    assert config["train_micro_batch_size_per_gpu"] == 1
    assert config["wall_clock_breakdown"] is True
    assert config["flops_profiler"] == {"enabled": False}
    zero = config["zero_optimization"]
    assert zero["stage"] == 2
    assert zero["reduce_bucket_size"] == 12345
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert not {"bf16", "fp16", "optimizer", "train_batch_size"} & config.keys()


def test_auto_takes_the_settings(tmp_path: Path) -> None:
    auto = {"train_batch_size": "auto", "zero_optimization": {"stage": "auto"}}
    run = Run(engine="deepspeed", zero=2, offload="optimizer")
    assert asked(tmp_path, auto) == config_of(OPTIM, run)


CONFLICTS = [
    ({"train_batch_size": 32}, "sets train_batch_size to 32, but optim.batch_size is 24"),
    ({"gradient_accumulation_steps": 1}, "steps to 1, but optim.chunk_size is 8, which is 3 there"),
    ({"gradient_clipping": 0.5}, "sets gradient_clipping to 0.5, but optim.max_norm is 1.0"),
    ({"fp16": {"enabled": True}}, "sets fp16.enabled to True, but optim.precision is 'bf16'"),
    ({"optimizer": {"type": "Lamb"}}, "optimizer.type to 'Lamb', but optim.optimizer is 'adamw'"),
    ({"optimizer": {"params": {"lr": 1}}}, "params.lr to 1, but optim.tower_rate is 1e-05"),
    ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage to 3, but run.zero is 2"),
    (
        {"zero_optimization": {"offload_param": {"device": "nvme"}}},
        "offload_param.device to 'nvme', but run.offload is 'optimizer', which is 'none' there",
    ),
    ({"scheduler": {"type": "WarmupLR"}}, "sets scheduler, which is not done here: learning rates"),
    ({"managed_gradient_accumulation": True}, "a batch ends with its step"),
    ({"zero_optimization": {"reduce_bucket_sise": 1}}, "did you mean 'zero_optimization.reduce_b"),
    ({"compression_training": {"x": 1}}, "sets compression_training.x, which is not passed on"),
    ([], "holds list; DeepSpeed's JSON is an object"),
]


@pytest.mark.parametrize(("tree", "message"), CONFLICTS)
def test_a_conflict_names_both_sides(tmp_path: Path, tree: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        asked(tmp_path, tree)
    assert message in str(caught.value)


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deepspeed.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"deepspeed.json cannot be read as DeepSpeed's JSON"):
        config_of(OPTIM, Run(engine="deepspeed", deepspeed_config=path))


def test_no_clipping_is_zero_there(tmp_path: Path) -> None:
    run = Run(engine="deepspeed", zero=1)
    assert config_of(replace(OPTIM, max_norm=None), run)["gradient_clipping"] == 0.0
    assert config_of(OPTIM, run)["gradient_clipping"] == 1.0


@pytest.mark.parametrize(("offload", "zero"), [("all", 2), ("optimizer", 0)])
def test_what_is_not_spread_cannot_be_offloaded(offload: str, zero: int) -> None:
    with pytest.raises(ConfigError, match=f"offload is '{offload}'"):
        config_of(OPTIM, Run(engine="deepspeed", offload=offload, zero=zero))


@pytest.mark.parametrize("changes", [{"zero": 2}, {"offload": "optimizer"}])
def test_the_plain_engine_reads_none_of_it(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="engine 'plain' has none"):
        Run(**changes)
