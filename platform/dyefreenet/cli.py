"""``dyefreenet ...``: the calls of ``jobs/`` for a terminal, and the small ones beside them."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from dyefreenet import __version__, recipes, runtime
from dyefreenet.config import PHASES, GenerateConfig, IngestConfig, Recipe, Selection
from dyefreenet.errors import ConfigError, DyeFreeNetError, InputError, ResourceError
from dyefreenet.progress import Progress, duration
from dyefreenet.runtime import Resources
from dyefreenet.space import METHODS
from dyefreenet.store import MANIFEST, Folder, fingerprint, salt_of

EPILOG = """examples:
  dyefreenet run --recipe demo
  dyefreenet run --recipe paper --set ingest.paired='[s3://bucket/pairs]' --store s3://bucket/runs
  dyefreenet ingest -i ARCHIVE -o SHARDS --json
  dyefreenet pairs -i ARCHIVE --review review.csv
  dyefreenet plan --catalogue idc -o nlst-plan
  dyefreenet train --stage refine --recipe demo
  dyefreenet evaluate --recipe demo --all-protocols
  dyefreenet generate -i CT_ARCHIVE -o OUT --report out.html
  dyefreenet sweep --recipe demo --method primary --trials 6
  dyefreenet describe --recipe paper

Patients and series are named by salted hashes. The salt is kept beside the runs; set
DYEFREENET_SALT to have the same names everywhere.

Virtual contrast is for research only. No image made here may be used for diagnosis.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status of one command: 0 done, 1 an error that was told in one line, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        options.call(options)
    except DyeFreeNetError as error:
        return _failed(error, options.verbose)
    except KeyboardInterrupt:
        print("interrupted; what was finished stays, the same command goes on", file=sys.stderr)
        if "ray" in sys.modules:  # training threads wait for Ray, and Python would wait for them
            sys.modules["ray"].shutdown()
            sys.stderr.flush()
            os._exit(130)
        return 130
    except Exception as error:
        return _failed(error, options.verbose)
    return 0


def _failed(error: Exception, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    cause = _own(error)
    text = str(cause or error).strip() or type(error).__name__
    if cause is None:
        told = f"{type(error).__name__}: {text.splitlines()[-1]}"
        text = f"{runtime.lacking_on_a_node(error) or told} (-v shows where)"
    print(f"dyefreenet: error: {text}", file=sys.stderr)
    return 1


def _own(error: BaseException | None) -> DyeFreeNetError | None:
    """Our own error inside what Ray wrapped around it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        inside = getattr(error, "cause", None)  # Ray makes an error that is both its own and ours
        if isinstance(error, DyeFreeNetError) and not isinstance(inside, BaseException):
            return error
        inner = getattr(error, "worker_failures", None)
        if isinstance(inner, dict) and inner:
            error = next(iter(inner.values()))
            continue
        error = getattr(error, "cause", None) or error.__cause__
        error = error if isinstance(error, BaseException) else None
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dyefreenet",
        description="Virtual contrast CT from plain CT: the DyeFreeNet cascade on Ray.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dyefreenet {__version__}")
    parser.set_defaults(call=lambda options: parser.print_help(), verbose=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="every step of a recipe, skipping what is done",
        description="Every step of a recipe, skipping what is done. With --tuned, also a sweep of "
        "each method with equal effort, then all trained anew with the settings that were found "
        "and with the recipe's, and scored on the test patients: RUN/tuned/summary.md.",
    )
    run.add_argument("--tuned", action="store_true", help="tune every method and compare")
    run.add_argument("--trials", type=int, default=12, help="with --tuned, of each (default: 12)")
    run.add_argument(
        "--seeds", type=int, default=3, help="with --tuned, trainings of each (default: 3)"
    )
    run.add_argument(
        "--minutes", type=float, help="with --tuned, of each sweep (default: no limit)"
    )
    _add_recipe(run)
    _add_resources(run)
    run.set_defaults(call=_run_recipe, only=())

    ingest = commands.add_parser(
        "ingest",
        help="archives to training shards",
        description="The ingest step of a run; or, with -i and -o, any archive into any folder: "
        "DICOM (also zipped, or with a DICOMDIR), NIfTI, NRRD, MetaImage. Plain and contrast "
        "series of a study become pairs, plain ones without a partner serve SSL. "
        "OUTPUT/quality.html shows what was taken, OUTPUT/excluded.parquet why the rest was not. "
        "Registration and pixel size are the recipe's. What an earlier run did stays; a run that "
        "was killed goes on.",
    )
    ingest.add_argument(
        "-i",
        "--input",
        action="append",
        metavar="ARCHIVE",
        help="folder, file, s3://, zip or tar; repeatable",
    )
    ingest.add_argument(
        "--phases",
        metavar="FILE.csv",
        help="what headers and images do not say: the table of 'dyefreenet pairs --review', edited",
    )
    ingest.add_argument("-o", "--output", help="folder or s3:// for the shards and their books")
    ingest.add_argument("--json", action="store_true", help="print the account as one object")
    _add_recipe(ingest)
    _add_resources(ingest)
    ingest.set_defaults(call=_ingest, only=("phantom", "ingest"))

    pairs = commands.add_parser(
        "pairs",
        help="which series of an archive pair, by headers alone",
        description="Which series are plain, which contrast, and which pair, by headers alone. "
        "--review writes a table to edit: correct its column 'phase' (plain, arterial, portal, "
        "delayed or ignore) and give it back with --phases here, or with "
        "--set ingest.phases_csv=FILE to a run.",
    )
    pairs.add_argument(
        "-i",
        "--input",
        action="append",
        required=True,
        metavar="ARCHIVE",
        help="folder, file, s3://, zip or tar; repeatable",
    )
    pairs.add_argument(
        "--keys-of",
        metavar="OUTPUT",
        help="name series by the keys of this ingest folder, as its messages and pages do",
    )
    pairs.add_argument("--review", metavar="FILE.csv", help="write the table; it names series")
    pairs.add_argument("--phases", metavar="FILE.csv", help="read the edited table")
    pairs.add_argument("--json", action="store_true", help="print the account as one object")
    pairs.add_argument("-v", "--verbose", action="store_true", help="traceback of an error")
    pairs.set_defaults(call=_pairs)

    plan = commands.add_parser(
        "plan",
        help="which NLST series to fetch, by the catalogue alone",
        description="Chooses one soft, thin, axial series of each NLST study from a catalogue; no "
        "image is read. plan.csv then lists what to download, summary.json accounts for the rest. "
        "The rules are a file to edit: --write-rules rules.yaml, then --rules rules.yaml.",
    )
    plan.add_argument(
        "--catalogue",
        default="idc",
        help="CSV or Parquet with a row a series, or 'idc' for the Imaging Data Commons' own, from "
        "pip install idc-index-data (default: idc)",
    )
    plan.add_argument("-o", "--output", help="folder or s3:// for plan.csv and summary.json")
    plan.add_argument("--rules", help="YAML of the rules to change")
    plan.add_argument("--write-rules", metavar="FILE.yaml", help="write the rules, and stop")
    plan.add_argument("--json", action="store_true", help="print the summary as one object")
    plan.add_argument("-v", "--verbose", action="store_true", help="traceback of an error")
    plan.set_defaults(call=_plan)

    evaluate = commands.add_parser(
        "evaluate",
        help="score every trained method, and write the report",
        description="The evaluate step of a run, and its report. With --all-protocols the same "
        "networks under every convention that we know, in a folder of its own: to place published "
        "figures, which differ by 20 dB for one pair of scans.",
    )
    evaluate.add_argument(
        "--all-protocols", action="store_true", help="one result under every convention"
    )
    evaluate.add_argument(
        "--json",
        action="store_true",
        help='print the summary as one object; what is infinite is the string "Infinity"',
    )
    _add_recipe(evaluate)
    _add_resources(evaluate)
    evaluate.set_defaults(call=_evaluate, only=("evaluate",))

    train = commands.add_parser("train", help="one stage; what it needs must be done")
    train.add_argument(
        "--stage",
        required=True,
        help="ssl, primary, primary_scratch, refine, unet or pix2pix",
    )
    _add_recipe(train)
    _add_resources(train)
    train.set_defaults(call=_run, only=None)

    sweep = commands.add_parser(
        "sweep",
        help="search a method's settings with Ray Tune and Optuna",
        description="Search a method's settings with Ray Tune and Optuna, on validation patients "
        "alone. Bad trials are stopped early; a sweep that was killed goes on where it was.",
    )
    sweep.add_argument(
        "--method",
        default="primary",
        choices=METHODS,
        help="what to tune; cascade: primary and refine together (default: primary)",
    )
    sweep.add_argument("--trials", type=int, default=12, help="trials (default: 12)")
    sweep.add_argument("--minutes", type=float, help="stop after so many (default: no limit)")
    sweep.add_argument(
        "--space",
        help="YAML of fields and ranges, such as 'primary.lr: {log: [1.0e-4, 1.0e-2]}', "
        "'primary.decay: {choice: [step, none]}', 'primary.epochs: {whole: [2, 4]}' (default: "
        "learning rate, decay, lambda, weight of vessels, discriminator's rate)",
    )
    _add_recipe(sweep)
    _add_resources(sweep)
    sweep.set_defaults(call=_sweep)

    generate = commands.add_parser(
        "generate",
        help="virtual contrast of an archive, or of one plain CT series",
        description="Virtual contrast of every plain CT series of an archive, as derived DICOM in "
        "its source's study and place that says what it is. TARGET/ledger.csv has a row a series: "
        "done, refused or failed, and why. What was finished stays; a run that was killed goes on "
        "with the same command. With RAY_ADDRESS the work is spread over that cluster.",
    )
    generate.add_argument(
        "-i",
        "--input",
        required=True,
        metavar="ARCHIVE",
        help="folder, DICOMDIR, zip or tar, NIfTI file, or s3://",
    )
    generate.add_argument(
        "-o", "--output", required=True, metavar="TARGET", help="another folder, or s3://"
    )
    generate.add_argument(
        "--run",
        action="append",
        help="run folder or package (default: the weights that come with us); with --uncertainty "
        "repeatable: the first makes the series, all of them say how sure they are",
    )
    generate.add_argument("--method", default="refine", help="row of the table (default: refine)")
    generate.add_argument(
        "--phase",
        choices=PHASES[1:],
        help="contrast phase to make (default: the one that the run's recipe names)",
    )
    generate.add_argument(
        "--format",
        choices=get_args(GenerateConfig.model_fields["output"].annotation),
        default="dicom",
        help="what a DICOM series becomes: dicom, a zip of that, nifti, or a png of five views; "
        "NIfTI becomes NIfTI (default: dicom)",
    )
    generate.add_argument(
        "--select",
        metavar="RULES.json",
        help='which series, such as {"thickness_mm": [0, 3], "kernels": ["B30f"], "one_per_study": '
        "true}; also series, description (regular expression), slices",
    )
    generate.add_argument("--limit", type=int, help="at most so many series")
    generate.add_argument(
        "--dry-run", action="store_true", help="say what would be done, by headers alone"
    )
    generate.add_argument("--json", action="store_true", help="print the account as one object")
    generate.add_argument(
        "--report", metavar="FILE.html", help="a page of every series, with pictures"
    )
    generate.add_argument(
        "--uncertainty",
        action="store_true",
        help="also a series of how far predictions lie apart over mirrored scans, overlapping "
        "triplets and runs, in HU",
    )
    generate.add_argument(
        "--average-overlap",
        action=argparse.BooleanOptionalAction,
        help="average what the triplets that hold a slice predict for it (default: as trained)",
    )
    generate.add_argument(
        "--compile",
        action="store_true",
        help="fuse the networks with torch.compile: slower to start, faster on a GPU (needs a C "
        "compiler there)",
    )
    generate.add_argument(
        "--burn-in", action="store_true", help="draw the warning into the pixels, too"
    )
    generate.add_argument(
        "--any-phase",
        action="store_true",
        help="take series that show contrast agent, or that a network made",
    )
    generate.add_argument(
        "--no-check", action="store_true", help="look at no blood, soft tissue or flicker"
    )
    generate.add_argument(
        "--actors", type=int, help="at most so many copies of the model (default: what fits)"
    )
    generate.add_argument("--cpus", type=int, help="of each of them (default: what suits)")
    _add_device(generate)
    generate.add_argument("-v", "--verbose", action="store_true", help="Ray's talk and tracebacks")
    generate.set_defaults(call=_generate)

    export = commands.add_parser("export", help="a trained cascade as a small folder of its own")
    export.add_argument("--run", required=True, help="run folder, with a finished refine stage")
    export.add_argument("-o", "--output", required=True, help="folder for the package")
    export.add_argument("--onnx", action="store_true", help="also as ONNX, checked against torch")
    export.add_argument("--command", default="", help="what made the run, for the model card")
    export.add_argument("-v", "--verbose", action="store_true", help="traceback of an error")
    export.set_defaults(call=_export)

    describe = commands.add_parser("describe", help="config, parameters and FLOPs of a recipe")
    _add_recipe(describe)
    describe.set_defaults(call=_describe)

    bench = commands.add_parser(
        "bench",
        help="how fast this machine trains",
        description="Times the training step of a stage on made-up slices, and says what share it "
        "reaches of the rate of convolutions alone, measured in the same run.",
    )
    bench.add_argument("what", choices=["train"], help="the training step")
    bench.add_argument("--stage", default="primary", help="stage to time (default: primary)")
    bench.add_argument("--steps", type=int, default=5, help="steps to time (default: 5)")
    bench.add_argument("--batch", type=int, help="slices a step (default: the recipe's)")
    bench.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    bench.add_argument("--threads", type=int, help="of torch on the CPU (default: all cores)")
    _add_recipe(bench)
    bench.set_defaults(call=_bench)

    status = commands.add_parser(
        "status",
        help="how far a run is, or a target of generate, by its folder alone",
        description="How far a run is, by its folder alone: steps, seconds, epochs and figures, "
        "trials of sweeps, and when its driver was last heard of. Of a target of generate: how "
        "many series are done, refused or failed. Needs no cluster.",
    )
    status.add_argument(
        "target",
        nargs="?",
        metavar="FOLDER",
        help="a run folder, or what generate was given as -o (default: the run of --recipe)",
    )
    status.add_argument("--json", action="store_true", help="print it as one object")
    _add_recipe(status)
    status.set_defaults(call=_status)

    doctor = commands.add_parser(
        "doctor",
        help="what this machine, the store and the cluster lack, and what to do about it",
        description="Checks Python and packages, GPU, codecs, rights at the store, disks, shared "
        "memory, Ray's token and ports; with RAY_ADDRESS also the cluster and the store as each of "
        "its nodes sees it. A line each: ok, warn or FAIL. The exit status is 1 after a FAIL.",
    )
    doctor.add_argument(
        "--store", help="folder or s3:// for all runs (default: $DYEFREENET_STORE or runs)"
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as one object")
    doctor.add_argument("-v", "--verbose", action="store_true", help="Ray's talk and tracebacks")
    doctor.set_defaults(call=_doctor)

    report = commands.add_parser("report", help="write the report page of a run again")
    _add_recipe(report)
    report.set_defaults(call=_report)
    return parser


def _add_recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--recipe",
        default=os.environ.get("DYEFREENET_RECIPE", "demo"),
        help="demo, best, paper, real, c4kc_kits or a YAML file (default: $DYEFREENET_RECIPE or "
        "demo)",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field, for instance primary.lr=1e-4; repeatable",
    )
    command.add_argument(
        "--store", help="folder or s3:// for all runs (default: $DYEFREENET_STORE or runs)"
    )
    command.add_argument("--run", help="name of the run (default: the recipe's)")
    command.add_argument("-v", "--verbose", action="store_true", help="Ray's talk and tracebacks")


def _add_resources(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workers", type=int, default=1, help="per training stage (default: 1)")
    command.add_argument(
        "--min-workers", type=int, help="go on with as few where nodes are lost (default: all)"
    )
    command.add_argument("--parallel", type=int, help="steps at a time (default: what fits)")
    _add_device(command)


def _add_device(command: argparse.ArgumentParser) -> None:
    device = command.add_mutually_exclusive_group()
    device.add_argument("--gpu", dest="gpu", action="store_const", const="yes", default="auto")
    device.add_argument("--cpu", dest="gpu", action="store_const", const="no")


def _open(options: argparse.Namespace) -> tuple[Recipe, Folder]:
    recipe = recipes.load(options.recipe, options.set)
    return recipe, Folder(options.store or _default_store()) / (options.run or recipe.name)


def _default_store() -> str:
    """``runs`` here; at home inside a Ray job, whose own folder goes away with it."""
    if "DYEFREENET_STORE" in os.environ:
        return os.environ["DYEFREENET_STORE"]
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and "/runtime_resources/" in os.getcwd():
        return str(Path.home() / "dyefreenet-runs")
    return "runs"


def _resources(options: argparse.Namespace) -> Resources:
    if options.workers < 1 or (options.parallel or 1) < 1:
        raise ResourceError("--workers and --parallel: expected at least 1")
    if options.min_workers is not None and not 1 <= options.min_workers <= options.workers:
        raise ResourceError(
            f"--min-workers: expected 1 to --workers={options.workers}, found {options.min_workers}"
        )
    return Resources(options.workers, options.gpu, options.parallel, options.min_workers)


def _run_recipe(options: argparse.Namespace) -> None:
    _require_positive(options, "trials", "seeds", "minutes")
    _run(options)
    if options.tuned:
        # Before anything imports Ray, or it starts without a token.
        runtime.connect(options.verbose)
        from dyefreenet.tuned import tune_all

        recipe, run = _open(options)
        resources, progress = _resources(options), Progress()
        text = tune_all(
            recipe, run, options.trials, options.seeds, resources, progress, options.minutes
        )
        print(f"\n{text}\ntable: {run}/tuned/summary.md\nrecipe: {run}/tuned/best.yaml")


def _run(options: argparse.Namespace) -> None:
    run, only, count = _do_steps(options)
    if (run / "evaluate").manifest() is not None and (not only or "evaluate" in only):
        _print_report(run, again=count > 0)


def _do_steps(options: argparse.Namespace) -> tuple[Folder, Sequence[str], int]:
    """What a command asks for; the run, the steps' names and how many there were to do."""
    from dyefreenet.pipeline import run_steps

    recipe, run = _open(options)
    only = (options.stage,) if options.only is None else _asked(recipe, options.only)
    began = time.monotonic()
    progress = Progress()
    count = run_steps(recipe, run, _resources(options), progress, only, options.verbose)
    print(
        f"{count} step{'s' * (count != 1)} done in {duration(time.monotonic() - began)}"
        if count
        else f"nothing to do: every step of {run} is done already",
        file=sys.stderr,
    )
    return run, only, count


def _evaluate(options: argparse.Namespace) -> None:
    from dyefreenet.report import protocols_text, summary_object, write_report

    if options.all_protocols:
        from dyefreenet.evaluate.protocols import PROTOCOLS
        from dyefreenet.pipeline import evaluate_under

        recipe, run = _open(options)
        step = evaluate_under(recipe, run, tuple(PROTOCOLS), Progress(), options.verbose)
    elif options.json:
        run, _, count = _do_steps(options)
        step = "evaluate"
        if count:
            write_report(run)
    else:
        _run(options)
        return
    if options.json:
        print(json.dumps(summary_object(run, step), indent=1))
    else:
        print(f"{protocols_text(run, step)}\n\nrows: {run}/{step}/rows.parquet")


def _ingest(options: argparse.Namespace) -> None:
    if options.phases:
        options.set = [*options.set, f"ingest.phases_csv={json.dumps(_absolute(options.phases))}"]
    if not options.input and not options.output:
        _run(options)
        return
    if not options.input or not options.output:
        raise ConfigError("ingest: expected both -i ARCHIVE and -o FOLDER, found one of them")
    from dyefreenet.data.ingest import ingest
    from dyefreenet.report import write_quality

    recipe, _ = _open(options)
    config = recipe.ingest
    target = Folder(options.output)
    progress = Progress()
    for uri in options.input:
        if not Folder(uri).exists():
            raise InputError(f"{uri}: expected an archive, found nothing")
        if f"{target.uri}/".startswith(f"{Folder(uri).uri.rstrip('/')}/"):
            raise InputError(
                f"{target}: expected a folder outside of the archive {uri}, which stays as it is"
            )
    target.require_writable()
    target.remove(MANIFEST)  # until the end, what lies there is half-made
    runtime.connect(options.verbose)
    facts = ingest(
        config,
        recipe.grid,
        paired=[Folder(uri) for uri in options.input],
        plain=[Folder(uri) for uri in config.plain],
        target=target,
        salt=salt_of(target),
        train=False,
        report=lambda unit, done, total: progress.tick("ingest", done, total, unit),
    )
    page = write_quality(target)
    if facts["used"]:
        settings = {
            "ingest": config.model_dump(mode="json"),
            "grid": recipe.grid.model_dump(mode="json"),
        }
        target.publish(fingerprint(settings, {}), settings, **facts)
    excluded = f"{target}/excluded.parquet"
    if options.json:
        print(json.dumps(facts | {"excluded": excluded, "page": str(page)}, indent=1))
    else:
        print(f"{facts['series']} series found, {facts['used']} used, {facts['failed']} failed")
        for phase, count in facts["pairs"].items():
            print(f"  {count} pairs of plain and {phase}")
        print(f"  {facts['ssl_series']} plain series without partner")
        for reason, count in facts["refused"].items():
            print(f"  {count} refused: {reason}")
        for why, count in facts["skipped_files"].items():
            print(f"  {count} files passed over: {why}")
        print(f"every refused series and why: {excluded}\npictures: {page}")
    _tell_unnamed(facts.get("phases_csv_rows_without_series", 0), config.phases_csv)
    if not facts["used"]:
        raise InputError(
            f"{', '.join(options.input)}: found no series that can be used; see {page}"
        )


def _pairs(options: argparse.Namespace) -> None:
    from dyefreenet.data.archive import survey
    from dyefreenet.data.cohort import pair, review

    phases = IngestConfig().keep
    table = options.phases and _absolute(options.phases)
    salt = salt_of(Folder(options.keys_of)) if options.keys_of else ""
    found = [survey(uri, salt, table) for uri in options.input]
    rows = list({row.key: row for one in found for row in one.rows}.values())
    skipped = sum((one.skipped for one in found), Counter[str]())
    pairs, refused = pair(rows, phases)
    counts = Counter(one.phase for one in pairs)
    reasons = Counter(one.reason for one in refused)
    if options.review:
        lines = review(rows, phases)
        with open(options.review, "w", newline="") as stream:
            writer = csv.DictWriter(stream, lines[0])
            writer.writeheader()
            writer.writerows(lines)
    if table:
        _tell_unnamed(len(frozenset.intersection(*(one.unnamed for one in found))), table)
    if options.json:
        told = {"series": len(rows), "pairs": counts, "refused": reasons, "skipped_files": skipped}
        print(json.dumps(told, indent=1, sort_keys=True))
        return
    print(f"{len(rows)} series by their headers")
    for phase, count in sorted(counts.items()):
        print(f"  {count} pair{'s' * (count != 1)} of plain and {phase}")
    for reason, count in sorted(reasons.items()):
        print(f"  {count} series: {reason}")
        for one in [one for one in refused if one.reason == reason][:3]:
            print(f"      {one.row.key}: {one.detail}")
    for why, count in sorted(skipped.items()):
        print(f"  {count} files passed over: {why}")
    if options.review:
        print(f"{options.review}: correct its column 'phase' and give it back with --phases")
    elif reasons:
        print("--review FILE.csv writes a table to correct")


def _tell_unnamed(count: int, table: str | None) -> None:
    if count:
        rows = f"{count} row{'s' * (count != 1)}"
        print(f"NOTE: {rows} of {table} named no series here", file=sys.stderr)


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def _plan(options: argparse.Namespace) -> None:
    from dyefreenet.data import nlst

    if options.write_rules:
        Path(options.write_rules).write_text(nlst.rules_text())
        print(f"{options.write_rules}: edit it and give it back with --rules")
        return
    rules = nlst.read_rules(options.rules) if options.rules else nlst.NlstRules()
    plan = nlst.select(nlst.read_catalogue(options.catalogue), rules)
    if options.output:
        nlst.write_plan(plan, Folder(options.output))
    told = plan.summary()
    if options.json:
        print(json.dumps(told, indent=1))
        return
    print(
        f"{told['found']} series of {told['studies']} studies and {told['patients']} patients: "
        f"{told['selected']} selected, {told['images']} images, {told['terabytes']} TB"
    )
    for reason, count in told["refused"].items():
        print(f"  {count:>8} {reason}")
    for kind, one in told["odd"].items():
        print(f"  {one['series']:>8} odd: {kind}, such as {one['examples'][0]!r}")
    for what, count in told["attention"].items():
        print(f"  {count:>8} selected: {what}")
    if options.output:
        print(f"what to fetch: {Folder(options.output)}/plan.csv")


def _asked(recipe: Recipe, names: Sequence[str]) -> Sequence[str]:
    """Steps of a command; real CT needs no phantom drawn."""
    return [name for name in names if name != "phantom" or recipe.phantom is not None]


def _print_report(run: Folder, again: bool) -> None:
    from dyefreenet.report import table_text, write_report

    page = f"{run}/report/index.html"
    if again or not run.exists("report/index.html"):
        page = write_report(run)
    print(f"\n{table_text(run)}\n\nreport: {page}")


def _sweep(options: argparse.Namespace) -> None:
    from dyefreenet import space
    from dyefreenet.pipeline import run_steps

    recipe, run = _open(options)
    method = options.method
    _require_positive(options, "trials", "minutes")
    searched = space.read_space(options.space) if options.space else space.default_space(method)
    space.check_space(searched, recipe, method)
    progress, resources = Progress(), _resources(options)
    run.require_writable()
    own = space.METHODS[method]
    before = {need for stage in own for need in recipe.needs(stage)} - set(own)
    steps = _asked(recipe, ("phantom", "ingest", *before))
    run_steps(recipe, run, resources, progress, steps, options.verbose)
    runtime.connect(options.verbose)  # before anything imports Ray, or it starts without a token
    from dyefreenet import sweep

    found = sweep.sweep(
        recipe, run, method, searched, options.trials, resources, progress, options.minutes
    )
    print(sweep.table_text(found))
    print(f"\nrecipe of the best: {found['recipe']}\nreport: {found['page']}")


def _require_positive(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name}: expected more than 0, found {value}")


def _generate(options: argparse.Namespace) -> None:
    from dyefreenet.generation.batch import Workers, generate_archive
    from dyefreenet.generation.select import read_selection
    from dyefreenet.generation.series import SHIPPED, Device, model_of

    _require_positive(options, "limit", "actors", "cpus")
    config = GenerateConfig(
        method=options.method,
        phase=options.phase,
        average_overlap=options.average_overlap,
        uncertainty=options.uncertainty,
        banner=options.burn_in,
        output=options.format,
        any_phase=options.any_phase,
        compiled=options.compile,
        check=not options.no_check,
    )
    runs = tuple(options.run or [SHIPPED])
    if len(runs) > 1 and not options.uncertainty:
        raise ConfigError("--run: expected one run, or --uncertainty for several")
    model = model_of(runs, config)
    selection = read_selection(options.select) if options.select else Selection()
    if SHIPPED in runs:
        print(
            "NOTE: these weights learnt contrast from made-up CT (a phantom) alone.\n"
            "      Research only: what lights up was guessed, not measured.",
            file=sys.stderr,
        )
    if "RAY_ADDRESS" in os.environ:
        runtime.connect(options.verbose)  # headers are read there, too

    def workers(series: int) -> Workers | None:
        """A cluster for several series; one is done here, sooner than a cluster starts."""
        if series < 2 and "RAY_ADDRESS" not in os.environ:
            return None
        runtime.connect(options.verbose)
        return Workers(*runtime.actors(options.gpu, options.cpus, options.actors))

    devices: dict[str, Device] = {"auto": "auto", "yes": "cuda", "no": "cpu"}
    progress, began = Progress(every=5.0), time.monotonic()
    target = Folder(options.output)
    account = generate_archive(
        options.input,
        target,
        model,
        config,
        selection,
        limit=options.limit,
        dry_run=options.dry_run,
        workers=workers,
        device=devices[options.gpu],
        report=lambda unit, done, total: progress.tick("generate", done, total, unit),
    )
    if options.report and not options.dry_run:
        from dyefreenet.report.generated import write_generated

        write_generated(target, options.report)
    if options.json:
        print(json.dumps(account, indent=1))
        return
    _tell_generated(account, options.output, time.monotonic() - began)
    if options.report and not options.dry_run:
        print(f"pictures: {options.report}")
    if not options.dry_run and not account["done"]:
        why = [
            f"{count} {status} as {code}"
            for status in ("refused", "failed")
            for code, count in account[status].items()
        ]
        raise InputError(
            f"{options.input}: no series got virtual contrast: {', '.join(why)}; see "
            f"{target}/ledger.csv"
        )
    if account["failed"]:
        raise DyeFreeNetError(
            f"{sum(account['failed'].values())} series failed; the others are done, and the same "
            f"command tries these again; see {target}/ledger.csv"
        )


def _tell_generated(account: dict[str, Any], target: str, seconds: float) -> None:
    print(f"{account['series']} series found")
    if "to_do" in account:
        print(f"  {account['to_do']} to do, {account['selected_slices']} slices")
    else:
        again = account["already_done"]
        told = f", {again} of them earlier" if again else ""
        print(f"  {account['done']} done{told}, {account['done_slices']} slices")
        if account["flagged"]:
            print(f"  {account['flagged']} of them flagged: look at them first")
    for status in ("refused", "failed"):
        for code, count in account[status].items():
            print(f"  {count} {status}: {code}")
    for why, count in account["skipped_files"].items():
        print(f"  {count} files passed over: {why}")
    if "to_do" not in account:
        print(f"{duration(seconds)}; every series and why: {target}/ledger.csv")


def _export(options: argparse.Namespace) -> None:
    from dyefreenet.generation.package import export, export_onnx

    run, target = Folder(options.run), Folder(options.output)
    names = export(run, target, options.command or f"dyefreenet run (in {Path(options.run).name})")
    print(f"{len(names)} files in {target}")
    if options.onnx:
        print(f"refine.onnx: differs from torch by {export_onnx(target):.1g} HU at most")


def _describe(options: argparse.Namespace) -> None:
    import yaml

    from dyefreenet.stages.describe import describe

    recipe = recipes.load(options.recipe, options.set)
    print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    print(f"{'network':<30}{'slice':>8}{'parameters':>14}{'GFLOP/slice':>14}")
    for row in describe(recipe):
        print(f"{row.name:<30}{row.size:>8}{row.parameters:>14,}{row.gflop:>14.2f}")


def _bench(options: argparse.Namespace) -> None:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler talks as it starts
    import torch

    from dyefreenet.stages import STAGES
    from dyefreenet.stages.bench import bench_step

    recipe = recipes.load(options.recipe, options.set)
    if options.stage not in STAGES:
        raise InputError(f"--stage: expected one of {', '.join(STAGES)}, found {options.stage!r}")
    if options.threads:
        torch.set_num_threads(options.threads)
    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--device: expected a device of this machine, found {name!r}: {reason}"
        ) from None
    print(bench_step(recipe, options.stage, device, options.steps, options.batch))


def _status(options: argparse.Namespace) -> None:
    from dyefreenet.status import look

    found = look(Folder(options.target) if options.target else _open(options)[1])
    print(json.dumps(asdict(found), indent=1) if options.json else found.text())


def _doctor(options: argparse.Namespace) -> None:
    from dyefreenet import doctor, runtime

    store = Folder(options.store or _default_store())
    found = list(doctor.examine(store))  # before Ray starts processes of its own
    found += doctor.cluster(
        store,
        os.environ.get("RAY_ADDRESS"),
        lambda: runtime.connect(options.verbose),
        runtime.on_every_node,
    )
    failed = sum(one.level == doctor.FAIL for one in found)
    if options.json:
        told = {"ok": failed == 0, "findings": [asdict(one) for one in found]}
        print(json.dumps(told, indent=1))
    else:
        print("\n".join(one.line() for one in found))
    if failed:
        raise DyeFreeNetError(f"{failed} of {len(found)} checks failed")


def _report(options: argparse.Namespace) -> None:
    _, run = _open(options)
    _print_report(run, again=True)


if __name__ == "__main__":
    sys.exit(main())
