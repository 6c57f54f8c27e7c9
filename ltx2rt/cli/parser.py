"""The parser of every command: a flag is given once, and a name that does not exist suggests the
nearest one, flags and their values alike.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence


class Parser(argparse.ArgumentParser):
    """As its base, but a repeated flag that takes one value is refused, where argparse would take
    the last value and say nothing; flags are not abbreviated.
    """

    def __init__(self, **options: object) -> None:
        super().__init__(**{"allow_abbrev": False, **options})  # type: ignore[arg-type]
        for name in (None, "store"):
            self.register("action", name, _Once)
        self.given: set[str] = set()

    def parse_known_args(  # type: ignore[override]  # the base has overloads for other namespaces
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As the base; every call starts anew."""
        self.given = set()
        return super().parse_known_args(args, namespace)

    def refuse(self, extras: Sequence[str]) -> None:
        """End with the error of arguments that nothing takes."""
        from ltx2rt.plain_data import nearest  # `ltx2rt --help` is quick without

        flags = [text.partition("=")[0] for text in extras if text.startswith("--")]
        hints = [nearest(flag, self._option_string_actions) for flag in flags]
        if not flags and "--prompt" in self._option_string_actions:
            hints = ['; a prompt is one text in quotes: --prompt "..."']
        self.error(f"unrecognized arguments: {' '.join(extras)}{''.join(hints)}")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """As the base, with the nearest of the choices."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            from ltx2rt.plain_data import nearest

            error.message += nearest(str(value), map(str, action.choices or ()))
            raise


class _Once(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        if option_string is not None and isinstance(parser, Parser):
            if self.dest in parser.given:
                raise argparse.ArgumentError(self, "it is given twice; give it once")
            parser.given.add(self.dest)
        setattr(namespace, self.dest, values)
