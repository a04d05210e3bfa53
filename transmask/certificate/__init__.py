"""Prove how good a mask is, whoever made it.

bound.py    what is proven: the bound, the certificate, and which duals are tried
proof.py    one pass over whole matrices, in cache and in threads
kernel.py   the pass itself: feasibility, what is kept, and the distance to the bound of given duals
duals.py    where dual variables come from; any prove a bound, good ones a tight one

What proves (bound, proof, kernel) shares no code with a solver.
"""

from .bound import Certificate, certify, certify_matrices
from .proof import PROVEN_GAP, Proof, add_up, prove_each, relative_gap

__all__ = [
    "PROVEN_GAP",
    "Certificate",
    "Proof",
    "add_up",
    "certify",
    "certify_matrices",
    "prove_each",
    "relative_gap",
]
