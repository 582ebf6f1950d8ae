"""Kinds of values that settings have: sizes and ages with units, counts, seconds, ports."""

from __future__ import annotations

import json
import re
from typing import Annotated

from pydantic import BeforeValidator, Field

KIB, MIB, GIB = 1024, 1024**2, 1024**3
_UNITS = {"": 1, "B": 1, "KIB": KIB, "MIB": MIB, "GIB": GIB, "TIB": 1024 * GIB, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"(\d+)\s*([A-Za-z]*)")
_AGE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*([a-z]+)")
_AGE_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
_AGE_S_MAX = 1000 * 365 * 86_400


def require_address(value: str | None) -> str | None:
    """The address of a server, or none. Raises ValueError with the rule broken."""
    if value is not None and not re.fullmatch(r"https?://[^/\s]+/?", value):
        raise ValueError("must be http://host:port or https://host:port")
    return value


def a_number(value: object) -> object:
    """The environment has only text; `true` is not a number, though Python thinks it is 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def a_map(value: object, example: str) -> object:
    """The environment has only text: a map is JSON there, as in `example`."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"must be a JSON object in the environment, as in {example}")
    return value


def a_size(value: object) -> object:
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None or match[2].upper() not in _UNITS:
            raise ValueError('must be a number of bytes, or one like "64 MiB"')
        return int(match[1]) * _UNITS[match[2].upper()]
    return a_number(value)


def an_age(value: object) -> object:
    """Seconds, of a number with its unit."""
    if isinstance(value, str):
        match = _AGE.fullmatch(value.strip())
        if match is None or match[2] not in _AGE_UNITS:
            raise ValueError('must be a number of s, min, h or d, as in "30 d"')
        return float(match[1]) * _AGE_UNITS[match[2]]
    return a_number(value)


Port = Annotated[int, BeforeValidator(a_number), Field(ge=0, le=65535)]
Count = Annotated[int, BeforeValidator(a_number), Field(ge=1, le=2**53)]
Bytes = Annotated[int, BeforeValidator(a_size), Field(ge=1, le=2**53)]
Seconds = Annotated[float, BeforeValidator(a_number), Field(gt=0, le=86_400, allow_inf_nan=False)]
LongSeconds = Annotated[float, BeforeValidator(a_number), Field(gt=0, le=_AGE_S_MAX, allow_inf_nan=False)]
Age = Annotated[float, BeforeValidator(an_age), Field(ge=1, le=_AGE_S_MAX, allow_inf_nan=False)]
