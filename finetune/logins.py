"""Whether W&B can log in, found out without importing wandb, asking on the terminal or reaching a server."""

from __future__ import annotations

import netrc
import os
from collections.abc import Iterator
from configparser import ConfigParser
from configparser import Error as ConfigError
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["wandb_problem"]

KEY_LENGTH = 40
# wandb's own server has moved; `wandb login` may have stored the key under either name
OWN_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com", "forge.coreweave.com")


def wandb_problem() -> str | None:
    """Why W&B could not log in; None when it has something to log in with.

    Looks where wandb looks: WANDB_API_KEY, WANDB_IDENTITY_TOKEN_FILE, the netrc file (`wandb login` writes it), wandb's
    settings file. Source: wandb.sdk.lib.wbauth.
    """
    if key := os.environ.get("WANDB_API_KEY"):
        return _key_problem(key)
    if os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return None
    settings = _settings()
    if settings.get("api_key") or any(_in_netrc(host) for host in _hosts(settings)):
        return None
    return "no API key for W&B was found"


def _key_problem(key: str) -> str | None:
    """The text never holds the key. Source: wandb.sdk.lib.wbauth.validation."""
    secret = key.split("-", 1)[-1]
    if key.count(".") == 2 or len(secret) >= KEY_LENGTH:
        return None
    return f"WANDB_API_KEY is no key of W&B: {KEY_LENGTH} characters or more expected, {len(secret)} found"


def _settings() -> dict[str, str]:
    folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    parser = ConfigParser(interpolation=None)
    try:
        parser.read(Path(folder).expanduser() / "settings", encoding="utf-8")
    except (ConfigError, UnicodeDecodeError):
        return {}
    return dict(parser["default"]) if parser.has_section("default") else {}


def _hosts(settings: dict[str, str]) -> Iterator[str]:
    own = urlsplit(os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or "").netloc
    if own:
        yield own
    if not own or own in OWN_HOSTS:
        yield from OWN_HOSTS


def _in_netrc(host: str) -> bool:
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    if "NETRC" not in os.environ and not path.exists():
        path = Path("~/_netrc").expanduser()
    try:
        found = netrc.netrc(str(path)).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return bool(found and found[2])
