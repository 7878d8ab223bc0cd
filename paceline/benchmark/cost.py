"""Knows what hardware costs an hour, from a table of sourced prices, and hence a million tokens; measures nothing."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.core.errors import ConfigError, shown

BUNDLED = Path(__file__).with_name("prices.toml")
MILLION, HOUR = 1_000_000, 3600.0


@dataclass(frozen=True, slots=True)
class Price:
    """What an hour of one device costs, and who says so."""

    name: str
    dollars_per_hour: float
    source: str
    as_of: str
    what: str = ""
    matches: tuple[str, ...] = ()
    """Parts of device names that this price is for."""


def cost_per_million_tokens(price: Price, tokens_per_second: float, *, num_devices: int = 1) -> float:
    """Dollars for a million emitted tokens at this speed, the hardware being busy all the time."""
    if not tokens_per_second > 0:
        raise ValueError(f"tokens_per_second must be above 0, got {tokens_per_second}")
    return price.dollars_per_hour * num_devices / (tokens_per_second * HOUR) * MILLION


def load_prices(own: Path | None = None) -> dict[str, Price]:
    """The bundled prices by name; entries of the user's file replace those of the same name.

    Raises:
        ConfigError: the file cannot be read, or the entry and field that is wrong.
    """
    files = [BUNDLED] if own is None else [BUNDLED, own]
    return {name: _price(path, name, entry) for path in files for name, entry in _read(path).items()}


def find_price(prices: Mapping[str, Price], *, name: str | None, hardware: Mapping[str, Any]) -> Price | None:
    """The price called ``name``, else the one that matches this hardware; None if no entry does: none is guessed.

    Raises:
        ConfigError: there is no price of that name.
    """
    if name is not None:
        if name not in prices:
            raise ConfigError(f"there is no price for {shown(name)}\nChoose one of: {', '.join(sorted(prices))}.")
        return prices[name]
    devices = hardware["gpus"] or [hardware["cpu"]]
    fitting = [price for price in prices.values() if any(match in devices[0] for match in price.matches)]
    return fitting[-1] if fitting else None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}\nSee {BUNDLED} for the form.") from None


def _price(path: Path, name: str, entry: Any) -> Price:
    def refuse(what: str) -> ConfigError:
        return ConfigError(f"{path}: [{name}] {what}\nSee {BUNDLED} for the form.")

    if not isinstance(entry, dict):
        raise refuse("must be a table")
    unknown = set(entry) - {"dollars_per_hour", "source", "as_of", "what", "matches"}
    if unknown:
        raise refuse(f"has an unknown field {sorted(unknown)[0]!r}")
    dollars = entry.get("dollars_per_hour")
    if isinstance(dollars, bool) or not isinstance(dollars, int | float) or not 0 < dollars < 1e6:
        raise refuse(f"needs dollars_per_hour, a number above 0, got {shown(dollars)}")
    for field in ("source", "as_of"):
        if not isinstance(entry.get(field), str) or not entry[field]:
            raise refuse(f"needs {field}: a price without it cannot be checked")
    matches = entry.get("matches", [])
    if not isinstance(matches, list) or not all(isinstance(match, str) and match for match in matches):
        raise refuse("needs matches to be a list of texts")
    return Price(name, float(dollars), entry["source"], entry["as_of"], str(entry.get("what", "")), tuple(matches))
