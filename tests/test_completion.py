"""Completion: additions, then the best swaps, against a copy of the rule written with loops."""

import families
import naive
import numpy as np
import pytest

from transmask.solvers._completion_kernels import add_and_swap

PATTERNS = [(1, 2), (1, 3), (2, 3), (2, 4), (3, 4), (2, 5), (4, 7), (6, 7), (4, 8), (7, 9)]


def naive_completion(scores, mask, n, max_swaps, with_loss):
    """The documented rule; exact for scores that are small integers."""
    mask, m = mask.copy(), len(mask)
    for index in np.argsort(-scores, axis=None, kind="stable"):
        i, j = divmod(int(index), m)
        if not mask[i, j] and mask[i].sum() < n and mask[:, j].sum() < n:
            mask[i, j] = True
    for _ in range(max_swaps):
        swaps = [
            (scores[i, c] + scores[r, j] - scores[r, c], -i, -j, -c, -r)
            for i in np.flatnonzero(mask.sum(axis=1) < n)
            for j in np.flatnonzero(mask.sum(axis=0) < n)
            for r in range(m)
            for c in range(m)
            if mask[r, c] and not mask[i, c] and not mask[r, j]
        ]
        if not swaps or (max(swaps)[0] <= 0 and not with_loss):
            break
        i, j, c, r = (-index for index in max(swaps)[1:])
        mask[r, c], mask[i, c], mask[r, j] = False, True, True
    return mask


def sparse_masks(rng, count, n, m):
    """Full masks from which all to nothing was dropped at random, some of them emptied in a few lines."""
    masks = np.stack([naive.random_mask(rng, n, m) for _ in range(count)])
    masks &= rng.random(masks.shape) < rng.choice([0.0, 0.3, 0.8, 0.95, 1.0], (count, 1, 1))
    masks[: count // 3, 0] = False
    masks[: count // 4, :, -1] = False
    return masks


def corner_masks(rng, count, n, m):
    """The first k rows and columns keep each other and nothing else, with k < N: as much room as there can be."""
    masks = np.zeros((count, m, m), bool)
    for mask in masks:
        k = int(rng.integers(1, n)) if n > 1 else 1
        mask[:k, :k] = True
        rest = m - k
        if rest >= n:
            mask[k:, k:] = naive.random_mask(rng, n, rest)
    return masks


def complete(scores, masks, n, max_swaps=10**9, *, with_loss=True):
    found = masks.copy()
    add_and_swap(np.ascontiguousarray(scores), found, n, max_swaps, with_loss)
    return found


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("make_masks", [sparse_masks, corner_masks])
def test_the_rule_is_followed_to_the_letter_ties_included(n, m, make_masks):
    rng = np.random.default_rng(m * n)
    for highest in (1, 2, 5, 1000):
        scores = rng.integers(0, highest, (8, m, m)).astype(np.float32)
        masks = make_masks(rng, 8, n, m)
        for max_swaps, with_loss in ((0, True), (1, True), (2, False), (10**9, False), (10**9, True)):
            found = complete(scores, masks, n, max_swaps, with_loss=with_loss)
            for block, mask, answer in zip(scores.astype(int), masks, found, strict=True):
                assert np.array_equal(answer, naive_completion(block, mask, n, min(max_swaps, m * m), with_loss))


LARGE = [
    pytest.param(n, m, marks=pytest.mark.compiled)
    for n, m in ((15, 16), (16, 32), (1, 64), (32, 64), (63, 64), (3, 70))
]


@pytest.mark.parametrize(("n", "m"), [*PATTERNS, *LARGE])
@pytest.mark.parametrize("make_masks", [sparse_masks, corner_masks])
def test_every_line_is_full_at_the_end(n, m, make_masks):
    rng = np.random.default_rng(m + n)
    for family in (families.gaussian, families.constant, families.int4, families.sixty_decades, families.huge):
        scores = family(rng, 4, m).astype(np.float64)
        masks = make_masks(rng, 4, n, m)
        found = complete(scores, masks, n)
        assert (found.sum(axis=1) == n).all()
        assert (found.sum(axis=2) == n).all()


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("make_masks", [sparse_masks, corner_masks])
def test_additions_only_add_until_nothing_is_free(n, m, make_masks):
    rng = np.random.default_rng(m - n)
    scores, masks = families.cauchy(rng, 30, m), make_masks(rng, 30, n, m)
    found = complete(scores, masks, n, 0)
    assert (found | ~masks).all()
    rows, columns = found.sum(axis=2) < n, found.sum(axis=1) < n
    assert not (rows[:, :, None] & columns[:, None, :] & ~found).any()
    assert (found.sum(axis=1) <= n).all()
    assert (found.sum(axis=2) <= n).all()


@pytest.mark.parametrize(
    ("n", "m"), [(2, 3), (3, 4), (2, 5), (4, 7), (6, 7), (4, 8), pytest.param(8, 16, marks=pytest.mark.compiled)]
)
def test_a_swap_loses_at_most_what_is_proven(n, m):
    rng = np.random.default_rng(n)
    losses = 0
    for noise in (0.0, 1.0, 100.0):
        masks = corner_masks(rng, 20, n, m)
        scores = masks + noise * masks * rng.random(masks.shape) + 1e-3 * rng.random(masks.shape)
        before = complete(scores, masks, n, 0)
        for swaps in range(1, m * m):
            after = complete(scores, masks, n, swaps)
            if np.array_equal(before, after):
                break
            changed = (before != after).sum(axis=(1, 2))
            assert set(changed) <= {0, 3}
            kept_before, kept_after = (scores * before).sum(axis=(1, 2)), (scores * after).sum(axis=(1, 2))
            assert (kept_after >= kept_before * (m - n) / (m - n + 1) * (1 - 1e-12)).all()
            losses += (kept_after < kept_before).sum()
            before = after
    assert losses > 0


def test_without_loss_the_kept_weight_only_grows():
    rng = np.random.default_rng(0)
    scores, masks = families.gaussian(rng, 100, 8), corner_masks(rng, 100, 4, 8)
    without, with_loss = complete(scores, masks, 4, with_loss=False), complete(scores, masks, 4)
    kept = [(scores * found).sum(axis=(1, 2)) for found in (complete(scores, masks, 4, 0), without)]
    assert (kept[1] >= kept[0]).all()
    assert (kept[1] > kept[0]).any()
    assert (without.sum(axis=(1, 2)) <= with_loss.sum(axis=(1, 2))).all()


def test_full_masks_and_no_masks_stay_as_they_are():
    rng = np.random.default_rng(0)
    masks = np.stack([naive.random_mask(rng, 3, 7) for _ in range(9)])
    assert np.array_equal(complete(families.gaussian(rng, 9, 7), masks, 3), masks)
    assert complete(np.zeros((0, 7, 7)), np.zeros((0, 7, 7), bool), 3).shape == (0, 7, 7)
