"""
Kernels behind the losses: exact values and gradients without a loop over regions or classes.

They need torch only, and use Triton on a GPU where it is there (:mod:`.implementations`). They
never write to their inputs and know nothing of configurations or class counts;
:mod:`lt_detectron2.losses` gives them their meaning.
"""

from .ranking import ranking_errors
from .sigmoid_ce import TermWeights, sigmoid_cross_entropy
from .softmax_ce import LogitShifts, SoftmaxPart, softmax_cross_entropy

__all__ = [
    "LogitShifts",
    "SoftmaxPart",
    "TermWeights",
    "ranking_errors",
    "sigmoid_cross_entropy",
    "softmax_cross_entropy",
]
