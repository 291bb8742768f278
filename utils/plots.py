"""v6.1's import path `utils.plots`, for code outside of this tree; nothing in the tree imports it."""

from utils.drawing.annotator import Annotator, Colors, colors
from utils.drawing.batches import feature_visualization, output_to_target, plot_images, plot_labels, plot_results
from utils.drawing.writers import save_one_box
from utils.evaluation.plots import plot_val_study
from utils.search.results import plot_evolve
from utils.v61 import __getattr__ as __getattr__

__all__ = [
    "Annotator", "Colors", "colors", "feature_visualization", "output_to_target", "plot_evolve", "plot_images",
    "plot_labels", "plot_results", "plot_val_study", "save_one_box",
]  # fmt: skip
