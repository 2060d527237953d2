"""`basicsr app`: a page for upscaling pictures in the browser."""

import argparse
import os
import socket
import sys
import tempfile
from pathlib import Path

HELP = "Serve a page for upscaling pictures in the browser (extra app)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where to listen, with what to upscale, and the limits."""
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 serves the network, without a password (default: "
        "127.0.0.1, this machine only)",
    )
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="NAME|PATH",
        help="checkpoints to offer, also .onnx (default: those that are here)",
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda if there is one)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="as upscale"
    )
    for flag, default, what in (
        ("--max-megapixels", 16, "of the largest picture"),
        ("--max-megabytes", 32, "of the largest file"),
        ("--max-waiting", 20, "visitors in the queue"),
        ("--keep-minutes", 60, "after which files are removed"),
    ):
        parser.add_argument(
            flag, type=int, default=default, metavar="N", help=f"{what} (default: {default})"
        )


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C.

    Raises:
        UserError: Gradio is missing, a limit or model is wrong, or the port is taken.
    """
    from esc_arch.errors import UserError

    for flag in ("max_megapixels", "max_megabytes", "max_waiting", "keep_minutes"):
        value = getattr(args, flag)
        if value < 1:
            raise UserError(f"--{flag.replace('_', '-')} {value}: must be 1 or more")
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port {args.port}: must be from 0 to 65535")
    models = _models(args)
    with tempfile.TemporaryDirectory(prefix="basicsr-app-") as name:
        # Before Gradio is imported, which would look for news and use a folder that others share.
        os.environ["GRADIO_TEMP_DIR"] = name
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        try:
            import gradio  # noqa: F401
        except ModuleNotFoundError as error:
            raise UserError(
                f"basicsr app needs {error.name}: pip install 'esc-arch[app]'"
            ) from None
        return _serve(args, models, Path(name))


def _models(args: argparse.Namespace) -> dict[str, int]:
    """What is offered, with the scales.

    Raises:
        UserError: A checkpoint is missing or broken, or the device cannot be used.
    """
    from esc_arch.errors import UserError
    from esc_arch.zoo.catalogue import PUBLISHED, shipped
    from esc_arch.zoo.local import find, resolve

    names = args.models or [*shipped(), *(name for name in PUBLISHED if find(name) is not None)]
    if not names:
        raise UserError("no checkpoint is here; --models NAME names some")
    for name in names:
        resolve(name)
    # Not before: a wrong name need not wait for torch.
    from esc_arch.inference.load import load

    return {name: load(name, args.device, args.dtype).scale for name in names}


def _serve(args: argparse.Namespace, models: dict[str, int], folder: Path) -> int:
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from esc_arch.app.page import Offer, build_page
    from esc_arch.app.visitors import Doorkeeper, Visitors
    from esc_arch.errors import UserError

    visitors = Visitors(folder, args.keep_minutes)
    offer = Offer(
        models,
        args.device,
        args.dtype,
        args.max_megapixels,
        args.max_megabytes,
        args.max_waiting,
    )
    page = build_page(offer, visitors)
    largest = args.max_megabytes * 1_000_000
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="",
        max_file_size=largest,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )
    # A form around the file takes some bytes, too.
    app.add_middleware(Doorkeeper, visitors=visitors, largest=largest + 100_000)
    local = args.host in ("127.0.0.1", "localhost", "::1")
    if local:
        # Else a page elsewhere could let its name lead here, and talk to this one.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "::1"])
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((args.host, args.port))
    except OSError as error:
        raise UserError(
            f"--host {args.host} --port {args.port}: cannot listen there: {error.strerror or error}"
        ) from None
    shown = f"[{args.host}]" if ":" in args.host else args.host
    print(f"http://{shown}:{listener.getsockname()[1]}", flush=True)
    if not local:
        print("basicsr: who can reach this address can use it: there is no password",
              file=sys.stderr)  # fmt: skip
    ended = visitors.keep_tidy()
    try:
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        ended.set()
    return 0
