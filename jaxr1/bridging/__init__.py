"""Modality bridging: worked responses, reasoned by a model that sees no picture."""
