"""What the folders, LMDBs and lists of a data set hold: pictures, in pairs, and large enough."""

import os
from collections.abc import Callable
from typing import Any

from esc_arch.plugin.preflight import pictures
from esc_arch.plugin.preflight.batches import check_batch
from esc_arch.plugin.preflight.pictures import Pictures, Unusable
from esc_arch.plugin.preflight.report import Path, Report
from esc_arch.plugin.preflight.table import is_number, template
from esc_arch.plugin.preflight.wording import one_line
from esc_arch.prepare.headers import Header

PAIRED = frozenset({"PairedImageDataset", "RealESRGANPairedDataset"})
# Of these it is known what their lists and folders hold.
UNDERSTOOD = PAIRED | {"SingleImageDataset", "DownsampleImageDataset", "RealESRGANDataset"}

Partners = tuple[Pictures, Callable[[str], str]]


def check_content(report: Report, path: Path, value: dict[str, Any], kind: str) -> None:
    """Check that the pictures of a data set are there, in pairs, and large enough."""
    backend = value.get("io_backend")
    is_lmdb = isinstance(backend, dict) and backend.get("type") == "lmdb"
    list_key = "meta_info" if kind.startswith("RealESRGAN") else "meta_info_file"
    listed = None if is_lmdb else value.get(list_key)
    place = (*path, list_key)
    if report.is_wrong(place):
        return
    main = _main(kind)
    if not isinstance(value.get(main), str):
        return
    sides: dict[str, Pictures] = {}
    try:
        if listed is not None and kind == "RealESRGANPairedDataset":
            if isinstance(value.get("dataroot_lq"), str):
                gt, lq = pictures.in_pairs(listed, value[main], value["dataroot_lq"])
                pairs = dict(zip(gt.names, lq.names, strict=True))
                _look(report, path, gt, (lq, pairs.__getitem__), kind)
            return
        if listed is not None:
            sides[main] = pictures.in_list(listed, value[main])
        for key in (main, "dataroot_lq") if kind in PAIRED else (main,):
            place = (*path, key)
            if key not in sides and isinstance(value.get(key), str) and value[key]:
                deep = kind == "RealESRGANDataset"
                root = value[key]
                sides[key] = pictures.in_lmdb(root) if is_lmdb else pictures.in_folder(root, deep)
    except Unusable as problem:
        report.error(place, str(problem))
        return
    except OSError as error:
        report.error(place, f"cannot be read: {error.strerror}")
        return
    empty = [key for key, side in sides.items() if not side.names]
    for key in empty:
        report.error((*path, key), f"{one_line(value[key])}: no images in it")
    if empty:
        return
    lq = None
    if kind in PAIRED and "dataroot_lq" in sides:
        lq = _partners(report, path, sides[main], sides["dataroot_lq"], listed is not None)
    _look(report, path, sides[main], lq, kind)


def _partners(
    report: Report, path: Path, gt: Pictures, lq: Pictures, listed: bool
) -> Partners | None:
    """The LQ pictures and how their names follow from GT's; None where they are not those of GT."""
    if report.is_wrong((*path, "filename_tmpl")):
        return None
    form = report.get(*path, "filename_tmpl")
    form = form if isinstance(form, str) and template(form) is None else "{}"
    problem = None if listed else pictures.pair_problem(gt, lq, form)
    if problem:
        report.error((*path, "dataroot_lq"), problem)
        return None
    if gt.is_lmdb:
        return lq, lambda name: name
    return lq, lambda name: pictures.partner(os.path.basename(name), form)


def _look(
    report: Report,
    path: Path,
    found: Pictures,
    partners: Partners | None,
    kind: str,
) -> None:
    """Look at as many pictures as there is time for: whether they can be read, sizes, pairs."""
    training = path[1] == "train"
    # What cannot be used is left out then, with a line each.
    finding = report.error
    if training and report.get(*path, "on_bad_sample") == "skip":
        finding = report.warn
    scale = report.get("scale")
    smallest: tuple[str, Header] | None = None
    looked_at = 0
    for name in found.within(pictures.SECONDS):
        looked_at += 1
        header = found.header(name)
        if header is None and found.is_lmdb:
            continue
        if header is None:
            finding((*path, _main(kind)), f"{one_line(name)} is not a picture that can be read")
            break
        if smallest is None or min(header[:2]) < min(smallest[1][:2]):
            smallest = name, header
        if partners is None:
            continue
        lq, name_of = partners
        other = name_of(name)
        partner = lq.header(other)
        if partner is None and found.is_lmdb:
            continue
        problem = pictures.size_problem(header, partner, scale, found.is_lmdb or training)
        if problem:
            finding((*path, "dataroot_lq"), f"{one_line(other)} {problem}")
            break
    else:
        if looked_at < len(found.names):
            report.warn(
                path,
                f"{looked_at} of {len(found.names)} pictures were looked at in "
                f"{pictures.SECONDS:g} s; the others are as they are read",
            )
    if training:
        check_batch(report, path, len(found.names))
    if smallest is not None:
        _sizes(report, path, *smallest, kind, finding)


def _main(kind: str) -> str:
    return "dataroot_lq" if kind == "SingleImageDataset" else "dataroot_gt"


def _sizes(
    report: Report, path: Path, name: str, smallest: Header, kind: str, finding: Any
) -> None:
    """Check patches and borders against the smallest picture."""
    height, width, _ = smallest
    if path[1] == "train":
        gt_size = None if report.is_unread((*path, "gt_size")) else report.get(*path, "gt_size")
        # RealESRGANDataset makes its pictures larger.
        if is_number(gt_size) and kind != "RealESRGANDataset" and min(height, width) < gt_size:
            finding(
                (*path, "gt_size"),
                f"{gt_size} is more than {one_line(name)} has, {width} x {height}",
            )
        return
    scale = report.get("scale") if kind == "SingleImageDataset" else 1
    if is_number(scale):
        sides = int(height * scale), int(width * scale)
        report.measured = min(report.measured or sides, sides, key=min)
    for metric in report.section("val", "metrics"):
        place = ("val", "metrics", metric, "crop_border")
        border = report.get(*place)
        if not (is_number(border) and is_number(scale)):
            continue
        side = min(height, width) * scale
        if 2 * border >= side:
            report.error(place, f"{border} leaves nothing of {one_line(name)}, of {side}")
