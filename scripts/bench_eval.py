"""Times an evaluation: ranks counted and sorted, tight fusion whole, pair by pair and re-ranked.

Run: .venv/bin/python scripts/bench_eval.py --json bench.json
"""

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import tyro
from benchmark import machine, markdown, versions
from torch import Tensor, nn
from tqdm import tqdm

from videoclip.checkpoints.weights import load
from videoclip.errors import VideoclipError
from videoclip.evaluation.evaluate import Embedded, Evaluation, embedded, scored
from videoclip.evaluation.opt_ins import require_pair_scorer, reranked_results
from videoclip.figures.metrics import Ranks, text_to_video_ranks, video_to_text_ranks
from videoclip.frames.store import FrameStore
from videoclip.layers import quick_gelu
from videoclip.manifest import Clip, read_manifest
from videoclip.model import Model, VideoCLIP
from videoclip.scorers import Tight
from videoclip.scorers.tight import TightScorer
from videoclip.towers import Text, ViT
from videoclip.types import Embedding

SAME = 1e-4
"""How far tight scores may be apart."""
Way = Callable[[], object]
Part = Literal["ranks", "tight-fusion", "re-ranking"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Times the parts of an evaluation beside the ways of the field, which take turns in one run.

    Ranks: random scores of MSVD's test split, both directions, counted as the metrics do, beside
    CLIP4Clip's way: scores padded to (videos, most captions, videos) in float64 and sorted twice.

    Tight fusion: all pairs as the scorer does it, beside the reference's way, which repeats text
    and frames for every pair, 256 pairs a call, with torch's own layers; the same with our layers,
    so that the gain of the algorithm is seen by itself; and one pair a call.

    Re-ranking: an evaluation that scores all pairs beside those that score the best K of every
    query. With --model and --data it is that model's, and the recalls are shown; else there are
    random weights, whose recalls say nothing.

    All ways must give the same ranks or scores before anything is timed. The table shows medians,
    and how many times as fast as the last way of its kind each is; other work on the machine slows
    all ways alike, so this ratio is what such a run shows best.
    """

    parts: tuple[Part, ...] = get_args(Part)
    """What is measured."""
    captions: int = 27_763
    """Captions of the ranks."""
    videos: int = 670
    """Videos of the ranks."""
    texts: int = 16
    """Texts of tight fusion."""
    clips: int = 64
    """Clips of tight fusion."""
    frames: int = 12
    """Frames of a clip."""
    width: int = 512
    """Channels; ViT-B has 512."""
    layers: int = 4
    """Blocks of tight fusion."""
    pairs: int = 64
    """Texts, and as many clips, that are re-ranked without a model."""
    top: tuple[int, ...] = (3, 6)
    """Candidates of the re-rankings."""
    model: str | None = None
    """A trained model with tight fusion, for the recalls of re-ranking."""
    data: Path | None = None
    """Its manifest; the test split is evaluated."""
    rounds: int = 3
    """Timed rounds, after one to warm up."""
    threads: int | None = None
    """CPU threads. Default: as many as torch takes."""
    clock: Literal["wall", "processor"] = "wall"
    """processor: seconds of work of all threads. On a machine that others use, take it with one
    thread: time that others have does not count."""
    json: Path | None = None
    """Where to write every time that was measured."""


class Row(NamedTuple):
    """One thing that was timed in several ways."""

    what: str
    seconds: dict[str, list[float]]
    """Per way, in each round; ours first, last what the others are compared with."""
    note: str
    """What else is to be said of it."""

    def ratio(self, way: str) -> float:
        """How many times as fast as the last way another one is."""
        return median(self.seconds[[*self.seconds][-1]]) / median(self.seconds[way])


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, measures, prints the table and writes what was measured."""
    options = tyro.cli(Options, args=arguments, description=Options.__doc__)
    if bool(options.model) != bool(options.data):
        raise SystemExit("--model and --data belong together: give both or none")
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    lines = [describe(options)]
    rows = []
    for row in measure(options):
        rows.append(row)
        if options.json:  # also what was measured before an interruption
            found = {"conditions": lines[0], "rows": [row._asdict() for row in rows]}
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join([*lines, "", table(rows), "", *(f"{row.what}: {row.note}" for row in rows)]))


@torch.no_grad()
def measure(options: Options) -> Iterator[Row]:
    """One part after the other."""
    ways = {"ranks": rank_ways, "tight-fusion": tight_ways, "re-ranking": rerank_ways}
    for part in options.parts:
        yield timed(part, *ways[part](options), options)


def timed(what: str, ways: Mapping[str, Way], note: str, options: Options) -> Row:
    """Calls all ways in turn, each round with another one first; the first round warms up."""
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in tqdm(range(1 + options.rounds), what, unit="round"):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            began = clock()
            ways[name]()
            if number:
                seconds[name].append(clock() - began)
    return Row(what, seconds, note)


def rank_ways(options: Options) -> tuple[dict[str, Way], str]:
    """Two ways to the ranks of random scores, whose true pairs stand out a little."""
    numbers = np.random.default_rng(0)
    captions, videos = options.captions, options.videos
    more = numbers.integers(0, videos, captions - videos)
    owners = np.sort(np.concatenate([np.arange(videos), more]))
    scores = numbers.standard_normal((captions, videos), dtype=np.float32)
    scores[np.arange(captions), owners] += 2

    def counted() -> list[Ranks]:
        return [rank(scores, owners) for rank in (text_to_video_ranks, video_to_text_ranks)]

    def sorted_() -> list[np.ndarray]:
        return padded_double_argsort(scores, owners)

    tied = 0
    for ours, other in zip(counted(), sorted_(), strict=True):
        if ((other < ours.optimistic) | (other > ours.pessimistic)).any():
            raise SystemExit("ranks: counted and sorted ones differ where nothing ties")
        tied += int((ours.optimistic < ours.pessimistic).sum())
    note = (
        f"{captions:,} captions of {videos:,} videos, both directions; the ranks are identical, "
        f"but for {tied} tied queries, which sorting places by chance"
    )
    return {"counted": counted, "padded double argsort": sorted_}, note


def padded_double_argsort(scores: np.ndarray, owners: np.ndarray) -> list[np.ndarray]:
    """Ranks of captions (in their order) and of videos, as CLIP4Clip's multi-sentence code has it.

    Every video's captions become a row of the length of the longest, in float64.
    """
    counts = np.bincount(owners)
    places = np.concatenate([np.arange(count) for count in counts])
    padded = torch.full((len(counts), counts.max(), len(counts)), -torch.inf, dtype=torch.float64)
    padded[owners, places] = torch.from_numpy(scores).double()
    order = padded.argsort(dim=-1, descending=True).argsort(dim=-1)
    by_caption = order[owners, places, owners] + 1
    best = padded.amax(dim=1).T  # (video, group of captions)
    by_video = best.argsort(dim=-1, descending=True).argsort(dim=-1).diagonal() + 1
    return [by_caption.numpy(), by_video.numpy()]


def tight_ways(options: Options) -> tuple[dict[str, Way], str]:
    """Four ways to the scores of all pairs."""
    scorer = Tight(layers=options.layers, variant="reference").build(options.width).eval()
    text, video = random_embeddings(options.texts, options.clips, options)
    scale = torch.zeros(())
    plain = PlainTight(scorer)
    ours = functools.partial(scorer, text, video, scale)
    ways: dict[str, Way] = {
        "all pairs": ours,
        "256 pairs a call, our layers": lambda: by_pairs(SharedLayers(scorer), text, video, 16),
        "one pair a call": lambda: by_pairs(plain, text, video, 1),
        "256 pairs a call, torch's layers": lambda: by_pairs(plain, text, video, 16),
    }
    wanted = ours().numpy()
    for name in [*ways][1:]:
        require_same(f"tight-fusion, {name}", [wanted], [ways[name]().numpy()], SAME)
    note = (
        f"{options.texts} texts with {options.clips} clips of {options.frames} frames, "
        f"{options.layers} layers of width {options.width}, float32; scores are at most {SAME:g} "
        "apart"
    )
    return ways, note


class PlainTight(nn.Module):
    """The scorer's weights in torch's own layers, for sequences of a text and its frames."""

    def __init__(self, scorer: TightScorer) -> None:
        super().__init__()
        self.scorer = scorer
        self.attention = nn.ModuleList()
        for block in scorer.transformer.resblocks:
            width = block.attn.out_proj.in_features
            found = nn.MultiheadAttention(width, block.attn.heads, batch_first=True)
            found.load_state_dict(block.attn.state_dict())
            self.attention.append(found)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Sequences (N, 1 + T, D) under mask (N, 1 + T) -> scores (N,)."""
        x = tokens + self.scorer.positions[: tokens.shape[1]]
        # Added to the scores of every head, as the reference has it.
        unseen = -1e6 * (~mask).to(x.dtype)[:, None].expand(-1, mask.shape[1], -1)
        for block, attention in zip(self.scorer.transformer.resblocks, self.attention, strict=True):
            y = block.ln_1(x)
            bias = unseen.repeat_interleave(attention.num_heads, dim=0)
            x = x + attention(y, y, y, attn_mask=bias, need_weights=False)[0]
            first, second = block.mlp["c_fc"], block.mlp["c_proj"]
            hidden = nn.functional.linear(block.ln_2(x), first.weight, first.bias)
            hidden = hidden * torch.sigmoid(1.702 * hidden)
            x = x + nn.functional.linear(hidden, second.weight, second.bias)
        pooled = self.scorer.dense(self.scorer.ln_pool(x)[:, 0])
        return self.scorer.similarity(pooled * torch.sigmoid(1.702 * pooled))[:, 0]


class SharedLayers(nn.Module):
    """The same in the layers of this project."""

    def __init__(self, scorer: TightScorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Sequences (N, 1 + T, D) under mask (N, 1 + T) -> scores (N,)."""
        tokens = tokens + self.scorer.positions[: tokens.shape[1]]
        tokens = self.scorer.transformer(tokens, mask)
        pooled = self.scorer.dense(self.scorer.ln_pool(tokens[:, 0]))
        return self.scorer.similarity(quick_gelu(pooled))[:, 0]


def by_pairs(score: nn.Module, text: Embedding, video: Embedding, side: int) -> Tensor:
    """Scores (Q, V): `side` texts and `side` clips a call, repeated until every pair stands."""
    rows = []
    for texts in text.vector.split(side):
        row = []
        for frames, mask in zip(video.tokens.split(side), video.mask.split(side), strict=True):
            pairs = (len(texts), len(frames))
            first = texts[:, None, None].expand(*pairs, 1, -1)
            both = torch.cat([first, frames.expand(*pairs, -1, -1)], dim=2).flatten(0, 1)
            seen = torch.cat([mask.new_ones(len(mask), 1), mask], dim=1).repeat(len(texts), 1)
            row.append(score(both, seen).unflatten(0, pairs))
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows)


def rerank_ways(options: Options) -> tuple[dict[str, Way], str]:
    """Evaluations of one split: all pairs, and the best few of every query."""
    model, found = trained(options) if options.model else untrained(options)
    exact = functools.partial(scored, model, found)
    ways: dict[str, Way] = {
        f"top {top}": functools.partial(reranked_results, model, found, top) for top in options.top
    }
    everything = max(len(found.text.vector), len(found.video.vector))
    require_same(
        "re-ranking of all candidates",
        _ranks(exact()),
        _ranks(reranked_results(model, found, everything)[0].found),
        0,
    )
    note = f"{len(found.text.vector):,} texts and {len(found.video.vector):,} clips"
    if options.model:
        lines = {"all pairs": exact()}
        for top in options.top:
            reranked, loose = reranked_results(model, found, top)
            lines |= {f"top {top}": reranked.found, "loose score alone": loose.found}
        recalls = [
            f"{name} {metrics['text_to_video']['R@1']:.1f} / {metrics['video_to_text']['R@1']:.1f}"
            for name, metrics in ((name, line.metrics()) for name, line in lines.items())
        ]
        note += f"; R@1 text to video / video to text: {', '.join(recalls)}"
    return {**ways, "all pairs": exact}, note


def _ranks(evaluation: Evaluation) -> list[np.ndarray]:
    return [ranks.rank for ranks in evaluation.ranks.values()]


def trained(options: Options) -> tuple[VideoCLIP, Embedded]:
    """A user's model and its test split."""
    model = load(str(options.model))
    require_pair_scorer(model)
    clips = [clip for clip in read_manifest(options.data) if clip.split == "test"]
    size, fit = model.config.visual.image_size, model.config.pixels.fit
    frames = model.config.frames or options.frames
    store = FrameStore(Path(options.model) / "frames", size=size, frames=frames, fit=fit)
    store.fill(clips, 1, "test")
    return model, embedded(model, clips, store, model.tokenizer(32))


def untrained(options: Options) -> tuple[VideoCLIP, Embedded]:
    """Random weights on random embeddings, one text a clip."""
    sizes = {"width": 64, "layers": 1}
    model = Model(
        visual=ViT(**sizes), text=Text(**sizes), embedding=options.width,
        scorer=Tight(layers=options.layers),
    ).build().eval()  # fmt: skip
    count = options.pairs
    text, video = random_embeddings(count, count, options)
    names = [f"{number}" for number in range(count)]
    clips = [Clip(name, Path(name), (name,)) for name in names]
    own = np.arange(count)
    return model, Embedded(clips, names, own, text, own, video, [*range(count)], "", 0.0)


def random_embeddings(texts: int, clips: int, options: Options) -> tuple[Embedding, Embedding]:
    """Texts and clips of ragged length."""
    vectors = torch.randn(texts, options.width)
    frames = torch.randn(clips, options.frames, options.width)
    mask = torch.arange(options.frames) < torch.randint(1, options.frames + 1, (clips, 1))
    mask[::2] = True  # a batch has a clip of full length
    one = torch.ones(texts, 1, dtype=torch.bool)
    return Embedding(vectors, vectors[:, None], one), Embedding(frames.mean(1), frames, mask)


def require_same(
    what: str, ours: Sequence[np.ndarray], others: Sequence[np.ndarray], apart: float
) -> None:
    """Raises SystemExit where two ways do not give the same."""
    for one, other in zip(ours, others, strict=True):
        difference = abs(one - other).max()
        if not difference <= apart:
            raise SystemExit(f"{what}: results are {difference:.1e} apart, at most {apart:g} is so")


def describe(options: Options) -> str:
    """The conditions of a measurement, in one line."""
    rounds = f"{options.rounds} rounds, {options.clock} clock"
    return f"{machine('cpu')}; {rounds}; {versions('torch', 'numpy')}."


def table(rows: Sequence[Row]) -> str:
    """Markdown: the median seconds of every way, and how much faster than the last one it is."""
    lines = [["", "way", "seconds", "times as fast"], ["---", "---", "---:", "---:"]]
    for row in rows:
        for name, seconds in row.seconds.items():
            lines.append([row.what, name, f"{median(seconds):.3g}", f"{row.ratio(name):.3g}"])
    return markdown(lines)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except VideoclipError as error:
        sys.exit(f"bench_eval: {error}")
