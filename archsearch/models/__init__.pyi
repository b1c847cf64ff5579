from .checkpoints import CheckpointWarning, key_pattern, load_official, official_keys, read_checkpoint, save_official
from .contract import Finding, check_layer, check_layers
from .count import count_activations, count_flop_counter, count_fvcore, count_known, recount_all
from .failing_layer import failing_layer
from .features import FeatureNetwork
from .given import TIMM, GivenNetwork, is_given, no_score_of, read_network
from .network import Network, build, build_for_timing
from .validation.accuracy import Accuracy, ValidationSet, validate
from .validation.checkpoint import EvaluateTask, check_complete, evaluate_document, evaluate_task
from .validation.preprocessing import Preprocessing

__all__ = [
    "TIMM",
    "Accuracy",
    "CheckpointWarning",
    "EvaluateTask",
    "FeatureNetwork",
    "Finding",
    "GivenNetwork",
    "Network",
    "Preprocessing",
    "ValidationSet",
    "build",
    "build_for_timing",
    "check_complete",
    "check_layer",
    "check_layers",
    "count_activations",
    "count_flop_counter",
    "count_fvcore",
    "count_known",
    "evaluate_document",
    "evaluate_task",
    "failing_layer",
    "is_given",
    "key_pattern",
    "load_official",
    "no_score_of",
    "official_keys",
    "read_checkpoint",
    "read_network",
    "recount_all",
    "save_official",
    "validate",
]
