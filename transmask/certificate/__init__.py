"""Prove how good a mask is, whoever made it. Nothing in this folder shares code with a solver.

bound.py    the bound and the certificate: what is proven, and the one pass over the blocks that proves it
duals.py    where dual variables come from; any prove a bound, good ones a tight one
"""

from .bound import PROVEN_GAP, Certificate, certify, certify_matrices

__all__ = ["PROVEN_GAP", "Certificate", "certify", "certify_matrices"]
