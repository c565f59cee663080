"""scores -> other scores: dual softmax, QB-Norm, and the re-ranking of the best candidates.

None of it is a better model. Dual softmax lets every test query know all the others, which a
system that answers one query at a time cannot; QB-Norm needs the training captions at hand.
Figures that use them are labelled, and stand beside the plain ones.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp
from scipy.stats import rankdata

BETA = 20.0
"""QB-Norm's inverse temperature for cosines (Bogolin et al. 2022, table 1)."""


class QueryBank(NamedTuple):
    """What QB-Norm has to know about a bank of queries."""

    log_sums: np.ndarray
    """(V,) log of the sum over the bank of exp(beta cosine)."""
    hubs: np.ndarray
    """(V,) bool: a video that is the best of some query of the bank."""
    queries: int
    """How many there are."""


def dual_softmax(scores: np.ndarray, *, queries: int) -> np.ndarray:
    """scores times their softmax over all queries: (Q, V) logits -> (Q, V) float64.

    `queries` is the axis on which they are: 0 where texts look for videos, 1 where videos look for
    texts. This is TS2-Net's, on logits; with its temperature CAMoE's (Cheng et al. 2021, section
    3.3) orders the same, and so does CLIP-ViP's for texts that look for videos if the temperature
    is 0.01 (for videos that look for texts the latter takes the softmax over the wrong axis).
    Nan stays nan and weighs nothing. For negative scores the published product turns the prior
    round; CLIP's cosines are seldom negative.
    """
    scores = np.asarray(scores, dtype=np.float64)  # in float32 a prior may underflow, and all tie
    known = np.where(np.isnan(scores), -np.inf, scores)
    best = known.max(axis=queries, keepdims=True)
    weights = np.exp(known - np.where(np.isfinite(best), best, 0))
    total = weights.sum(axis=queries, keepdims=True)
    return scores * (weights / np.where(total > 0, total, 1))


def query_bank(chunks: Iterable[np.ndarray], beta: float = BETA) -> QueryBank:
    """The bank of cosines (queries, V), which come chunk by chunk; nan columns stay nan."""
    log_sums, hubs, queries = None, None, 0
    for chunk in chunks:
        chunk = np.asarray(chunk, dtype=np.float64)
        sums = logsumexp(beta * chunk, axis=0)
        log_sums = sums if log_sums is None else np.logaddexp(log_sums, sums)
        known = np.where(np.isnan(chunk), -np.inf, chunk)
        found = (known == known.max(axis=1, keepdims=True)).any(axis=0) & ~np.isnan(sums)
        hubs = found if hubs is None else hubs | found
        queries += len(chunk)
    if log_sums is None or hubs is None or not queries:
        raise ValueError("a query bank of no queries; QB-Norm needs the training captions")
    return QueryBank(log_sums, hubs, queries)


def qb_norm(scores: np.ndarray, bank: QueryBank, beta: float = BETA) -> np.ndarray:
    """Dynamic inverted softmax of cosines (Q, V): QB-Norm (Bogolin et al. 2022, section 3.3).

    A text whose best video is a hub of the bank gets exp(beta cosine) divided by the bank's sum for
    that video, here as its logarithm, which orders the same; other texts keep their cosines.
    """
    scores = np.asarray(scores, dtype=np.float64)
    known = np.where(np.isnan(scores), -np.inf, scores)
    best = known == known.max(axis=1, keepdims=True)
    chosen = (best & bank.hubs).any(axis=1)
    return np.where(chosen[:, None], beta * scores - bank.log_sums, scores)


def top_candidates(loose: np.ndarray, top: int) -> np.ndarray:
    """The best `top` candidates of every row (Q, candidates), and those that tie with the last."""
    if top < 1:
        raise ValueError(f"the best {top} candidates are none; give at least 1")
    candidates = loose.shape[1]
    if top >= candidates:
        return np.ones(loose.shape, dtype=bool)
    known = np.where(np.isnan(loose), -np.inf, loose)
    return known >= np.partition(known, candidates - top, axis=1)[:, [candidates - top]]


def rerank(loose: np.ndarray, exact: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """What orders the candidates of every row: the exact score where `chosen`, then the loose one.

    All are (Q, candidates). A candidate that was not chosen gets the row's lowest exact score less
    its place by the loose score among those that were not; equal loose scores share a place. Nan
    stays nan, also the rest of a row whose exact scores are all nan.
    """
    lowest = np.fmin.reduce(np.where(chosen, exact.astype(np.float64), np.nan), axis=1)
    rest = np.where(chosen | np.isnan(loose), -np.inf, loose)
    places = rankdata(-rest, method="dense", axis=1)
    behind = np.where(np.isnan(loose), np.nan, lowest[:, None] - places)
    return np.where(chosen, exact, behind)
