"""Any model of BasicSR or of a plugin, made to survive."""

import copy
from typing import Any

from basicsr.models.base_model import BaseModel
from basicsr.models.realesrgan_model import RealESRGANModel
from basicsr.models.realesrnet_model import RealESRNetModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY

from esc_arch.plugin.models.checkpointing import Checkpointing
from esc_arch.plugin.models.finite_steps import FiniteOptimizers
from esc_arch.plugin.models.padded import PaddedEvaluation
from esc_arch.plugin.models.pretrained import AveragedWeights
from esc_arch.plugin.models.steps import StepsOfBasicSR


def build_durable_model(opt: dict[str, Any]) -> BaseModel:
    """BasicSR's `build_model`, for a durable model.

    Args:
        opt: The parsed options, which stay as they are.
    """
    model = durable(MODEL_REGISTRY.get(opt["model_type"]))(copy.deepcopy(opt))
    get_root_logger().info(f"Model [{type(model).__name__}] is created.")
    return model


def durable(model_class: type[BaseModel]) -> type[BaseModel]:
    """The same model with the checkpoints of this package, leaving out steps that are not finite.

    BasicSR's own also read `use_ema` and the options of `StepOptions`, and its Real-ESRGAN models
    evaluate on whole windows, as ESC-Real's results are made.

    Args:
        model_class: Any of BasicSR's or another plugin's models.

    Returns:
        Itself if it has them already, or a subclass of the same name.
    """
    if issubclass(model_class, Checkpointing):
        return model_class
    mixins: list[type] = [Checkpointing, FiniteOptimizers]
    if model_class.__module__.startswith("basicsr."):
        mixins = [AveragedWeights, Checkpointing, StepsOfBasicSR, FiniteOptimizers]
        if issubclass(model_class, RealESRNetModel | RealESRGANModel):
            mixins.append(PaddedEvaluation)
    return type(model_class.__name__, (*mixins, model_class), {})
