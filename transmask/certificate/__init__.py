"""Prove how good a mask is: the bound, and where the dual variables come from. It shares no code with any solver."""

from .bound import PROVEN_GAP, Certificate, certify, certify_matrices

__all__ = ["PROVEN_GAP", "Certificate", "certify", "certify_matrices"]
