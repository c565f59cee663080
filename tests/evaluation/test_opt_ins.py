"""Labelled figures: each follows its formula from the model's scores, and says what it uses."""

import clips as files
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import build

from videoclip.errors import VideoclipError
from videoclip.evaluation import evaluate as evaluating
from videoclip.evaluation.evaluate import Embedded, embedded, scored
from videoclip.evaluation.opt_ins import (
    dual_softmax_result,
    loose_scores,
    pair_scores,
    query_bank_result,
    reranked_results,
)
from videoclip.evaluation.rescoring import qb_norm, query_bank, rerank
from videoclip.figures.metrics import text_to_video_ranks, video_to_text_ranks
from videoclip.frames.store import FrameStore
from videoclip.manifest import Clip
from videoclip.model import VideoCLIP
from videoclip.tokenizer import Tokenizer
from videoclip.towers import Text
from videoclip.types import Embedding

TEXT = Text(width=32, layers=1, context_length=12)
TOKENIZER = Tokenizer(12)


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> tuple[list[Clip], FrameStore]:
    """Eight clips of one to four frames with one or two captions; the fourth is not there."""
    folder = tmp_path_factory.mktemp("split")
    noise, made = np.random.default_rng(0), []
    for number in range(8):
        pixels = noise.integers(0, 256, (1 + number % 4, 4, 4, 3), dtype=np.uint8)
        path = folder / f"{number}.mp4"
        if number != 3:
            files.write_video(path, pixels.repeat(8, 1).repeat(8, 2))
        texts = (f"thing {number // 2}", f"a thing {number}")[: 1 + number % 2]
        made.append(Clip(f"v{number}", path, texts))
    store = FrameStore(folder / "frames", size=16, frames=4)
    store.fill(made, 1, "clips")
    return made, store


def found(model: VideoCLIP, split: tuple[list[Clip], FrameStore]) -> Embedded:
    clips, store = split
    return embedded(model, clips, store, TOKENIZER, batch_size=3)


def test_dual_softmax_uses_the_other_queries_of_each_direction(split) -> None:
    model = build(text=TEXT)
    everything = found(model, split)
    plain = scored(model, everything)
    result = dual_softmax_result(everything, plain)
    assert "uses test queries" in result.label
    assert "uses-test-queries" in result.name
    assert list(result.metrics) == ["text_to_video", "video_to_text"]
    known = [0, 1, 2, 4, 5, 6, 7]
    logits, owners = torch.from_numpy(plain.scores[:, known]).double(), plain.video_of_caption
    for direction, axis, rank in (
        ("text_to_video", 0, text_to_video_ranks),
        ("video_to_text", 1, video_to_text_ranks),
    ):
        scores = np.full(plain.scores.shape, np.nan)
        scores[:, known] = logits * logits.softmax(axis)
        assert result.found.ranks[direction].rank.tolist() == rank(scores, owners).rank.tolist()
    assert result.found.ranks["text_to_video"].missing.sum() == 2


def test_dual_softmax_says_where_negative_scores_turn_it_round(split) -> None:
    model = build(text=TEXT)
    everything = found(model, split)
    plain = scored(model, everything)
    shares = [
        dual_softmax_result(everything, plain._replace(scores=scores)).label
        for scores in (abs(plain.scores), -abs(plain.scores))
    ]
    assert "negative" not in shares[0]
    assert "88% of the scores are negative" in shares[1]  # an eighth is not there at all


def test_qb_norm_takes_the_training_captions_as_its_bank(split) -> None:
    model = build(text=TEXT)
    everything = found(model, split)
    captions = ["thing 1", "another", "another", "a thing", "things of 2"]
    result = query_bank_result(model, everything, captions, TOKENIZER)
    assert list(result.metrics) == ["text_to_video"]
    assert "uses test queries one at a time" in result.label
    assert "5 training captions and all test videos" in result.label
    with torch.no_grad():
        texts = [model.encode_text(TOKENIZER([c])) for c in (*captions, *everything.captions)]
    vectors = F.normalize(torch.cat(texts), dim=-1)
    cosines = vectors @ F.normalize(everything.video.vector, dim=-1).T
    wanted = qb_norm(cosines[5:].numpy(), query_bank([cosines[:5].numpy()]))
    seen = result.found.scores[:, everything.columns]
    np.testing.assert_allclose(seen, wanted, atol=1e-4)
    assert np.isnan(result.found.scores[:, 3]).all()


def test_qb_norm_needs_cosines_and_captions(split) -> None:
    model = build(text=TEXT)
    with pytest.raises(VideoclipError, match="no captions in a split named train"):
        query_bank_result(model, found(model, split), [], TOKENIZER)
    for scorer in ("tight", "dot"):
        other = build(scorer=scorer, text=TEXT)
        with pytest.raises(VideoclipError, match="QB-Norm is for cosines"):
            query_bank_result(other, found(other, split), ["a"], TOKENIZER)


def test_the_loose_score_is_the_mean_of_normalized_frames(split) -> None:
    model = build(head="lstm", scorer="tight", text=TEXT)
    everything = found(model, split)
    text, video = everything.text, everything.video
    scores = loose_scores(text, video)
    for column in range(len(video.vector)):
        frames = video.tokens[column][video.mask[column]]
        mean = torch.stack([frame / frame.norm() for frame in frames]).mean(0)
        wanted = F.cosine_similarity(text.vector, mean[None]).numpy()
        np.testing.assert_allclose(scores[:, column], wanted, atol=1e-6)


def test_pairs_are_scored_where_they_are_wanted_and_nowhere_else(split, monkeypatch) -> None:
    model = build(scorer="tight", text=TEXT)
    everything = found(model, split)
    text, video = everything.text, everything.video
    whole = evaluating.all_scores(model, text, video)
    pairs = np.random.default_rng(0).random(whole.shape) < 0.4
    pairs[:, 2] = False
    seen = []
    forward = model.scorer.forward

    def counted(text: Embedding, video: Embedding, scale: torch.Tensor) -> torch.Tensor:
        seen.append(len(text.vector) * len(video.vector))
        return forward(text, video, scale)

    monkeypatch.setattr(model.scorer, "forward", counted)
    scores = pair_scores(model, text, video, pairs)
    assert sum(seen) == pairs.sum()
    np.testing.assert_allclose(scores[pairs], whole[pairs], atol=1e-5)
    assert np.isnan(scores[~pairs]).all()


def test_re_ranking_all_candidates_is_the_plain_evaluation(split) -> None:
    model = build(scorer="tight", text=TEXT)
    everything = found(model, split)
    plain = scored(model, everything)
    result, loose = reranked_results(model, everything, 8)
    for direction, ranks in plain.ranks.items():
        assert result.found.ranks[direction].rank.tolist() == ranks.rank.tolist()
    assert "top-8 re-rank from the loose score" in result.label
    owners = everything.video_of_caption
    before = np.full(plain.scores.shape, np.nan)
    before[:, everything.columns] = loose_scores(everything.text, everything.video)[
        everything.text_of_caption
    ]
    wanted = text_to_video_ranks(before, owners).rank.tolist()
    assert loose.found.ranks["text_to_video"].rank.tolist() == wanted


def test_re_ranking_a_few_takes_their_exact_scores(split) -> None:
    model = build(scorer="tight", text=TEXT)
    everything = found(model, split)
    exact = scored(model, everything).scores[:, everything.columns]
    loose = loose_scores(everything.text, everything.video)[everything.text_of_caption]
    result, _ = reranked_results(model, everything, 2)
    best = np.argsort(-loose, axis=1)[:, :2]
    chosen = np.zeros(loose.shape, dtype=bool)
    np.put_along_axis(chosen, best, True, axis=1)
    wanted = np.full((len(loose), 8), np.nan)
    wanted[:, everything.columns] = rerank(loose, np.where(chosen, exact, np.nan), chosen)
    ranks = text_to_video_ranks(wanted, everything.video_of_caption)
    assert result.found.ranks["text_to_video"].rank.tolist() == ranks.rank.tolist()
    assert ranks.missing.sum() == 2
    # A video chooses among the texts that differ, whatever texts choose.
    place = everything.text_of_caption
    first = np.unique(place, return_index=True)[1]
    loose, exact = loose[first].T, exact[first].T
    chosen = loose >= np.sort(loose, axis=1)[:, [-2]]
    wanted[:, everything.columns] = rerank(loose, np.where(chosen, exact, np.nan), chosen).T[place]
    back = video_to_text_ranks(wanted, everything.video_of_caption)
    assert result.found.ranks["video_to_text"].rank.tolist() == back.rank.tolist()
    texts, videos = len(everything.text.vector), 7
    assert f"of {texts * videos:,} pairs" in result.label


def test_a_cosine_is_not_re_ranked(split) -> None:
    model = build(text=TEXT)
    with pytest.raises(VideoclipError, match="leave --rerank out"):
        reranked_results(model, found(model, split), 2)
