from .against_timm import timm_audit_parts
from .audit import audit_parts
from .bench import bench_parts
from .calibration import calibration_document, calibration_parts
from .card import model_card, run_facts
from .compare import build_comparison
from .compare_tables import comparison_parts
from .cost import cost_document, cost_sentence, cost_table
from .export import EXPORT_NOTE, export_parts
from .expressions import Expression, parse_expression
from .layers import LAYERS_NOTE, finding_list, finding_table, layer_list, layer_tables
from .papers import PAPERS_NOTE, check_sentence, paper_list, paper_table
from .proxies import FREE_NOTE, PROXIES_NOTE, profile_document, profile_list, profile_table, score_list, score_table
from .run import build_report, to_csv
from .run_tables import report_parts, summary_parts
from .runs import removal_text, run_document, run_list, run_list_parts
from .runtimes import against_runtime_parts
from .space import SpaceQuery, arch_document, sample_archs, sample_sentence, sample_table, space_document, space_parts
from .tables import Document, make_console, make_table, show, to_json
from .training import train_parts
from .validation import evaluate_parts

__all__ = [
    "EXPORT_NOTE",
    "FREE_NOTE",
    "LAYERS_NOTE",
    "PAPERS_NOTE",
    "PROXIES_NOTE",
    "Document",
    "Expression",
    "SpaceQuery",
    "against_runtime_parts",
    "arch_document",
    "audit_parts",
    "bench_parts",
    "build_comparison",
    "build_report",
    "calibration_document",
    "calibration_parts",
    "check_sentence",
    "comparison_parts",
    "cost_document",
    "cost_sentence",
    "cost_table",
    "evaluate_parts",
    "export_parts",
    "finding_list",
    "finding_table",
    "layer_list",
    "layer_tables",
    "make_console",
    "make_table",
    "model_card",
    "paper_list",
    "paper_table",
    "parse_expression",
    "profile_document",
    "profile_list",
    "profile_table",
    "removal_text",
    "report_parts",
    "run_document",
    "run_facts",
    "run_list",
    "run_list_parts",
    "sample_archs",
    "sample_sentence",
    "sample_table",
    "score_list",
    "score_table",
    "show",
    "space_document",
    "space_parts",
    "summary_parts",
    "timm_audit_parts",
    "to_csv",
    "to_json",
    "train_parts",
]
