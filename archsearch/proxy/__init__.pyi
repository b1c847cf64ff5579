from .audit.audit import AuditRequest
from .audit.plan import AuditPlan, Subject
from .audit.store import AuditStore, read_audit
from .profiles import Profile, load_profile, profile_names, profile_text
from .scale import Scale, shrink
from .task import LoadedData, LowerRung, ProxyTask, choose_profile, load_images
from .training.batches import Loader
from .training.memory import train_step_bytes
from .training.recipe import STARVED_UNDER, Recipe, check_rungs, is_starved
from .training.train import ProxyScore, Training, TrainingProgress, start_training, train_and_score

__all__ = [
    "STARVED_UNDER",
    "AuditPlan",
    "AuditRequest",
    "AuditStore",
    "LoadedData",
    "Loader",
    "LowerRung",
    "Profile",
    "ProxyScore",
    "ProxyTask",
    "Recipe",
    "Scale",
    "Subject",
    "Training",
    "TrainingProgress",
    "check_rungs",
    "choose_profile",
    "is_starved",
    "load_images",
    "load_profile",
    "profile_names",
    "profile_text",
    "read_audit",
    "shrink",
    "start_training",
    "train_and_score",
    "train_step_bytes",
]
