"""`ltx2rt serve BUNDLE [BUNDLE ...]`: the video API, and a page."""

from __future__ import annotations

import argparse
import importlib
import ipaddress
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

from ltx2rt.cli.common import parse_devices
from ltx2rt.config import RuntimeConfig
from ltx2rt.docstrings import attribute_texts
from ltx2rt.errors import OptionError, UnsupportedError
from ltx2rt.install import install_hint
from ltx2rt.service.limits import Limits
from ltx2rt.service.service import Service, Settings
from ltx2rt.service.sources import Allowed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, nargs="*")
    where = parser.add_argument_group("where")
    where.add_argument("--host", default="127.0.0.1", help="address to listen at; default loopback")
    where.add_argument("--port", type=_port, default=8000, help="default 8000; 0 takes a free one")
    where.add_argument("--data", type=Path, metavar="DIR", help="folder of jobs and clips")
    where.add_argument(
        "--model", action="append", default=[], metavar="NAME",
        help="what a bundle is called, once for each; default the names of their folders",
    )  # fmt: skip
    where.add_argument(
        "--devices",
        type=parse_devices,
        default=(None,),
        metavar="N,N",
        help="GPU numbers, a worker each",
    )
    where.add_argument("--threads", type=int, default=0, help="CPU threads per engine; 0: all")
    where.add_argument("--max-batch-size", type=int, default=1, help="guidance passes together")
    where.add_argument("--weights-dir", type=Path, metavar="DIR", help="where weight files are now")
    where.add_argument("--log-level", default="info", choices=("debug", "info", "warning"))
    who = parser.add_argument_group("who")
    who.add_argument(
        "--keys", type=Path, metavar="FILE", help="hashes of the API keys that may ask"
    )
    who.add_argument(
        "--add-key", metavar="NAME", help="make a key, print it once, keep its hash in --keys, stop"
    )
    who.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="further name of this host",
    )
    who.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="a site whose pages may ask"
    )
    what = parser.add_argument_group("what requests may name")
    what.add_argument("--media-dir", type=Path, metavar="DIR", help="a folder of media")
    what.add_argument("--lora-dir", type=Path, metavar="DIR", help="a folder of LoRAs")
    what.add_argument(
        "--fetch", action="append", default=[], metavar="ORIGIN",
        help="https://HOST from which media are fetched for requests",
    )  # fmt: skip
    limits = parser.add_argument_group("limits")
    for cls in (Settings, Limits):
        texts = attribute_texts(cls)
        for field in fields(cls):
            if field.name.startswith("max_"):
                limits.add_argument(
                    f"--{field.name.replace('_', '-')}",
                    type=float if isinstance(field.default, float) else int,
                    default=field.default,
                    metavar="N",
                    help=f"{texts[field.name]}; default {field.default}",
                )
    limits.add_argument(
        "--grace", type=float, default=30.0, metavar="S", help="seconds to finish in when it ends"
    )


def run(options: argparse.Namespace) -> int:
    """Until a signal ends it."""
    keys = _door("keys")
    if options.add_key is not None:
        if options.keys is None:
            raise OptionError("--add-key needs --keys FILE.")
        print(keys.add_key(options.keys, options.add_key))
        return 0
    if not options.bundle or options.data is None:
        raise OptionError("name a bundle and a folder of jobs: ltx2rt serve BUNDLE --data DIR.")
    if options.keys is None and not _is_loopback(options.host):
        raise OptionError(
            f"--host {options.host} can be reached by others: make a key (ltx2rt serve --keys FILE "
            "--add-key NAME) and name --keys FILE, or listen at 127.0.0.1."
        )
    guarding, server, app, log = (_door(n) for n in ("guard", "server", "app", "log"))
    hosts = [*guarding.LOOPBACK, options.host, *options.allow_host]
    guard = guarding.Guard(
        # behind a key it does not matter how the server is called
        hosts=hosts if options.keys is None or options.allow_host else (),
        origins=tuple(options.cors),
        keys=None if options.keys is None else keys.Keys(options.keys),
        max_body_bytes=options.max_body_bytes,
    )
    log.log_to_stderr(options.log_level)
    service = Service(settings_of(options))
    address = server.Address(host=options.host, port=options.port, grace_s=options.grace)
    server.serve(app.make_app(service, guard), service, address)
    return 0


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"invalid port: {text!r}; ports are 0 to 65535")
    return int(text)


def models_of(bundles: Sequence[Path], names: Sequence[str]) -> dict[str, Path]:
    """Bundles by name.

    Raises:
        OptionError: there are not as many names as bundles, or two are called the same.
    """
    called = [*names] or [b.resolve().name.removesuffix(".bundle") for b in bundles]
    if len(called) != len(bundles):
        raise OptionError(
            f"{len(called)} names of models are given for {len(bundles)} bundles: name --model "
            "once for each, in their order, or not at all."
        )
    if bad := [n for n in called if not n or "/" in n or called.count(n) > 1]:
        raise OptionError(
            f"{bad[0]!r} cannot name a model: names are different, not empty, and without '/'; "
            "name --model once for each bundle, in their order."
        )
    return dict(zip(called, bundles, strict=True))


def settings_of(options: argparse.Namespace) -> Settings:
    """What the flags say of the service."""

    def named(cls: type[Any]) -> dict[str, Any]:
        names = [f.name for f in fields(cls) if f.name.startswith("max_")]
        return {name: getattr(options, name) for name in names}

    for folder in (options.media_dir, options.lora_dir):
        if folder is not None and not folder.is_dir():
            raise OptionError(f"{folder} is not a folder.")
    return Settings(
        models=models_of(options.bundle, options.model),
        data_dir=options.data,
        devices=tuple(options.devices),
        runtime=RuntimeConfig(
            threads=options.threads, residency="resident", max_batch_size=options.max_batch_size
        ),
        weights_dir=options.weights_dir,
        allowed=Allowed(
            media_dir=options.media_dir, lora_dir=options.lora_dir, origins=tuple(options.fetch)
        ),
        limits=Limits(**named(Limits)),
        **named(Settings),
    )


def _door(name: str) -> ModuleType:
    """A module of the HTTP door.

    Raises:
        UnsupportedError: the `serve` extra is not installed.
    """
    place = "ltx2rt.service" if name == "log" else "ltx2rt.service.http"
    try:
        return importlib.import_module(f"{place}.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("ltx2rt"):
            raise
        raise UnsupportedError(
            f"this command needs the package {error.name}, which is part of the serve extra: "
            f"{install_hint('serve')}"
        ) from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
