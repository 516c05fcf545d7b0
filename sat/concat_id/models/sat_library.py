"""What is used of SwissArmyTransformer, whose `__init__` would bring its training package: DeepSpeed, wandb, datasets and pandas."""

import sys
from importlib.util import find_spec

from concat_id.errors import UserError
from concat_id.imports import import_lazily
from concat_id.models.deferred import deferred

import_lazily("sat")
if "sat" in sys.modules and not (hasattr(sys.modules["sat"], "__path__") and find_spec("sat.model")):
    found = sys.modules["sat"].__spec__.origin
    raise UserError(f"PYTHONPATH: found another package called sat ({found}), expected SwissArmyTransformer; take its folder out")
import_lazily("sat.model")
with deferred("deepspeed.runtime.activation_checkpointing.checkpointing"):  # sat.mpu asks for it where there is CUDA
    from sat.model.base_model import BaseMixin, BaseModel
    from sat.model.transformer import BaseTransformer
    from sat.mpu import initialize_model_parallel, model_parallel_is_initialized

__all__ = ["BaseMixin", "BaseModel", "BaseTransformer", "initialize_model_parallel", "model_parallel_is_initialized"]
