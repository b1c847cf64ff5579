"""Plan, run and summarise an audit; any number of processes may work on the same one."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from archsearch.device import check_cpu, pick_device, use_cpu
from archsearch.errors import UserError
from archsearch.proxy import training_free
from archsearch.proxy.audit.from_run import run_hybrids, run_records
from archsearch.proxy.audit.plan import AuditPlan, Subject, hybrid_subjects, paper_subjects
from archsearch.proxy.audit.statistics import Document, conclude
from archsearch.proxy.audit.store import FREE_FILE, AuditStore, Key, Record, audit_folder, read_json
from archsearch.proxy.audit.training import train_all
from archsearch.proxy.audit.verdict import verdict
from archsearch.proxy.task import ProxyTask, choose_profile, proxy_id
from archsearch.results import read_manifest, read_rows
from archsearch.space import choose_papers, register_files, spectral_capacity, stored_block_files
from archsearch.system import Progress, Say, ignore, replace_file, utc_now
from archsearch.units import stored_size
from archsearch.version import __version__

_IMAGE_SIZE = 224  # of the papers' models that are audited beside a profile's hybrids
# The conditions of a training that its score depends on.
_CONDITIONS = ("device", "device_name", "torch", "threads")


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """What the command line asks for: a run's folder, or a profile by name or file with its images."""

    run: Path | None
    proxy: str | None
    data: str | None
    num_seeds: int
    hybrids: int
    longer: int
    budget_macs: int
    papers: str
    device: str
    threads: int | None


def audit(
    request: AuditRequest,
    results_root: Path,
    output: Path | None = None,
    *,
    say: Say = ignore,
    progress: Progress = ignore,
) -> Document:
    """Train what is missing, write the audit's folder, and return its document."""
    plan = audit_plan(request)
    store = AuditStore(output or audit_folder(results_root, plan.proxy.proxy_id))
    use_cpu(plan.threads, plan.cpus)
    records = train_all(plan, store, say=say, progress=progress)
    document = audit_document(plan, records, _training_free(plan.subjects, store))
    document["folder"] = str(store.folder)
    store.write(document)
    return document


def audit_plan(request: AuditRequest) -> AuditPlan:
    """Checked before anything is trained. Raises UserError for a request that is impossible."""
    plan = _plan_for_profile(request) if request.run is None else _plan_for_run(request, request.run)
    if not plan.subjects:
        raise UserError("nothing to audit with: --papers none and --hybrids 0; name at least three networks")
    if not request.longer or not request.hybrids:
        return plan
    proxy = plan.proxy
    recipe = replace(proxy.recipe, steps=request.longer * plan.steps)
    return replace(plan, longer_id=proxy_id(proxy.load_data(), proxy.scale, recipe))


def _plan_for_profile(request: AuditRequest) -> AuditPlan:
    """The papers' models and hybrids of the default space."""
    device = pick_device(request.device).type
    check_cpu(request.threads, None)
    return AuditPlan(
        proxy=ProxyTask.resolve(choose_profile(request.proxy, device, request.data), data=request.data),
        device=device,
        subjects=[
            *paper_subjects(choose_papers(request.papers, request.budget_macs, _IMAGE_SIZE)),
            *hybrid_subjects(request.hybrids, request.budget_macs),
        ],
        num_seeds=request.num_seeds,
        longer=request.longer,
        threads=request.threads,
    )


def _plan_for_run(request: AuditRequest, folder: Path) -> AuditPlan:
    """The papers' models near the run's budget and its own candidates, with what it has measured."""
    manifest, rows = read_manifest(folder), read_rows(folder)
    settings = manifest["settings"]
    if not settings.get("proxy", {}).get("recipe") or "source" not in settings["proxy"]:
        raise UserError(f"{folder}: this run has no proxy that could be audited")
    images = stored_size(settings), settings.get("in_chans", 3)
    usual_macs = manifest["budget_macs"] or round(statistics.median(row["macs"] for row in rows))
    papers = choose_papers(request.papers, usual_macs, *images)
    register_files(stored_block_files(folder, manifest))
    hybrids = run_hybrids(rows, request.hybrids)
    if len(hybrids) < request.hybrids:
        raise UserError(
            f"{folder}: has {len(hybrids)} complete candidates, fewer than the {request.hybrids} to audit with; "
            f"let it go on, or give --hybrids {len(hybrids)} or less"
        )
    proxy = ProxyTask.from_dict(settings)
    return AuditPlan(
        proxy=proxy,
        device=settings["device"] if request.device == "auto" else pick_device(request.device).type,
        subjects=[*paper_subjects(papers), *hybrids],
        num_seeds=request.num_seeds,
        longer=request.longer,
        threads=request.threads or settings["threads"],
        cpus=settings.get("cpus"),
        run=manifest["name"],
        measured=list(run_records(rows, proxy)),
    )


def audit_document(plan: AuditPlan, records: Mapping[Key, Record], free: Mapping[str, Mapping[str, float]]) -> Document:
    """All taus with their intervals, the scores behind them, and the verdict."""
    used = [records[training.key] for training in plan.trainings() if training.key in records]
    machines = [{name: record.conditions.get(name) for name in _CONDITIONS} for record in used]
    document: Document = {
        "proxy_id": plan.proxy.proxy_id,
        "verdict": "",
        "run": plan.run,
        "created_at": utc_now(),
        "seeds": plan.num_seeds,
        "longer": plan.longer if plan.longer_id else 0,
        "longer_proxy_id": plan.longer_id,
        "trainings": len(used),
        "seconds": sum(record.seconds for record in used),
        **conclude(plan, records, free),
        "settings": {
            "proxy": plan.proxy.to_dict()["proxy"],
            "device": plan.device,
            "threads": plan.threads,
            "cpus": plan.cpus,
        },
        "conditions": list({json.dumps(one, sort_keys=True): one for one in machines}.values()),  # each once
        "versions": {"archsearch": __version__},
    }
    return {**document, "verdict": verdict(document)}


def _training_free(subjects: Sequence[Subject], store: AuditStore) -> dict[str, dict[str, float]]:
    """Training-free scores, arch_id -> name -> value; stored in the folder, as they take seconds each."""
    path = store.folder / FREE_FILE
    with store.locked("training_free"):
        stored = read_json(path)
        known: dict[str, dict[str, float]] = stored if isinstance(stored, dict) else {}
        for arch in (subject.arch for subject in subjects if subject.arch.arch_id not in known):
            try:
                known[arch.arch_id] = training_free.scores(arch)
            except UserError:
                known[arch.arch_id] = {}  # there is no small copy of it
            text = json.dumps(known)
            replace_file(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))  # type: ignore[misc]  # a default that binds
    for group in ("papers", "hybrids"):
        archs = [one.arch for one in subjects if one.group == group and known[one.arch.arch_id]]
        values = training_free.aggregate([known[arch.arch_id] for arch in archs])
        for arch, value in zip(archs, values, strict=True):
            own = {"az_nas": float(value), "nsc": spectral_capacity(arch)}  # audits of earlier versions lack nsc
            known[arch.arch_id] = {**known[arch.arch_id], **own}
    return known
