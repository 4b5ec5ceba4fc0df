"""Pictures and plots, written to files."""

from jaxai.plots.attention import save_attention_maps as save_attention_maps
from jaxai.plots.attention import save_attention_statistics as save_attention_statistics
from jaxai.plots.attention import save_reading as save_reading
from jaxai.plots.attribution import plot_explanations as plot_explanations
from jaxai.plots.curves import plot_curves as plot_curves
from jaxai.plots.images import grid as grid
from jaxai.plots.images import save_figure as save_figure
from jaxai.plots.images import save_gif as save_gif
from jaxai.plots.images import save_png as save_png
from jaxai.plots.images import stack as stack
from jaxai.plots.images import to_pixels as to_pixels
from jaxai.plots.scores import plot_confusion as plot_confusion
from jaxai.plots.scores import plot_filters as plot_filters
from jaxai.plots.scores import plot_mistakes as plot_mistakes
from jaxai.plots.scores import plot_roc as plot_roc
