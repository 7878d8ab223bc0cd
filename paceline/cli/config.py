"""``paceline config``: every setting with its value and where that came from; a file to begin with."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from paceline.cli.settings import HELP, SECTIONS, takes_settings
from paceline.cli.terminal import FAINT, AsJson, console, print_json
from paceline.core.errors import ConfigError
from paceline.core.resolution import FILE_NAME, FILE_VARIABLE, Found, Resolution, user_directory
from paceline.core.settings import Setting, settings_of

app = typer.Typer(name="config", help="Shows the settings and where they come from, or writes a file of them.")


def show(*, resolution: Resolution, as_json: AsJson = False) -> None:
    """Shows every setting, its value, and where that came from."""
    if as_json:
        print_json(_as_dict(resolution))
        return
    out = console()
    for path in resolution.files:
        out.out(f"file: {path}", style=FAINT)
    table = Table(box=None, pad_edge=False, header_style=FAINT)
    for name in ("setting", "value", "from"):
        table.add_column(name, overflow="fold")
    for section in SECTIONS:
        for name, found in resolution.found[section.name].items():
            table.add_row(section.place(name), _shown(found), found.source.name or "default")
    out.print(table)


def _shown(found: Found) -> str:
    return "-" if found.shown is None else _toml(found.shown)


def _as_dict(resolution: Resolution) -> dict[str, Any]:
    return {
        "files": [str(path) for path in resolution.files],
        "settings": [
            {
                "section": section.name,
                "name": name,
                "value": found.shown,
                "source": found.source.kind,
                "from": found.source.name or None,
                "flag": found.setting.flag,
                "variable": found.setting.variable,
                "allowed": found.setting.allowed,
                "help": found.setting.about.help,
            }
            for section in SECTIONS
            for name, found in resolution.found[section.name].items()
        ],
    }


def init(
    *,
    path: Annotated[
        Path | None, typer.Argument(help=f"File to write; by default ./{FILE_NAME}; - is the screen.")
    ] = None,
    user: Annotated[bool, typer.Option("--user", help="Write the user's own file, which counts everywhere.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Writes a commented file with every setting at its default."""
    if user and path is not None:
        raise ConfigError("--user names a file, and another was given\nGive one of them.")
    if path == Path("-"):
        sys.stdout.write(template())
        return
    place = path or (user_directory() / FILE_NAME if user else Path(FILE_NAME))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("w" if force else "x", encoding="utf-8") as file:
            file.write(template())
    except FileExistsError:
        raise ConfigError(f"{place} is there already\nAdd --force to write over it, or name another.") from None
    except OSError as error:
        raise ConfigError(f"{place} cannot be written ({error.strerror})\nName another file.") from None
    console().out(f"wrote {place}; read by every command here, or by --config and {FILE_VARIABLE} from elsewhere")


def template() -> str:
    """A file with every setting commented out, at its default."""
    lines = [
        "# Settings of Paceline. A flag (--block-size) wins over PACELINE_BLOCK_SIZE, and both over this file.",
        "# What is commented out shows the default; take away the # to set it.",
    ]
    for section in SECTIONS:
        lines += ["", f"[{section.name}]"] if section.name else [""]
        lines += [line for setting in settings_of(section.kind).values() for line in _commented(setting)]
    return "\n".join(lines) + "\n"


def _commented(setting: Setting) -> Iterator[str]:
    known = setting.default not in (MISSING, None) and not setting.about.secret
    yield f"# {setting.about.help}"
    yield f"# {setting.name} = {_toml(setting.default) if known else ''}  # {setting.allowed}"


def _toml(value: Any) -> str:
    """A value as TOML writes it, which for these types is as JSON does."""
    return json.dumps(value if isinstance(value, str | int | float | list) else list(value), ensure_ascii=False)


app.command("show", epilog=HELP)(takes_settings(show))
app.command("init")(init)
