"""Turns Python keywords into the command's flags.

One rule: an underscore becomes a hyphen, and a final underscore (`from_`, a word of Python) is left out.

| value | flag |
|---|---|
| None, False | left out |
| True | `--flag` |
| list | `--flag=a,b` |
| tuple | `--flag a b`, for flags that take several words |
| dict | `--flag=name=value,…`; of `model`, `cluster`, `job` and `from_` a file with these fields |
| anything else | `--flag=value` |
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Mapping, Sequence

# Flags that the command takes several times instead of as a list.
_REPEATED = {"devices", "allow"}


def arguments(flags: Mapping[str, Any], folder: Path) -> list[str]:
    """The words of the command line; files for dicts are written to the folder."""
    words: list[str] = []
    for keyword, value in flags.items():
        name = keyword.rstrip("_")
        flag = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            words.append(flag)
        elif isinstance(value, tuple):
            words += [flag, *(plain(name, one, folder) for one in value)]
        elif isinstance(value, list) and name in _REPEATED:
            words += [f"{flag}={plain(name, one, folder)}" for one in value]
        else:
            words.append(f"{flag}={plain(name, value, folder)}")
    return words


def plain(name: str, value: Any, folder: Path) -> str:
    """One value as the command reads it."""
    if isinstance(value, Mapping):
        if name in ("model", "cluster", "clusters", "job", "from"):
            return _file(name, value, folder)
        return ",".join(f"{key}={plain(name, one, folder)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return ",".join(plain(name, one, folder) for one in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        # 1e12 tokens are a whole number.
        return str(int(value))
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    return str(value)


def _file(name: str, fields: Mapping[str, Any], folder: Path) -> str:
    """A file with the fields; models and configurations of trainers are JSON, clusters and jobs TOML."""
    kind = "json" if name in ("model", "from") else "toml"
    taken = 1
    while (path := folder / f"{name}{'' if taken == 1 else taken}.{kind}").exists():
        taken += 1
    if kind == "json":
        path.write_text(json.dumps(fields), encoding="utf-8")
    else:
        lines = [f"{_key(key)} = {_toml(value)}\n" for key, value in fields.items() if value is not None]
        path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def _key(key: str) -> str:
    # JSON's strings are basic strings of TOML.
    return json.dumps(str(key), ensure_ascii=False)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float) and value != value:
        return "nan"
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return "inf" if value > 0 else "-inf"
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False)
