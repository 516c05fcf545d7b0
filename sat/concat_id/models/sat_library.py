"""What is used of SwissArmyTransformer, whose `__init__` would bring its training package: DeepSpeed, wandb, datasets and pandas."""

import sys

from concat_id.errors import UserError
from concat_id.imports import import_lazily
from concat_id.models.deferred import deferred

import_lazily("sat", "sat.model")
if "sat" in sys.modules and "sat.model" not in sys.modules:
    found = sys.modules["sat"].__path__[0]
    raise UserError(f"PYTHONPATH: found another package called sat ({found}), expected SwissArmyTransformer; take its folder out")
with deferred("deepspeed.runtime.activation_checkpointing.checkpointing"):  # sat.mpu asks for it where there is CUDA
    from sat.model.base_model import BaseMixin, BaseModel
    from sat.model.transformer import BaseTransformer
    from sat.mpu import initialize_model_parallel, model_parallel_is_initialized

__all__ = ["BaseMixin", "BaseModel", "BaseTransformer", "initialize_model_parallel", "model_parallel_is_initialized"]
