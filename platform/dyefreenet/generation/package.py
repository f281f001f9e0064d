"""A trained cascade as a small folder of its own: what generation needs, and a model card."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from dyefreenet import __version__, hu
from dyefreenet.cascade import WEIGHTS, Cascade
from dyefreenet.config import PHASES, Recipe
from dyefreenet.errors import InputError
from dyefreenet.store import Folder

MOST_HU = 0.1  # that ONNX and torch may differ: rounding in another order
SCORES = {("psnr", "image"), ("mae", "vessel"), ("mae", "computed_vessel")}  # on the card


def export(run: Folder, target: Folder, command: str) -> list[str]:
    """Copy recipe, manifests and generators of primary and refine; the folder loads like a run.

    Args:
        command: What made the run, for the model card.

    Returns:
        Names of the files written.

    Raises:
        InputError: The run has no finished refine stage.
        StoreError: A file was changed since it was saved.
    """
    cascade = Cascade.load(run)  # checks every digest, and that the weights fit the recipe
    if "refine" not in cascade.methods:
        raise InputError(f"{run}: expected a finished refine stage, found {list(cascade.methods)}")
    contents = {"recipe.json": run.read("recipe.json")}
    for step in ("primary", "refine"):
        contents[f"{step}/{WEIGHTS}"] = (run / step).read_checked(WEIGHTS)
    for name, content in contents.items():
        target.write(name, content)
    for step in ("primary", "refine"):
        manifest = (run / step).manifest()
        assert manifest is not None  # Cascade.load has read it
        kept = {"files": {WEIGHTS: manifest["files"][WEIGHTS]}}
        target.write_json(f"{step}/manifest.json", manifest | kept)
    target.write("MODEL_CARD.md", model_card(cascade.recipe, run, command).encode())
    return _write_sums(target)


def export_onnx(package: Folder, method: str = "refine") -> float:
    """Write the networks of a package as ``METHOD.onnx``, and check what it computes.

    The graph takes plain triplets in HU at the pixels of the recipe, [slices, 3, size, size] in
    float32, and gives what contrast agent would add, HU [slices, 1 or 3, size, size]: three where
    overlapping predictions are to be averaged. Resampling, padding and all else that
    ``Cascade.predict`` does around it is the caller's.

    Returns:
        The largest difference from torch, HU, on made-up slices.

    Raises:
        InputError: The libraries are not there, or the graph computes something else.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch asks for it
    except ImportError as error:
        raise InputError(
            f"--onnx: expected {error.name}; pip install 'dyefreenet[onnx]'"
        ) from error
    cascade = Cascade.load(package, precision="exact")  # a graph for any machine
    chosen, grid = cascade.method(method), cascade.recipe.grid
    wanted = torch.tensor([PHASES.index(cascade.recipe.ingest.phase)])

    class Graph(nn.Module):
        def forward(self, plain_hu: Tensor) -> Tensor:
            plain = hu.to_network(plain_hu, grid.window)
            virtual = chosen.predict(plain, wanted)
            if virtual.shape[1] == 1 or not grid.average_overlap:
                middle = virtual.shape[1] // 2
                virtual, plain = virtual[:, middle : middle + 1], plain[:, 1:2]
            return hu.change(virtual, plain, grid.window)

    draw = torch.Generator().manual_seed(0)
    made_up = 60.0 * torch.randn(2, 3, grid.size, grid.size, generator=draw)
    graph = Graph().eval()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch of its own exporter
        path = str(Path(folder) / "model.onnx")
        program = torch.onnx.export(
            graph,
            (made_up,),
            dynamo=True,
            verbose=False,
            input_names=["plain_hu"],
            output_names=["change_hu"],
            dynamic_shapes=({0: torch.export.Dim("slices")},),
        )
        assert program is not None  # with dynamo it never is
        program.save(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        three = made_up[[0, 1, 0]]  # another number than the graph was made with
        (found,) = session.run(None, {"plain_hu": three.numpy()})
        apart = float((torch.from_numpy(found) - graph(three)).abs().max())
        if not apart < MOST_HU:
            raise InputError(
                f"{package}: expected the same from ONNX as from torch, found {apart:.2g} HU apart"
            )
        package.write(f"{method}.onnx", Path(path).read_bytes())
    _write_sums(package)
    return apart


def _write_sums(target: Folder) -> list[str]:
    """SHA256SUMS of all files; their names, its own last."""
    names = [name for name in target.names() if name != "SHA256SUMS"]
    sums = [f"{hashlib.sha256(target.read(name)).hexdigest()}  {name}\n" for name in names]
    target.write("SHA256SUMS", "".join(sums).encode())
    return [*names, "SHA256SUMS"]


def model_card(recipe: Recipe, run: Folder, command: str) -> str:
    """What the weights are, what they may be used for, and what they scored, in Markdown."""
    made_up = recipe.phantom is not None and not recipe.ingest.paired
    if made_up and recipe.phantom is not None:
        data = (
            f"Pairs: {recipe.phantom.patients} made-up patients (the phantom) and no real one. "
            "No figure below says anything about a patient."
        )
    else:
        data = "Pairs: CT of the archives that the recipe names."
    start = "none"
    if any("ssl" in recipe.needs(stage) for stage in ("primary", "refine")):
        plain = [*recipe.ingest.plain, *(["the phantom"] if recipe.phantom else [])]
        start = f"plain series of {' and '.join(plain) or 'the pairs'}"
    pixels = (
        f"{recipe.grid.pixel_mm} mm pixels" if recipe.grid.pixel_mm else "the pixels as scanned"
    )
    lines = [
        "# Model card: DyeFreeNet cascade",
        "",
        "**Research only. Not for diagnosis or treatment.** The network guesses where iodine would",
        "have gone. It can light up what would not have enhanced, and miss what would.",
        "",
        f"- Version: dyefreenet {__version__}; phase: {recipe.ingest.phase}",
        f"- Made by: `{command}`",
        f"- {data}",
        f"- Self-supervised start: {start}",
        f"- Input: plain CT in HU, axial, any matrix; the networks see {pixels} and HU "
        f"{recipe.grid.window[0]:.0f} to {recipe.grid.window[1]:.0f}",
        "- Output: the same slices with the predicted change added; air, padding and what lies "
        "outside the window stay as they were",
        "- Files: safetensors and JSON; their SHA-256 are in SHA256SUMS and checked when loaded",
    ]
    if run.exists("evaluate/summary.json"):
        kind = "made-up" if made_up else "test"
        lines += ["", f"Scores on {kind} patients held out (mean, 95 % interval, patients):", ""]
        for row in (run / "evaluate").read_json("summary.json"):
            shown = (row["metric"], row["region"]) in SCORES
            if row["method"] in ("identity", "refine") and shown:
                span = "" if row["low"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]"
                lines.append(
                    f"- {row['method']}, {row['metric']} of {row['region']}, {row['protocol']}: "
                    f"{row['mean']:.2f}{span}, n={row['n']}"
                )
    return "\n".join(lines) + "\n"
