"""The figures of a report. Object-oriented matplotlib with the Agg canvas: no display, no state between figures."""

from .audit import plot_audit
from .curves import plot_ensembles, plot_loss_curves
from .maps import plot_iou_matrix, plot_latent_pca
from .networks import plot_accuracy_histograms, plot_accuracy_similarity
from .style import COLORS, STYLES, Plot
from .trajectory import plot_trajectory, plot_trajectory_plane

__all__ = [
    "COLORS",
    "STYLES",
    "Plot",
    "plot_accuracy_histograms",
    "plot_accuracy_similarity",
    "plot_audit",
    "plot_ensembles",
    "plot_iou_matrix",
    "plot_latent_pca",
    "plot_loss_curves",
    "plot_trajectory",
    "plot_trajectory_plane",
]
