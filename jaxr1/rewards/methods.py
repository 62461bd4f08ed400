"""The reward methods of VLM-R1 (arXiv:2504.07615), by the names that its rows give them.

Reward(Route("accu_reward_method", VLM_R1), name="accuracy")
"""

from __future__ import annotations

from jaxr1.rewards.spec import Reward

VLM_R1: dict[str, Reward] = {
    "default": Reward("accuracy"),
    "mcq": Reward("accuracy"),
    "math": Reward("accuracy"),
    "yes_no": Reward("yes_no"),
    "all_match": Reward("all_match"),
    "weighted_sum": Reward("detection"),
    "iou": Reward("iou"),
}
"""{method: reward}. Not there, so that their rows are told of: "llm" (a judge), and "map", "od_ap",
"od_ap50" and "odLength" (average precision, which of one picture jumps).
"""
