"""What is used of SwissArmyTransformer, whose `__init__` would bring its training package: DeepSpeed, wandb, datasets and pandas."""

from concat_id.imports import import_lazily
from concat_id.models.deferred import deferred

import_lazily("sat", "sat.model")
with deferred("deepspeed.runtime.activation_checkpointing.checkpointing"):  # sat.mpu asks for it where there is CUDA
    from sat.model.base_model import BaseMixin, BaseModel
    from sat.model.transformer import BaseTransformer
    from sat.mpu import initialize_model_parallel, model_parallel_is_initialized

__all__ = ["BaseMixin", "BaseModel", "BaseTransformer", "initialize_model_parallel", "model_parallel_is_initialized"]
