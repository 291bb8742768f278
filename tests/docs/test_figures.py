"""The figures of the documentation: what they are made of, and that they are drawn."""

import cv2
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from torch import nn

from docs.figures import bra_method
from docs.figures.bra_method import draw, look, main
from models.bra.attention import BiLevelRoutingAttention
from utils.routes.routing_plots import CHOSEN, ROUTED


def layer(**changes):
    torch.manual_seed(0)
    return BiLevelRoutingAttention(**{"dim": 3, "n_win": 3, "num_heads": 1, "topk": 2, **changes}).eval()


def some_image(height=12, width=12):
    return np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8)


def test_a_model_without_routing_attention():
    with pytest.raises(ValueError, match="no routing attention layer stage20; there is none"):
        look(nn.Conv2d(3, 3, 1), some_image(), "stage20")


def test_an_unknown_layer_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match="no routing attention layer stage20; there is attention"):
        look(layer(), some_image(), "stage20")


def test_affinities_are_those_of_the_regions_means():
    module, image = layer(), some_image()
    levels = look(module, image, "attention")
    with torch.no_grad():
        q, k, _ = module.qkv.qkv(torch.from_numpy(image).permute(1, 2, 0) / 255).split(3, dim=-1)
    means = [
        np.array([t[r : r + 4, c : c + 4].mean((0, 1)).numpy() for r in (0, 4, 8) for c in (0, 4, 8)]) for t in (q, k)
    ]
    assert np.allclose(levels.affinity, means[0] @ means[1].T * 3**-0.5, atol=1e-6)
    assert levels.routes.index.tolist() == np.argsort(-levels.affinity, axis=1, kind="stable")[:, :2].tolist()


def test_attention_is_of_the_routed_regions_tokens():
    levels = look(layer(), some_image(), "attention")
    assert levels.tokens == (4, 4) and levels.attention.shape == (9, 16, 2 * 16)
    assert np.allclose(levels.attention.sum(2), 1, atol=1e-6)


@pytest.mark.parametrize("size", [(12, 12), (10, 7), (2, 12)], ids=str)  # whole regions, padded ones, padding alone
def test_the_figure_shows_query_and_routes(tmp_path, size):
    levels = look(layer(), some_image(*size), "attention")
    image = cv2.imread(str(draw(tmp_path / "new/a.png", levels, 0)))[..., ::-1] / 255
    assert image.shape[0] > 300 and image.shape[1] > 2 * image.shape[0]
    for colour in (CHOSEN, ROUTED):
        near = np.abs(image - np.array(to_rgb(colour))).max(2) < 0.1
        assert near.mean() > 0.001, colour


def test_the_command_line_draws_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(bra_method, "attempt_load", lambda weights: layer(n_win=4))
    cv2.imwrite(str(tmp_path / "a.png"), some_image(64, 64).transpose(1, 2, 0))
    words = [
        "--weights",
        "any.pt",
        "--image",
        str(tmp_path / "a.png"),
        "--imgsz",
        "64",
        "--file",
        str(tmp_path / "b.png"),
    ]
    main([*words, "--layer", "attention", "--query", "40", "8"])
    assert (tmp_path / "b.png").stat().st_size > 1000


def test_a_users_mistake_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bra_method, "attempt_load", lambda weights: layer())
    with pytest.raises(SystemExit):
        main(["--weights", "any.pt", "--image", str(tmp_path / "none.png")])
    assert "none.png" in capsys.readouterr().err.splitlines()[-1]
