"""Runs: stages, the loop, state, metrics, console, report."""

from jaxr1.run.options import BucketOptions, Config, Evaluation, ProcessorOptions, Rl, Sft

__all__ = ["BucketOptions", "Config", "Evaluation", "ProcessorOptions", "Rl", "Sft"]
