"""Populations of lenses and sources, drawn together; `base.py` says how to add one."""

from __future__ import annotations

from typing import Any

from deeplense.sim.sky.base import SKY, Setting, is_sky
from deeplense.sim.sky.ellipticals import Ellipticals

__all__ = ["SKIES", "SKY", "Setting", "is_sky"]

SKIES: dict[str, Any] = {"ellipticals": Ellipticals}
