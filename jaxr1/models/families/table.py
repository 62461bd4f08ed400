"""All families by their `model_type`."""

from __future__ import annotations

from jaxr1.models.families import decoders, internvl, qwen_vl
from jaxr1.models.families.family import Family

FAMILIES: dict[str, Family] = {**qwen_vl.FAMILIES, **internvl.FAMILIES, **decoders.FAMILIES}
