"""`evaluate`: a bundle and a stored dataset become a report that can be mailed."""

from deeplense.evaluation.report.evaluate import evaluate

__all__ = ["evaluate"]
