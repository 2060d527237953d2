"""BasicSR's search for the training state to go on from."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from esc_arch.plugin.compat.patching import log, names_used, patch


def resume_state_loading(module: ModuleType) -> None:
    """`load_resume_state` needs a GPU, and looks for states below the current folder.

    Replaced: its map_location calls `.cuda()`, which without a GPU fails, and with one puts a
    second copy of the optimizer's state there (optimizers move theirs as they load it). With
    `--auto_resume` it looks into a relative `experiments`, so that BasicSR's train.py started from
    another folder silently begins anew.

    Args:
        module: `basicsr.train`, or `__main__` where BasicSR's train.py runs as a script.
    """
    original = module.load_resume_state
    names = (*names_used(original), *original.__code__.co_consts)

    def wrap(_: Callable) -> Callable:
        def load_resume_state(opt: dict) -> dict | None:
            from basicsr.utils import check_resume

            from esc_arch.zoo.store import load_state

            if opt["auto_resume"]:
                opt["path"]["resume_state"] = _latest_state(opt)
            path = opt["path"].get("resume_state")
            if not path:
                return None
            state = load_state(path)
            _refuse_other_files(state, path)
            keys = {k: v for k, v in opt["path"].items() if k.startswith("param_key_")}
            check_resume(opt, state["iter"])
            # What the options take from other files is not what the run's own have.
            for key, asked in keys.items():
                network = key.replace("param_key_", "network_")
                opt["path"][key] = asked if network in _not_resumed(opt) else "params"
            if "network_g" not in _not_resumed(opt):
                opt.pop("use_ema", None)
            return state

        return load_resume_state

    if "current_device" in names or "experiments" in names:
        patch(module, "load_resume_state", wrap)


def _refuse_other_files(state: dict, path: str) -> None:
    """Say in one line that a file is no training state, or none to count on."""
    from esc_arch.errors import UserError, printable

    where = f"path: resume_state: {printable(path)}"
    kinds = {"epoch": int, "iter": int, "optimizers": list, "schedulers": list}
    wrong = [key for key, kind in kinds.items() if not isinstance(state.get(key), kind)]
    if wrong:
        raise UserError(
            f"{where}: not a training state: it has no {', '.join(wrong)}; weights go to path: "
            "pretrain_network_g"
        )
    place = state.get("place_in_data")
    place = [0, 0] if place is None else place
    counts = [state["epoch"], state["iter"], *(place if isinstance(place, list | tuple) else ())]
    if len(counts) != 4 or any(type(each) is not int or not 0 <= each < 2**53 for each in counts):
        raise UserError(
            f"{where}: damaged: epoch, iter and place_in_data must be whole numbers from 0; resume "
            "from another state"
        )


def _not_resumed(opt: dict) -> list | str:
    """Networks that start from other weights than the run's own; BasicSR takes text for one."""
    return opt["path"].get("ignore_resume_networks") or []


def _refuse_other_networks(models: Path, networks: list[str], run: str) -> None:
    """Refuse to go on from a run that has never had one of the networks; nor does it begin anew.

    Args:
        models: Folder of the weights.
        networks: Labels of the networks that the options have.
        run: Name of the run.
    """
    from esc_arch.errors import UserError

    saved = {path.stem.rpartition("_")[0] for path in models.glob("net_*_*.pth")}
    lacking = [name for name in networks if name not in saved]
    if lacking and saved & set(networks):
        raise UserError(
            f"--auto_resume: {run} has trained without {', '.join(lacking)}, which the options "
            "have: give this run another name, with path: pretrain_network_g: for the weights that "
            "are there, or begin anew without --auto_resume"
        )


def _latest_state(opt: dict) -> str | None:
    """The state of the highest iteration that is whole, and its weights too."""
    from esc_arch.zoo.store import newest_whole_state

    networks = [
        key.replace("network_", "net_")
        for key in opt
        if key.startswith("network_") and key not in _not_resumed(opt)
    ]
    states, models = (Path(opt["path"][name]) for name in ("training_states", "models"))
    state, skipped = newest_whole_state(states, models, networks)
    if state is None and skipped:
        _refuse_other_networks(models, networks, opt["name"])
    if opt["rank"] == 0:
        for line in skipped:
            log.warning("%s", line)
        if skipped and state is None:
            log.warning("no state to resume from is whole: the run begins anew")
    return str(state) if state else None
