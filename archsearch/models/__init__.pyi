from .checkpoints import (
    INITIAL,
    CheckpointWarning,
    Header,
    is_own,
    key_pattern,
    load,
    load_official,
    official_keys,
    own_blocks,
    read_checkpoint,
    read_header,
    save,
    save_official,
)
from .contract import Finding, check_layer, check_layers
from .count import count_activations, count_flop_counter, count_fvcore, count_known, recount_all
from .export.export import ExportTask, export_document, export_task
from .failing_layer import failing_layer
from .features import FeatureNetwork
from .given import TIMM, GivenNetwork, is_given, no_score_of, read_network
from .network import Network, build, build_for_timing
from .timm_models import register_timm_models
from .timm_network import HYBRID, TimmNetwork, create_timm_network, timm_config
from .validation.accuracy import Accuracy, ValidationSet, validate
from .validation.checkpoint import EvaluateTask, check_complete, evaluate_document, evaluate_task
from .validation.preprocessing import Preprocessing

__all__ = [
    "HYBRID",
    "INITIAL",
    "TIMM",
    "Accuracy",
    "CheckpointWarning",
    "EvaluateTask",
    "ExportTask",
    "FeatureNetwork",
    "Finding",
    "GivenNetwork",
    "Header",
    "Network",
    "Preprocessing",
    "TimmNetwork",
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
    "create_timm_network",
    "evaluate_document",
    "evaluate_task",
    "export_document",
    "export_task",
    "failing_layer",
    "is_given",
    "is_own",
    "key_pattern",
    "load",
    "load_official",
    "no_score_of",
    "official_keys",
    "own_blocks",
    "read_checkpoint",
    "read_header",
    "read_network",
    "recount_all",
    "register_timm_models",
    "save",
    "save_official",
    "timm_config",
    "validate",
]
