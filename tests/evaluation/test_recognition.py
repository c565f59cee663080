"""Recognition against ActionCLIP's rule written out, its golden tensors, and in two processes."""

from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from action_clips import ACTIONS, labelled
from pictures_on_disk import small_clip
from safetensors.torch import load_file

from videoclip.distributed import rank
from videoclip.errors import VideoclipError
from videoclip.evaluation.recognition import (
    Recognition,
    action_probabilities,
    class_logits,
    class_texts,
    evaluate_actions,
    evaluate_parts,
)
from videoclip.frames.store import FrameStore
from videoclip.frames.views import views_named
from videoclip.image_text.zero_shot import class_embeddings, class_probabilities
from videoclip.manifest import Clip
from videoclip.prompts import templates_of
from videoclip.scorers import Tight
from videoclip.tasks.action_protocols import Part
from videoclip.types import Embedding

TEMPLATES = templates_of(["actionclip"])


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Clip]:
    return labelled(tmp_path_factory.mktemp("clips"), 7)


@pytest.fixture
def store(tmp_path: Path, clips: list[Clip]) -> FrameStore:
    return filled(tmp_path / "frames", clips)


def filled(folder: Path, clips: list[Clip], frames: int = 4) -> FrameStore:
    store = FrameStore(folder, size=16, frames=frames)
    store.fill(clips, 1, "clips")
    return store


def evaluated(clips: list[Clip], store: FrameStore, model=None, **options) -> Recognition:
    return evaluate_actions(model or small_clip(), clips, store, ACTIONS, TEMPLATES, **options)


def single(vectors: torch.Tensor) -> Embedding:
    return Embedding(vectors, vectors[:, None], torch.ones(len(vectors), 1, dtype=torch.bool))


@pytest.mark.parametrize("file", ["meanP", "Transf", "Conv_1D", "LSTM", "Transf_cls", "Transf-tsm"])
def test_probabilities_are_those_of_the_reference(shared: Path, file: str) -> None:
    golden = load_file(shared / f"golden/actionclip/{file}.expected.safetensors")
    model = small_clip()
    model.clip.logit_scale.data.fill_(1.0)  # which the reference's test does not read
    texts, videos = single(golden["text_features"]), single(golden["video_features"])
    logits = class_logits(model, texts, videos, 3)
    found = action_probabilities(logits)
    assert (found - golden["class_probabilities"]).abs().max() < 1e-5


def test_scores_are_actionclips_rule_written_out(clips, store) -> None:
    model = small_clip()
    found = evaluated(clips, store, model)
    for clip, row in zip(clips, found.scores, strict=True):
        video = torch.nn.functional.normalize(model.encode_video(store.read(clip, 1)[None]), dim=-1)
        each = []
        for template in TEMPLATES:
            texts = model.encode_text(model.tokenize([template.replace("{}", a) for a in ACTIONS]))
            texts = torch.nn.functional.normalize(texts, dim=-1)
            each.append((100.0 * video @ texts.T).softmax(-1))
        assert np.abs(torch.cat(each).mean(0).detach().numpy() - row).max() < 1e-5
    assert found.counts == "expected 7 = scored 7 + 0 bad"
    right = [ACTIONS[row.argmax()] == c.label for c, row in zip(clips, found.scores, strict=True)]
    assert found.result.metrics()["top-1"] == pytest.approx(100 * np.mean(right))
    assert found.clips == tuple(clips)


def test_probabilities_are_averaged_over_views(clips, tmp_path) -> None:
    model, views = small_clip(), views_named("2x3", size=16)
    store = FrameStore(tmp_path / "frames", size=16, frames=4)
    store.fill_views(clips, views, "clips")
    found = evaluated(clips, store, model, views=views, batch_size=7)  # one clip at once
    for clip, row in zip(clips, found.scores, strict=True):
        shown = store.read_views(clip, views)
        assert len(shown) == 6
        texts = class_texts(model, ACTIONS, TEMPLATES)
        video = single(torch.cat([model.encode_video(view[None]) for view in shown]))
        each = action_probabilities(class_logits(model, texts, video, len(ACTIONS)))
        assert np.abs(each.mean(0).detach().numpy() - row).max() < 1e-5
    assert (
        np.abs(found.scores - evaluated(clips, store, views=views, batch_size=64).scores).max()
        < 1e-5
    )


def test_the_first_templates_classes_come_first() -> None:
    model = small_clip()
    found = class_texts(model, ACTIONS, TEMPLATES).vector
    sentences = [template.replace("{}", action) for template in TEMPLATES for action in ACTIONS]
    assert sentences[:4] == [
        "a photo of action fade", "a photo of action flicker", "a photo of action move left",
        "a picture of action fade",
    ]  # fmt: skip
    assert len(found) == 16 * 3
    assert (found - model.encode_text(model.tokenize(sentences))).abs().max() < 1e-5


def test_sentences_say_the_names_and_tables_the_classes(clips, store) -> None:
    spelled = evaluated(clips, store, names=["fading", "flickering", "moving"])
    assert spelled.result.classes == ACTIONS
    assert np.abs(spelled.scores - evaluated(clips, store).scores).max() > 1e-3


def test_averaged_embeddings_are_clips_rule(clips, store) -> None:
    model = small_clip()
    found = evaluated(clips, store, model, probabilities="embeddings", temperature="model")
    classifier = class_embeddings(model, ACTIONS, TEMPLATES)
    for clip, row in zip(clips, found.scores, strict=True):
        features = model.encode_video(store.read(clip, 1)[None])
        wanted = class_probabilities(model, features, classifier)[0]
        assert np.abs(wanted.detach().numpy() - row).max() < 1e-5


def test_the_temperature_is_100_or_the_models(clips, store) -> None:
    model = small_clip()
    model.clip.logit_scale.data.fill_(float(np.log(100)))
    same = evaluated(clips, store, model, temperature="model").scores
    assert np.abs(same - evaluated(clips, store, model).scores).max() < 1e-5
    model.clip.logit_scale.data.fill_(1.0)
    assert np.abs(same - evaluated(clips, store, model).scores).max() < 1e-5
    assert np.abs(same - evaluated(clips, store, model, temperature="model").scores).max() > 1e-3


def test_tight_fusion_scores_sentences_and_not_their_average(clips, store) -> None:
    model = small_clip(scorer=Tight(layers=1))
    found = evaluated(clips, store, model)
    assert np.allclose(found.scores.sum(1), 1)
    with pytest.raises(VideoclipError, match=r"compares with Tight.*average the probabilities"):
        evaluated(clips, store, model, probabilities="embeddings")


def test_an_unreadable_clip_counts_as_wrong(clips, tmp_path) -> None:
    gone = Clip("gone", tmp_path / "gone.mp4", label="fade")
    every = [clips[0], gone, *clips[1:]]
    store = filled(tmp_path / "frames", every)
    found = evaluated(every, store)
    whole = evaluated(clips, store)
    assert found.counts == "expected 8 = scored 7 + 1 bad"
    assert np.isnan(found.scores[1]).all()
    assert (np.delete(found.scores, 1, axis=0) == whole.scores).all()
    assert found.result.hits(1).sum() == whole.result.hits(1).sum()
    with pytest.raises(VideoclipError, match=r"none of the 1 clips can be read; the first: .*gone"):
        evaluated([gone], store)


def test_a_label_that_is_no_class_is_named(clips, store) -> None:
    other = [*clips[1:], clips[0]._replace(label="juggle")]
    with pytest.raises(VideoclipError, match=r"1 labels of the clips are none of its 3 .*juggle"):
        evaluated(other, store)


def test_every_part_has_a_softmax_of_its_own(clips, store) -> None:
    few = ACTIONS[:2]
    parts = [
        Part("all", tuple(clips), ACTIONS),
        Part("few", tuple(clip for clip in clips if clip.label in few), few),
    ]
    whole, half = evaluate_parts(
        small_clip(), parts, store, TEMPLATES, names={name: name for name in ACTIONS}
    )
    alone = evaluate_actions(small_clip(), half.clips, store, few, TEMPLATES)
    assert np.abs(half.scores - alone.scores).max() < 1e-6
    assert (whole.scores == evaluated(clips, store).scores).all()
    assert half.counts == "expected 5 = scored 5 + 0 bad"


def test_frame_order_does_not_matter_to_a_mean_and_training_goes_on(clips, store) -> None:
    model = small_clip().train()
    found = [evaluated(clips, store, model, order=o).scores for o in ("normal", "shuffled")]
    assert np.abs(found[0] - found[1]).max() < 1e-4
    assert model.training


def test_weights_that_are_not_numbers_are_refused(clips, store) -> None:
    model = small_clip()
    model.clip.visual.proj.data[0] = torch.nan
    with pytest.raises(VideoclipError, match="views of clips are not numbers"):
        evaluated(clips, store, model)


def _evaluations(argument: tuple[list[list[Clip]], Path]) -> list[tuple[np.ndarray, str]]:
    choices, folder = argument
    found = []
    for clips in choices:
        store = FrameStore(folder, size=16, frames=4)
        if rank() == 0:  # what one process knows to be unreadable, all must
            store.unreadable["gone"] = "it is gone"
        one = evaluated(clips, store, batch_size=2)
        found.append((one.scores, one.counts))
    return found


def test_two_processes_find_what_one_finds(clips, tmp_path) -> None:
    gone = Clip("gone", tmp_path / "gone.mp4", label="fade")
    choices = [[*clips[:number], gone] for number in range(1, len(clips) + 1)]
    store = filled(tmp_path / "frames", choices[-1])
    alone = [evaluated(chosen, store, batch_size=2) for chosen in choices]
    for shared in processes.run(_evaluations, (choices, tmp_path / "frames"), tmp_path / "out"):
        for (scores, counts), one in zip(shared, alone, strict=True):
            assert np.array_equal(scores, one.scores, equal_nan=True)
            number = len(scores) - 1
            assert counts == one.counts == f"expected {number + 1} = scored {number} + 1 bad"
