"""What `basicsr test` runs: BasicSR's testing, with bad images named and older results kept."""

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import basicsr.data
import basicsr.test

from esc_arch.plugin.compat.patching import swapped
from esc_arch.plugin.data.exact_order import GuardedDataset
from esc_arch.plugin.data.prefetching import FaithfulPrefetchLoader
from esc_arch.plugin.disk_faults import plain_errors
from esc_arch.plugin.experiment import ExperimentFolder
from esc_arch.plugin.models.durable import build_durable_model
from esc_arch.plugin.models.validating import saved_names
from esc_arch.plugin.preflight.reading import choose_datasets
from esc_arch.plugin.run_data import refuse_same_set_names
from esc_arch.plugin.tracebacks import in_one_line


def test(root_path: str, datasets: Sequence[str] | None = None) -> int:
    """Run BasicSR's testing, with bad images named.

    Args:
        root_path: Folder that results are written below.
        datasets: Names of the data sets to test on; all of the option file by default.

    Returns:
        0.

    Raises:
        UserError: An image or the checkpoint cannot be read.
        SystemExit: A signal asked for the end.
    """
    folder = ExperimentFolder()
    options: dict[str, Any] = {}

    def build(dataset_opt: dict[str, Any]) -> GuardedDataset:
        dataset = GuardedDataset(build_dataset(dataset_opt), dataset_opt)
        if options["save_img"]:
            saved_names(dataset)
        return dataset

    def parse(*args: Any, **kwargs: Any) -> tuple[dict[str, Any], Any]:
        opt, parsed = parse_options(*args, **kwargs)
        if datasets is not None:
            chosen, _ = choose_datasets(opt["datasets"], datasets)
            opt["datasets"] = {key: opt["datasets"][key] for key in chosen}
        refuse_same_set_names(opt["datasets"])
        opt["val"] = {"save_img": False, "suffix": None, **(opt.get("val") or {})}
        options.update(file=parsed.opt, save_img=opt["val"]["save_img"])
        return opt, parsed

    def make(opt: dict[str, Any]) -> None:
        folder.make(make_exp_dirs, opt, options["file"])

    build_dataset, parse_options = basicsr.test.build_dataset, basicsr.test.parse_options
    make_exp_dirs = basicsr.test.make_exp_dirs
    with (
        _ended_by_sigterm(),
        plain_errors(),
        swapped(basicsr.data, PrefetchDataLoader=FaithfulPrefetchLoader),
        swapped(
            basicsr.test,
            parse_options=parse,
            make_exp_dirs=make,
            build_dataset=build,
            build_model=build_durable_model,
        ),
    ):
        try:
            basicsr.test.test_pipeline(root_path)
        except (KeyboardInterrupt, SystemExit):
            # Ctrl-C too: half of the new results are worth less than all of the older ones.
            folder.restore()
            raise
        except Exception as error:
            folder.restore()
            raise in_one_line(error) from error
        finally:
            folder.release()
    return 0


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as errors do, not in the middle of everything."""

    def end(number: int, frame: FrameType | None) -> None:
        print("basicsr: stopped by SIGTERM, older results are back in place", file=sys.stderr)
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
