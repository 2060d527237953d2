"""The pool of training pairs of the Real-ESRGAN models, on disk.

They degrade a batch at a time, put its pairs into a pool and train on pairs drawn from it, so a
resumed run needs the pool. It is large (queue_size pairs of patches, for each process), so only the
newest two are kept, in files of their own beside the training states.
"""

from pathlib import Path
from typing import Any

import torch
from basicsr.models.base_model import BaseModel
from basicsr.utils.dist_util import get_dist_info

from esc_arch.errors import UserError
from esc_arch.zoo.store import load_state, save_state

# As RealESRNetModel and RealESRGANModel name them.
ATTRIBUTES = ("queue_lr", "queue_gt", "queue_ptr")


def save_pool(model: BaseModel, folder: Path, current_iter: int) -> None:
    """Write the pool of this process, if the model has one.

    Args:
        model: Any model.
        folder: Of the training states.
        current_iter: Current iteration.

    Raises:
        OSError: The file cannot be written.
    """
    if hasattr(model, "queue_ptr"):
        save_state(
            {name: _on_cpu(getattr(model, name)) for name in ATTRIBUTES},
            _file(folder, current_iter),
        )


def remove_older_pools(folder: Path) -> None:
    """Remove the pools of this process but for the newest two.

    Two, because the state of the newest, which another process writes, may not be whole.

    Args:
        folder: Of the training states.
    """
    if folder.is_symlink():
        # Whoever linked the folder may keep other things there.
        return
    pools = folder.glob(f"*{_file(folder, 0).suffix}")
    for path in sorted(pools, key=lambda path: int(path.stem))[:-2]:
        path.unlink(missing_ok=True)


def load_pool(model: BaseModel, folder: Path, current_iter: int) -> bool:
    """Give a model back the pool of this process.

    Args:
        model: Any model.
        folder: Of the training states.
        current_iter: The iteration resumed from.

    Returns:
        False if the model has a pool and there is none, or no whole one, of that iteration,
        process and size.
    """
    if not hasattr(model, "queue_size") or not model.opt.get("high_order_degradation", True):
        return True
    try:
        pool = load_state(_file(folder, current_iter))
    except UserError:
        return False
    # Nothing else of the file: it must not set what it likes of the model.
    lr, gt, filled = (pool.get(name) for name in ATTRIBUTES)
    for pairs in (lr, gt):
        is_pool = isinstance(pairs, torch.Tensor) and pairs.layout == torch.strided
        is_pool = is_pool and pairs.dim() == 4 and pairs.is_floating_point()
        if not is_pool or len(pairs) != model.queue_size:
            return False
    batch = model.opt["datasets"]["train"]["batch_size_per_gpu"]
    if type(filled) is not int or not 0 <= filled <= model.queue_size or filled % batch:
        return False
    model.queue_lr, model.queue_gt = lr.to(model.device), gt.to(model.device)
    model.queue_ptr = filled
    return True


def _file(folder: Path, current_iter: int) -> Path:
    rank, _ = get_dist_info()
    return folder / f"{current_iter}.pool{rank}"


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, torch.Tensor) else value
