"""`basicsr upscale` of a film."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from esc_arch.errors import UserError, printable
from esc_arch.films import CODECS, SUFFIXES

if TYPE_CHECKING:
    from esc_arch.inference.upscaler import Upscaler


def target_of(args: argparse.Namespace, source: Path) -> Path:
    """Where the result goes: `-o` itself if that ends as a film does, else a file in that folder.

    Raises:
        UserError: The container does not hold the codec.
    """
    out: Path = args.output
    holds = CODECS[args.codec][1]
    if out.suffix.lower() in SUFFIXES and not out.is_dir():
        if out.suffix.lower() not in holds:
            raise UserError(
                f"-o {printable(out)}: {args.codec} goes into {', '.join(holds)}; choose one of "
                "these, or another --codec"
            )
        target = out
    else:
        kept = source.suffix.lower() if source.suffix.lower() in holds else holds[0]
        target = out / f"{source.stem}{args.suffix}{kept}"
    if target.exists() and target.samefile(source):
        raise UserError(f"{printable(source)}: its result would replace it; choose another -o")
    return target


def upscale_one(
    args: argparse.Namespace, source: Path, upscaler: "Upscaler", made_by: dict[str, object]
) -> int:
    """Upscale a film, with a bar of frames. 0 if it is done or was there already.

    Raises:
        UserError: It cannot be read or written, or something else has the result's name.
    """
    from tqdm import tqdm

    try:
        from esc_arch.films.film import FilmSettings, upscale_film, why_not_kept
    except ModuleNotFoundError as error:
        if error.name != "av":
            raise
        raise UserError("films need PyAV: pip install 'esc-arch[video]'") from None
    from esc_arch.inference.manifest import Manifest
    from esc_arch.inference.work import Job

    target = target_of(args, source)
    settings = FilmSettings(args.codec, args.quality or 70, args.batch)
    job, manifest = Job(source, target), None
    if target != args.output:
        options = {**made_by, "codec": settings.codec, "quality": settings.quality}
        manifest = Manifest(target.parent, str(options.pop("model")), options)
        manifest.begin(job)
    if target.exists() and not args.overwrite:
        same = manifest.verdict(job) if manifest is not None else None
        if same is None and (why := why_not_kept(source, target, upscaler.scale)):
            raise UserError(f"{printable(target)}: is there, and {why}; --overwrite replaces it")
        if isinstance(same, str):
            print(f"{printable(target)}: done anew: {same}")
        else:
            known = "" if same else ", whatever weights and options made it"
            print(f"{printable(target)}: kept{known}; --overwrite replaces it")
            return 0
    with tqdm(unit="frame", disable=not sys.stderr.isatty()) as bar:

        def watch(done: int, count: int) -> None:
            bar.total = count
            bar.update(done - bar.n)

        notes = upscale_film(source, target, upscaler, settings, made_by, watch)
    if manifest is not None:
        manifest.done(job)
    for note in notes:
        print(f"basicsr: {note}", file=sys.stderr)
    print(f"{printable(target)}: done")
    return 0
