import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import CLIPConfig, CLIPModel

from pipeline.bench.presets import clip_pictures
from pipeline.clips import SceneGenerator
from pipeline.commands.cli import main
from pipeline.errors import ModelError
from pipeline.judge.perception import I3D, ClipModel, clip_consistency, clip_score, frechet_distance

from ..models import word_tokenizer

WIDTH = 32


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A random CLIP model of one layer, as transformers saves it."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    small = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        **small,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 16})
    folder = tmp_path_factory.mktemp("clip") / "model"
    for part in (CLIPModel(config), tokenizer, clip_pictures(32)):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(clip_folder):
    return ClipModel.load(clip_folder)


@pytest.fixture(scope="module")
def batch():
    return SceneGenerator(32, 4, seed=0, judged=True).batch(3)


# ------------------------------------------------------------------ CLIP


def test_the_clip_score_is_the_cosine_of_the_models_own_embeddings_where_positive(clip, clip_folder, batch):
    """Against what CLIPModel itself gives for each frame: its logits are cosines times a scale."""
    model = CLIPModel.from_pretrained(clip_folder).eval()
    cosines = []
    for video, caption in zip(batch.clips, batch.captions, strict=True):
        frames = [(frame * 255).round().to(torch.uint8).numpy() for frame in video.transpose(0, 1)]
        pixels = clip.processor(frames, input_data_format="channels_first", return_tensors="pt").pixel_values
        tokens = clip.tokenizer([caption], return_tensors="pt")
        with torch.no_grad():
            cosines.append(model(**tokens, pixel_values=pixels).logits_per_image[:, 0] / model.logit_scale.exp())
    cosines = torch.stack(cosines)
    opposite = ClipModel(clip.model, clip.tokenizer, clip.processor)
    opposite.of_texts = lambda texts: -clip.of_texts(texts)
    for judge, sign in ((clip, 1), (opposite, -1)):
        expected = 100 * (sign * cosines).clamp(min=0).mean(dim=1)
        assert clip_score(batch.clips, batch.captions, judge).tolist() == pytest.approx(expected.tolist(), abs=1e-3)
    assert cosines.abs().min() > 1e-3


def test_a_long_caption_is_cut_off(clip, batch):
    assert clip_score(batch.clips[:1], ["a red circle moves up " * 50], clip).shape == (1,)


def test_captions_and_clips_go_together(clip, batch):
    with pytest.raises(ValueError, match="captions: 1 for 3 clips"):
        clip_score(batch.clips, ["one"], clip)


def test_a_clip_that_stands_still_is_consistent_and_one_that_jumps_less_so(clip, batch):
    still = batch.clips[:, :, :1].expand(-1, -1, 4, -1, -1)
    cut = torch.cat([still[:, :, :2], 1 - still[:, :, :2]], dim=2)
    assert clip_consistency(still, clip).tolist() == pytest.approx([100] * 3, abs=1e-3)
    assert (clip_consistency(cut, clip) < clip_consistency(still, clip) - 1e-3).all()
    assert clip_consistency(still[:, :, :1], clip).tolist() == [100] * 3


def test_a_folder_without_a_clip_model_is_refused(tmp_path, teacher_folder):
    with pytest.raises(ModelError, match=r"no CLIP model there \(no config\.json"):
        ClipModel.load(tmp_path)
    with pytest.raises(ModelError, match=r"no CLIP model there"):
        ClipModel.load(teacher_folder)
    with pytest.raises(ModelError, match="model_type 'clip_text_model', not 'clip'"):
        ClipModel.load(teacher_folder / "text_encoder")


def test_a_part_that_is_missing_is_named(clip_folder, tmp_path):
    (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text())
    with pytest.raises(ModelError, match="the CLIPModel cannot be loaded") as caught:
        ClipModel.load(tmp_path)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ Fréchet distance


def features_with(mean, covariance, count=12, seed=0):
    """Features whose sample mean and covariance are exactly these."""
    x = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(dim=0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (count - 1))).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def test_one_dimension_is_the_closed_form():
    # (m_a - m_b)^2 + (s_a - s_b)^2
    one, other = (
        features_with(torch.tensor([m], dtype=torch.float64), torch.tensor([[s**2]], dtype=torch.float64), seed=seed)
        for seed, (m, s) in enumerate([(1.0, 2.0), (4.0, 0.5)])
    )
    assert frechet_distance(one, other) == pytest.approx(9 + 2.25)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), width=st.integers(1, 5))
def test_gaussians_have_the_distance_of_the_square_root_of_their_covariances(seed, width):
    random = torch.Generator().manual_seed(seed)
    means = torch.randn(2, width, generator=random, dtype=torch.float64)
    roots = torch.randn(2, width, width, generator=random, dtype=torch.float64)
    one_c, other_c = roots @ roots.mT + 0.1 * torch.eye(width, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(one_c)
    root = vectors * values.sqrt() @ vectors.T
    joint = torch.linalg.eigvalsh(root @ other_c @ root).clamp(min=0).sqrt().sum()
    expected = (means[0] - means[1]).square().sum() + one_c.trace() + other_c.trace() - 2 * joint
    one, other = features_with(means[0], one_c, 12, seed), features_with(means[1], other_c, 15, seed + 1)
    assert frechet_distance(one, other) == pytest.approx(float(expected), rel=1e-6, abs=1e-6)
    assert frechet_distance(other, one) == pytest.approx(frechet_distance(one, other), rel=1e-9, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(2, 8), width=st.integers(1, 40))
def test_few_clips_of_many_features_are_no_distance_from_themselves(seed, count, width):
    features = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features, features + 2) == pytest.approx(4 * width, rel=1e-5)


@pytest.mark.parametrize(
    ("one", "other", "text"),
    [((1, 3), (4, 3), "features_a: 1 clips"), ((4, 3), (4, 2), "features_b: width 2 is not 3")],
)
def test_features_that_do_not_fit_are_named(one, other, text):
    with pytest.raises(ValueError, match=text):
        frechet_distance(torch.zeros(one), torch.zeros(other))


# ------------------------------------------------------------------ I3D


class Published(nn.Module):
    """Has the arguments of the I3D file that most papers use; gives the range and the size it was shown."""

    def forward(
        self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> torch.Tensor:
        if x.shape[2] < 3:
            raise RuntimeError("too short")
        if rescale or resize or not return_features:
            return x.mean(dim=(1, 2, 3, 4))[:, None]
        size = torch.full_like(x[:, 0, 0, 0, 0], float(x.shape[-1]))
        return torch.stack([x.amin(dim=(1, 2, 3, 4)), x.amax(dim=(1, 2, 3, 4)), size], dim=1)


class Plain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(3, 4))


@pytest.fixture
def saved(tmp_path):
    def save(module):
        path = tmp_path / "i3d.pt"
        torch.jit.script(module).save(str(path))
        return path

    return save


def test_i3d_is_shown_clips_as_it_was_trained_with(saved):
    path = saved(Published())
    i3d = I3D(path)
    assert i3d.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    videos = torch.zeros(2, 3, 4, 32, 32)
    videos[1] = 1
    assert i3d(videos).tolist() == [[-1, -1, 224], [1, 1, 224]]


def test_a_network_with_no_options_is_called_plainly(saved):
    assert I3D(saved(Plain()))(torch.rand(2, 3, 4, 32, 32)).shape == (2, 12)


def test_clips_that_the_network_cannot_take_are_one_line(saved):
    i3d = I3D(saved(Published()))
    with pytest.raises(ModelError, match=r"i3d\.pt: fails on clips of 2 frames .*too short") as caught:
        i3d(torch.zeros(1, 3, 2, 32, 32))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_torchscript_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"none\.pt: not a TorchScript file"):
        I3D(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(ModelError, match=r"text\.pt: not a TorchScript file") as caught:
        I3D(tmp_path / "text.pt")
    assert "\n" not in str(caught.value)


def test_the_command_gives_the_figures_and_says_what_it_loaded(teacher_folder, clip_folder, saved, capsys):
    weights = saved(Plain())
    given = ["evaluate", "--model", str(teacher_folder), "--clips", "3", "--batch", "2", "--json"]
    assert main([*given, "--clip", str(clip_folder), "--i3d", str(weights)]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert 0 <= result["clip_score"] <= 100
    assert 0 <= result["clip_consistency"] <= 100
    assert result["fvd"] > 0
    assert f"I3D sha256 {hashlib.sha256(weights.read_bytes()).hexdigest()}" in said.err
