"""Models from files: ours, pickled ones as YOLOv5 6.1 writes them, and several at once."""

import copy

import pytest
import torch
from torch import nn

from models.experimental import Ensemble, attempt_load, load_model
from models.yolo import Model
from utils.checkpoints.checkpoint import describe_model, save_checkpoint

TINY = {
    "nc": 2, "depth_multiple": 0.33, "width_multiple": 0.25, "anchors": [[10, 13, 16, 30]],
    "backbone": [[-1, 1, "Conv", [32, 3, 2]], [-1, 3, "C3", [32]]],
    "head": [[-1, 1, "BiLevelRoutingAttention", []], [[-1], 1, "Detect", ["nc", "anchors"]]],
}  # fmt: skip
X = torch.rand(1, 3, 32, 32)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Model(TINY)
    model(torch.rand(4, 3, 32, 32))
    model.names, model.hyp = ["cat", "dog"], {"box": 0.05}
    return model.eval()


@pytest.fixture
def saved(model, tmp_path):
    save_checkpoint(tmp_path / "best.pt", {"epoch": 3, "model": describe_model(model), "ema": None})
    return tmp_path / "best.pt"


def predict(model):
    with torch.no_grad():
        return model(X)[0]


def test_no_weights_is_an_error():
    with pytest.raises(ValueError, match="no weights"):
        attempt_load([])


@pytest.mark.parametrize("fuse", [True, False])
def test_our_checkpoint_gives_the_same_model(model, saved, fuse):
    loaded = attempt_load(saved, fuse=fuse)
    torch.testing.assert_close(predict(loaded), predict(model), atol=1e-4, rtol=1e-4)
    assert (loaded.names, loaded.hyp, loaded.nc, loaded.training) == (["cat", "dog"], {"box": 0.05}, 2, False)
    assert (loaded.model[0].bn is None) is fuse


@pytest.mark.parametrize("half", [True, False])
def test_a_pickled_module_gives_the_same_numbers(model, tmp_path, half):
    """As YOLOv5 6.1 writes it: the whole module, which is rebuilt and not used."""
    pickled = copy.deepcopy(model).half() if half else model
    torch.save({"epoch": -1, "model": pickled, "ema": None, "best_fitness": None}, tmp_path / "old.pt")
    loaded = attempt_load(tmp_path / "old.pt", fuse=False)
    assert next(loaded.parameters()).dtype == torch.float32
    assert torch.equal(predict(loaded), predict(copy.deepcopy(pickled).float()))
    assert loaded.names == ["cat", "dog"] and loaded.stride.tolist() == model.stride.tolist()


def test_a_pickled_activation_is_kept_although_no_description_has_it(model, tmp_path):
    for module in model.modules():
        if isinstance(getattr(module, "act", None), nn.SiLU):
            module.act = nn.Hardswish()
    torch.save({"model": model}, tmp_path / "old.pt")
    torch.testing.assert_close(predict(attempt_load(tmp_path / "old.pt", fuse=False)), predict(model))


def test_another_class_than_the_description_says_is_refused(model, tmp_path):
    model.model[2] = nn.Identity()
    torch.save({"model": model}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd\.pt: its model\.2 is a Identity"):
        attempt_load(tmp_path / "odd.pt")


def test_a_fused_model_can_be_saved_and_loaded(model, tmp_path):
    fused = copy.deepcopy(model).fuse()
    save_checkpoint(tmp_path / "fused.pt", {"model": describe_model(fused)})
    torch.testing.assert_close(predict(attempt_load(tmp_path / "fused.pt")), predict(fused))


def test_the_average_comes_first(model):
    other = Model(TINY, verbose=False).eval()
    loaded = load_model({"model": describe_model(model), "ema": describe_model(other)}).eval()
    assert torch.equal(predict(loaded), predict(other))


@pytest.mark.parametrize("content", [{}, {"model": None}, {"model": {"state_dict": {}}}, {"model": {"yaml": TINY}}])
def test_content_without_a_model_is_refused(content):
    with pytest.raises(ValueError, match="holds no model description"):
        load_model(content)


@pytest.mark.parametrize("key, change, message", [
    ("state_dict", lambda state: state.pop("model.0.conv.weight"), r"1 entries differ, such as model\.0\.conv\.weight"),
    ("state_dict", lambda state: state.update({"model.0.conv.weight": torch.zeros(1)}), "size mismatch for model.0"),
    ("state_dict", lambda state: state.update({(1, 2): torch.zeros(1)}), "keys that are no text"),
    ("names", lambda names: names.pop(), "1 names for 2 classes"),
])  # fmt: skip
def test_parts_that_do_not_fit_are_refused(model, key, change, message):
    stored = describe_model(model)
    change(stored[key])
    with pytest.raises(ValueError, match=message):
        load_model({"model": stored})


def test_names_are_text_on_one_line(model):
    """They become folders of crops and columns of tables."""
    loaded = load_model({"model": {**describe_model(model), "names": {0: "a\nb\0", 1: 7}}})
    assert loaded.names == ["a\\nb\\x00", "7"]


@pytest.mark.parametrize("inplace", [True, False])
def test_inplace(saved, inplace):
    loaded = attempt_load(saved, inplace=inplace)
    assert {module.inplace for module in loaded.modules() if isinstance(module, nn.SiLU)} == {inplace}
    assert loaded.inplace is inplace


def test_an_ensemble_puts_predictions_side_by_side(model, saved):
    both = attempt_load([saved, saved], fuse=False)
    assert isinstance(both, Ensemble)
    predictions, none = both(X)
    assert none is None and torch.equal(predictions, torch.cat([predict(model)] * 2, 1))
    assert (both.names, both.nc, both.yaml["nc"]) == (["cat", "dog"], 2, 2)
    both[0].stride = torch.tensor([32.0])
    assert Ensemble(both).stride.tolist() == [32]  # of the coarsest


def test_an_ensemble_needs_the_same_classes(model, saved, tmp_path):
    model.names = ["cat", "bird"]
    save_checkpoint(tmp_path / "other.pt", {"model": describe_model(model)})
    with pytest.raises(ValueError, match="different classes"):
        attempt_load([saved, tmp_path / "other.pt"])
