"""The help of a command: its options in groups, and two commands to copy."""

import click

# Options of one purpose, by their long name; a command shows the groups that it has options of. Those that stand nowhere come last, as "Other options".
GROUPS: dict[str, tuple[str, ...]] = {
    "Space and budget": ("--space", "--budget", "--tolerance", "--params", "--fix"),
    "Candidates": (
        "--number",
        "--trials",
        "--papers",
        "--include",
        "--hybrids",
        "--held-out",
        "--slopes",
        "--objectives",
    ),
    "Limits": (
        "--max-latency",
        "--min-throughput",
        "--max-memory",
        "--max-train-memory",
        "--min",
        "--timeout",
        "--stall",
    ),
    "Images": (
        *("--data", "--image-size", "--in-chans", "--num-classes", "--resolution", "--train-split", "--val-split"),
        *("--max-unreadable", "--size", "--classes", "--per-class", "--share", "--val-share"),
    ),
    "Training": (
        *("--proxy", "--proxy-steps", "--rungs", "--no-rungs", "--seeds", "--longer", "--training-free", "--free-rung"),
        *("--recipe", "--epochs", "--lr", "--init-from", "--teacher", "--teacher-weights", "--distillation"),
        "--checkpoint-every",
    ),
    "Device and timing": (
        *("--device", "--dtype", "--mode", "--batch-size", "--threads", "--cpus", "--runtime", "--precision"),
        *("--calibration-data", "--recheck", "--remeasure"),
    ),
    "Comparing": ("--against", "--against-runtime", "--rounds", "--sweep", "--train", "--timm"),
    "Search": ("--sampler", "--seed", "--from"),
    "Workers": ("--workers", "--retries", "--ray", "--device-class"),
    "What is written": (
        *("--output", "--storage", "--storage-patience", "--format", "--weights", "--batch", "--force", "--checkpoint"),
        *("--check", "--track", "--tensorboard", "--pick", "--html", "--open", "--json", "--csv"),
    ),
}
OTHERS = "Other options"
# Commands with so many options show them in groups.
FEWEST_GROUPED = 9
# Two real commands of each, with what they do; keys are the words after `archsearch`.
EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "run": (
        ("archsearch run --budget 4.5GFLOPs", "the default space, the papers nearest to the budget, 12 candidates"),
        ("archsearch run mine.toml --budget 1G --trials 100 --timeout 8h", "a space of your own, overnight"),
    ),
    "report": (
        ("archsearch report", "the latest run: its front, what it means, its conditions"),
        ("archsearch report :12", "trial 12 of it: drawn, with its costs and what other choices would cost"),
    ),
    "runs": (
        ("archsearch runs", "what is under results/, newest first"),
        ("archsearch runs --json", "the same for a script"),
    ),
    "runs rm": (
        ("archsearch runs rm hybrid-4.5G-6d51bc", "asks first, and says what is kept"),
        ("archsearch runs rm first second --yes", "several, without asking"),
    ),
    "runs rename": (
        ("archsearch runs rename hybrid-4.5G-6d51bc laptop", "a name of your own"),
        ("archsearch runs rename results/first second", "the same, by its folder"),
    ),
    "runs restore": (
        ("archsearch runs restore results/hybrid-4.5G-6d51bc", "where its study.db was lost or damaged"),
        ("archsearch runs restore hybrid-4.5G-6d51bc", "the same, by its name under results/"),
    ),
    "prepare": (
        ("archsearch prepare /data/imagenet images144 --share 10%", "a tenth of every class, decoded once"),
        ("archsearch prepare --check images144", "whether the folder is whole"),
    ),
    "audit": (
        ("archsearch audit", "how well the latest run's proxy orders architectures"),
        (
            "archsearch audit --proxy fashion-mnist --papers all --hybrids 0",
            "that of a shipped proxy, on the papers' models",
        ),
    ),
    "bench": (
        ("archsearch bench davit_tiny van_b2", "images per second of two models, beside the reference"),
        ("archsearch bench :12 --against swin_tiny --batch-size 16", "a trial of the latest run in turn with a model"),
    ),
    "calibrate": (
        ("archsearch calibrate", "for the default space at 4.5G, by the usual way to time"),
        ("archsearch calibrate mine.toml --budget 1G --threads 1", "for a space of your own, as a run with one thread"),
    ),
    "train": (
        ("archsearch train :12 trained --data /data/imagenet", "a trial, by the recipe of the nearest paper"),
        ("archsearch train van_b0 tuned --data flowers --init-from weights.pth", "fine-tuning on other images"),
    ),
    "evaluate": (
        ("archsearch evaluate van_b0 --checkpoint van_b0.pth --data /data/imagenet", "an official checkpoint"),
        ("archsearch evaluate van_b0 --checkpoint van.pth --data val --resolution 256", "at another size"),
    ),
    "export": (
        ("archsearch export :12 winner", "a folder that timm.create_model loads"),
        ("archsearch export van_b2 van_b2.onnx --batch dynamic", "for onnxruntime, for batches of any size"),
    ),
    "cost": (
        ("archsearch cost davit_tiny", "a paper's model, layer by layer"),
        ("archsearch cost :12 --image-size 384", "a trial of the latest run at another size"),
    ),
    "score": (
        ("archsearch score davit_tiny van_b2", "two papers' models"),
        ("archsearch score :12 :15 --batch-size 32", "two trials of the latest run"),
    ),
    "sample": (
        ("archsearch sample --budget 4.5GFLOPs", "ten of the default space; the arch_ids work in other commands"),
        ("archsearch sample mine.toml -n 100 --seed 1 --json", "a hundred of a space of your own, as JSON"),
    ),
    "space": (
        ("archsearch space --budget 4.5GFLOPs", "the default space, and what of it lies in the band"),
        ("archsearch space mine.toml --fix stages.2.block=hilo", "a space of your own with one choice made"),
    ),
    "blocks": (
        ("archsearch blocks", "every layer that a space can name, with its fields"),
        ("archsearch blocks --check pooling.py", "layers of your own, checked on what they build"),
    ),
    "papers": (
        ("archsearch papers", "the papers' models, counted and as published"),
        ("archsearch papers --check", "each one built and counted again"),
    ),
    "proxies": (
        ("archsearch proxies", "the shipped ways of training"),
        ("archsearch proxies fashion-mnist > mine.toml", "one as a file, to be changed"),
    ),
    "docs": (
        ("archsearch docs", "the pages"),
        ("archsearch docs results", "one of them"),
    ),
    "doctor": (
        ("archsearch doctor", "what works here, what does not, and what to do"),
        ("archsearch doctor --json > machine.json", "the same for a bug report"),
    ),
}


class _Examples(click.Command):
    """A command whose help ends with examples."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, each on a line of its own that is never broken."""
        super().format_epilog(ctx, formatter)
        examples = EXAMPLES.get(" ".join(ctx.command_path.split()[1:]), ())
        if examples:
            with formatter.section("Examples"):
                for command, what in examples:
                    formatter.write(f"  {command}\n      {what}\n")


class Command(_Examples):
    """A command whose help has its options in groups, where it has many, and examples."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does it, under a heading for each group."""
        given = [each for each in self.get_params(ctx) if each.param_type_name == "option"]
        options = [(parameter, parameter.get_help_record(ctx)) for parameter in given]
        shown = [(parameter, record) for parameter, record in options if record is not None]
        if len(shown) < FEWEST_GROUPED:
            super().format_options(ctx, formatter)
            return
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in (*GROUPS, OTHERS)}
        for parameter, record in shown:
            groups[group_of(parameter)].append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


def group_of(parameter: click.Parameter) -> str:
    """The heading that an option stands under."""
    return next((name for name, options in GROUPS.items() if set(parameter.opts) & set(options)), OTHERS)


class Group(_Examples, click.Group):
    """A group of commands with such help."""

    command_class = Command
