"""The algorithms as texts: what a stage can be told (`options`), and its step top to bottom."""

from jaxr1.stages.context import POLICY, Context, Worker
from jaxr1.stages.filter import FilterStage
from jaxr1.stages.options import Filter, Preference, Rl, Sft, Stage
from jaxr1.stages.preference import PreferenceStage
from jaxr1.stages.rl import RlStage
from jaxr1.stages.sft import SftStage

__all__ = ["POLICY", "Context", "Filter", "Preference", "Rl", "Sft", "Stage", "Worker", "build"]

WORKERS = {Sft: SftStage, Rl: RlStage, Preference: PreferenceStage, Filter: FilterStage}


def build(options: Stage, context: Context) -> Worker:
    """The stage that carries the options out."""
    return WORKERS[type(options)](options, context)
