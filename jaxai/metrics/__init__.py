"""Scores: numbers from arrays."""

from jaxai.metrics.classification import confusion_matrix as confusion_matrix
from jaxai.metrics.classification import roc_curves as roc_curves
from jaxai.metrics.classification import scores as scores
from jaxai.metrics.classification import worst_mistakes as worst_mistakes
from jaxai.metrics.digits import features_and_labels as features_and_labels
from jaxai.metrics.diversity import effective_classes as effective_classes
from jaxai.metrics.diversity import pairwise_distance as pairwise_distance
from jaxai.metrics.generation import evaluate_digits as evaluate_digits
from jaxai.metrics.generation import frechet_distance as frechet_distance
from jaxai.metrics.generation import histogram as histogram
from jaxai.metrics.generation import histogram_kl as histogram_kl
from jaxai.metrics.generation import kernel_distance as kernel_distance
from jaxai.metrics.generation import near_copies as near_copies
from jaxai.metrics.generation import precision_recall_density_coverage as precision_recall_density_coverage
from jaxai.metrics.image import image_scores as image_scores
from jaxai.metrics.image import psnr as psnr
from jaxai.metrics.mixtures import mixture_scores as mixture_scores
from jaxai.metrics.mixtures import nearest as nearest
from jaxai.metrics.stacked import SAMPLES as SAMPLES
from jaxai.metrics.stacked import kl_floor as kl_floor
from jaxai.metrics.stacked import stack_labels as stack_labels
from jaxai.metrics.stacked import stacked_scores as stacked_scores
from jaxai.metrics.text import translation_scores as translation_scores
