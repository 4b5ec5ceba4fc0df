"""Numbers from arrays.

``classification``, ``image`` and ``text`` are imported by name: they need scikit-learn, scikit-image, sacrebleu.
"""

from jaxai.metrics.diversity import effective_classes as effective_classes
from jaxai.metrics.diversity import pairwise_distance as pairwise_distance
from jaxai.metrics.generation import evaluate_digits as evaluate_digits
from jaxai.metrics.generation import frechet_distance as frechet_distance
from jaxai.metrics.generation import histogram as histogram
from jaxai.metrics.generation import histogram_kl as histogram_kl
from jaxai.metrics.generation import kernel_distance as kernel_distance
from jaxai.metrics.generation import near_copies as near_copies
from jaxai.metrics.generation import precision_recall_density_coverage as precision_recall_density_coverage
from jaxai.metrics.mixtures import mixture_scores as mixture_scores
from jaxai.metrics.mixtures import nearest as nearest
from jaxai.metrics.stacked import kl_floor as kl_floor
from jaxai.metrics.stacked import stacked_scores as stacked_scores
