"""The numbers of the engine in one place: lanes, bits and limits, and why no sum overflows.

The sweeps compute in int32
    A score has SCORE_BITS bits and is capped at CAP. A perturbation adds at most 2**(NOISE_BITS + LARGEST_EXTRA), an
    eighth of CAP. Duals are clamped to +-LARGEST_DUAL, which is 2 CAP, so a score less a dual stays below 3.2 CAP, and
    `hi + lo` in a half sweep below 6.4 CAP. The middle is at most 5.2 CAP away from the old dual, and over-relaxation
    goes half of that beyond it at most, to 5.8 CAP. int32 ends at 8 CAP.
The proofs compute in int64
    An exact score has EXACT_BITS bits, and an arc that does not exist costs NEVER. Row duals start at 2 NEVER, and
    -NEVER - 2 NEVER is still above -2**63. Other duals stay below 2**60, out of reach of NEVER: `phase2_proof` starts
    them anew before they grow beyond 64 scores. While a line still keeps too few or too many entries, scores lose
    COARSE_BITS: no path gains more than 64 of the remaining 41-bit scores, 2**47, less than one PENALTY.
    Reduced scores with their next DIGIT_BITS lie between 0 and 2 RAISED, 2**53 again; fixed entries cost NEVER.
"""

from __future__ import annotations

__all__ = [
    "ALL_LANES",
    "CAP",
    "COARSE_BITS",
    "DIGIT_BITS",
    "EXACT_BITS",
    "FAR",
    "HIDDEN",
    "LANES",
    "LARGEST_DUAL",
    "LARGEST_EXTRA",
    "LARGEST_TILE_M",
    "LOW",
    "NEVER",
    "NOISE_BITS",
    "PENALTY",
    "RAISED",
    "ROOT_BITS",
    "SCORE_BITS",
    "TINY",
    "ZOOMED_BITS",
]

# Blocks at once
LANES = 16  # one AVX-512 register, or two of AVX2, of int32
ALL_LANES = (1 << LANES) - 1
LARGEST_TILE_M = 8  # tiles are 7 times faster than single lanes at 2:4, 2.4 times at 4:8, and no faster at 8:16

# Scores and duals of the sweeps, int32
SCORE_BITS = 28
CAP = 1 << SCORE_BITS
LARGEST_DUAL = 1 << 29
LOW = 1 << 22  # thresholds below this use so few of the 28 bits of a score that rounding it would cause ties
ZOOMED_BITS = 26  # of the thresholds of a zoomed block, which leaves two bits before scores are capped

# The perturbation of blocks whose scores tie
NOISE_BITS = 20  # of 28: more, and true scores are reordered; fewer, and tied blocks take more sweeps
LARGEST_EXTRA = 5  # more bits where the scores leave room
HIDDEN = 1 << NOISE_BITS  # a perturbation hides scores below this
ROOT_BITS = 147 * (1 << 23) - 127 * (1 << 20)  # added to an eighth of the bits of x in float32, gives 2**20 * x**(1/8)

# Scores and duals of the proofs, int64
EXACT_BITS = 53  # as float64 has; what does not fit is looked at afterwards (`phase2_digits`)
TINY = 1 << 24  # an exact score below has fewer bits than float32; no other float32 is ever rounded
DIGIT_BITS = 45
FAR = 1 << 7  # above 2 + 64, which is more than an exchange can gain by what rounding took away
RAISED = FAR << DIGIT_BITS  # to 2**53
COARSE_BITS = 12
PENALTY = 1 << 48  # for each entry that a line keeps too many or too few
NEVER = 1 << 61
