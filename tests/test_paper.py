"""The figures of a paper: what there is in the runs is drawn, what there is not is named, and each can be redrawn."""

import re
import shlex

import numpy as np
import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main
from PIL import Image

import fadeviz
from fadeviz import FadevizError
from fadeviz.analysis.latex import latex_table
from fadeviz.render.contact_sheet import SheetEntry, write_contact_sheet
from fadeviz.storage.snapshots import Snapshot, SnapshotStore
from onset_runs import make_onset_run
from render_runs import LAYER, STEPS, make_run


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def commands(readme):
    """The command of each section."""
    sections = re.findall(r"^## (.*?)\n.*?```console\n(.*?)\n```", readme, re.MULTILINE | re.DOTALL)
    return {name: shlex.split(command) for name, command in sections}


def add_metrics(run, steps):
    store = SnapshotStore(run.path, run.run_id)
    for step in steps:
        store.append_metrics({"step": step, "loss": 1 / (1 + step), "miou": 0.5 + step / 1000})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two seeds each of two operators whose answers are known, their figures, and what was returned."""
    folder = tmp_path_factory.mktemp("drawn")
    runs = [
        make_onset_run(folder / f"{kind} {seed}", kind, upsampler=name, seed=seed)
        for name, kind in (("fade", "inward"), ("carafe", "outward"))
        for seed in (0, 1)
    ]
    for run in runs:
        add_metrics(run, (1, 16, 256))
    return folder / "figures", runs, fadeviz.figures(runs, folder / "figures", formats=["png"], width="column")


class TestFolder:
    def test_what_the_runs_have_is_there_and_what_they_lack_is_named(self, drawn):
        folder, _, written = drawn
        names = ["features.png", "kymograph.png", "responses.png", "verdicts.csv", "verdicts.tex", "metrics.png",
                 "animation.gif", "contact_sheet.png", "README.md"]  # fmt: skip
        assert [file.name for file in written.files] == names
        assert sorted(file.name for file in folder.iterdir()) == sorted(names)
        assert [note.split(":")[0] for note in written.notes] == ["left out gradients", "left out predictions"]
        readme = (folder / "README.md").read_text()
        assert all(f"- {note.removeprefix('left out ')}\n" in readme for note in written.notes)
        for name in names[:-1]:
            assert f"({name})" in readme or name == "contact_sheet.png"

    @pytest.mark.slow
    def test_each_command_redraws_its_figure(self, drawn, tmp_path):
        folder, _, written = drawn
        listed = commands((folder / "README.md").read_text())
        assert list(listed) == ["features", "kymograph", "responses", "verdicts", "metrics", "animation", "All of them"]
        for name, (program, *words) in listed.items():
            assert program == "fadeviz"
            before = {file.name: file.read_bytes() for file in written.files}
            result = call(*(word.replace(str(folder), str(tmp_path / name)) for word in words))
            assert result.exit_code == 0, result.output
            again = {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
            assert again
            for file, data in again.items():
                if file != "README.md":
                    assert data == before[file], (name, file)

    def test_maps_are_of_one_run_of_each_operator(self, drawn):
        folder, runs, _ = drawn
        listed = commands((folder / "README.md").read_text())
        first = [str(runs[0].path), str(runs[2].path)]
        assert listed["features"][2:4] == listed["animation"][2:4] == first
        assert listed["kymograph"][2:6] == [str(run.path) for run in runs]
        assert "--width" in listed["kymograph"]

    def test_the_table_for_latex(self, drawn):
        folder, _, _ = drawn
        lines = (folder / "verdicts.tex").read_text().splitlines()
        assert lines[0] == r"\begin{tabular}{lrlrrrr}"
        assert lines[-1] == r"\end{tabular}"
        rows = [line for line in lines if line.endswith(r" \\")]
        assert len(rows) == 3
        assert all(row.count(" & ") == 6 for row in rows)
        assert rows[1].startswith("FADE & 2 & outline first & ")
        assert re.search(r"& \d+ \[\d+, (\d+|\$\\infty\$)\] &", rows[1])
        assert rows[2].startswith("CARAFE & 2 & interior first & ")

    def test_names_do_not_break_the_table(self):
        row = {"title": r"50%_a&b\~^{$}#", "seeds": [None], "verdict": None, "lead": "inf", "lead_low": 0.5}
        assert r"50\%\_a\&b\textbackslash{}\textasciitilde{}\textasciicircum{}\{\$\}\# & 1 & --" in latex_table([row])
        assert r"$\infty$ [0.50, --]" in latex_table([row])


class TestChoice:
    def test_the_steps_of_a_jump_and_the_image_that_differs(self, tmp_path):
        """Maps that change between steps 30 and 40 alone, and differ between the operators in image 1 alone."""
        rng = np.random.default_rng(0)
        early, late, other = rng.normal(size=(3, 24, 32)).astype(np.float32)
        for name in ("fade", "carafe"):
            run = make_run(tmp_path / name, upsampler=name, run_id=name)
            for step in STEPS:
                both = np.stack(
                    [early if step <= 30 else late, other if step <= 30 else late * (name == "fade") + early]
                )
                SnapshotStore(run.path, run.run_id).write(step, [Snapshot(step, LAYER, 0, "feature", both)])
        paths = [tmp_path / name for name in ("fade", "carafe")]
        written = fadeviz.figures(paths, tmp_path / "out", formats="png", count=5)
        assert written.image == 1
        assert len(written.steps) == 5
        assert {0, 30, 40, 110} <= set(written.steps)
        assert f"--steps {','.join(map(str, written.steps))}" in (tmp_path / "out" / "README.md").read_text()

    def test_the_users_own(self, tmp_path):
        run = make_run(tmp_path / "r")
        options = ("--layer", LAYER, "--image", 1, "--steps", "20,60", "--format", "svg")
        result = call("figures", run.path, *options, "-o", tmp_path / "out")
        assert result.exit_code == 0, result.output
        readme = (tmp_path / "out" / "README.md").read_text()
        assert "--image 1 --steps 20,60" in readme
        assert commands(readme)["All of them"][3:-2] == [*map(str, options)]
        assert result.stdout.count("wrote ") == len(list((tmp_path / "out").iterdir()))
        assert (tmp_path / "out" / "features.svg").exists()
        assert not list((tmp_path / "out").glob("features.png"))
        with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:  # drawn as PNG for that
            assert np.asarray(sheet.convert("L")).std() > 10


class TestOtherRuns:
    def test_without_masks_and_images(self, tmp_path):
        maps = np.random.default_rng(0).normal(size=(6, 3, 16, 16)).astype(np.float32)
        fadeviz.import_maps(maps, tmp_path / "run")
        written = fadeviz.figures(tmp_path / "run", tmp_path / "out", formats=["png"])
        assert [file.name for file in written.files] == [
            "features.png",
            "animation.gif",
            "contact_sheet.png",
            "README.md",
        ]
        (note,) = [note for note in written.notes if "kymograph" in note]
        assert note.startswith("left out kymograph, responses, verdicts: no observed image has an object")

    def test_without_features(self, tmp_path):
        run = make_run(tmp_path / "run")
        for step in run.steps:
            only = Snapshot(step, LAYER, 0, "gate", run.read(step, LAYER, "gate"))
            SnapshotStore(run.path, run.run_id).write(step, [only])
        written = fadeviz.figures(run.path, tmp_path / "out", formats=["png"])
        assert "features.png" in [file.name for file in written.files]
        assert "--kind gate" in (tmp_path / "out" / "README.md").read_text()

    def test_that_observed_other_images(self, tmp_path):
        """They cannot be compared, but their logs can."""
        runs = [make_run(tmp_path / name, upsampler=name, run_id=name, corner=corner)
                for name, corner in (("fade", 0), ("carafe", 9))]  # fmt: skip
        with pytest.raises(FadevizError, match="nothing can be drawn: .*observed different images"):
            fadeviz.figures(runs, tmp_path / "out", formats=["png"])
        for run in runs:
            add_metrics(run, (10, 20))
        written = fadeviz.figures(runs, tmp_path / "out", formats=["png"])
        assert [file.name for file in written.files] == ["metrics.png", "contact_sheet.png", "README.md"]

    @pytest.mark.slow
    def test_stored_predictions_are_compared(self, tmp_path):
        import torch

        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 2, 3, padding=1))
        images, targets = torch.rand(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.long)
        targets[:, 8:24, 8:24] = 1
        with fadeviz.Recorder(
            model, ["0"], "0,1", tmp_path / "run", batch=(images, targets), predictions=True, on_error="raise"
        ) as recorder:
            recorder.step(1)
        written = fadeviz.figures(tmp_path / "run", tmp_path / "out", formats=["png"])
        assert "predictions.png" in [file.name for file in written.files]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "gif"), "--format gif: one or more of png, pdf, svg are needed"),
        (("--image", 9), "no image 9 in"),
        (("--steps", "7"), "has no snapshot of step 7"),
        (("--count", 1), "--count 1: at least 2 steps are needed"),
        (("--width", "wide"), "--width wide: must be column, page or a length"),
        (("--layer", "nowhere"), "nothing can be drawn: .*nowhere"),
    ],
)
def test_mistakes(tmp_path, options, message):
    run = make_run(tmp_path / "r")
    result = call("figures", run.path, "-o", tmp_path / "out", *options)
    assert result.exit_code == 1
    assert re.search(message, result.stderr), result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_drawn_over(tmp_path):
    run = make_run(tmp_path / "r")
    with pytest.raises(FadevizError, match="holds a run. Choose another folder"):
        fadeviz.figures(run, run.path)
    with pytest.raises(FadevizError, match="are the same run"):
        fadeviz.figures([run.path, run.path], tmp_path / "out")


def test_the_contact_sheet_shows_every_figure(tmp_path):
    colors = [(200, 0, 0), (0, 160, 0), (0, 0, 220)]
    entries = []
    for number, color in enumerate(colors):
        Image.new("RGB", (900, 300 + 600 * number), color).save(tmp_path / f"{number}.png")
        entries.append(SheetEntry(f"figure {number}", "What it shows. " * 12, tmp_path / f"{number}.png"))
    write_contact_sheet(entries, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    boxes = []
    for color in colors:
        rows, columns = np.nonzero((np.abs(pixels.astype(int) - color) < 3).all(-1))
        assert rows.size == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # whole, nothing lies on it
        boxes.append((columns.min(), rows.min(), columns.max(), rows.max()))
    assert boxes[0][:2] < boxes[1][:2] < boxes[2][:2] or boxes[0][1] < boxes[1][1]  # in their order
    for top in {box[1] for box in boxes}:  # each row fills the page
        row = [box for box in boxes if box[1] == top]
        assert len({box[3] for box in row}) == 1
        assert (min(box[0] for box in row), max(box[2] for box in row)) == (28, pixels.shape[1] - 29)


@pytest.fixture
def two_seeds(tmp_path):
    """Two runs each of two operators."""
    return [make_run(tmp_path / f"{name}{seed}", upsampler=name, seed=seed, run_id=f"{name}{seed}")
            for name in ("fade", "carafe") for seed in (0, 1)]  # fmt: skip


def test_labels_are_one_for_each_operator_or_run(two_seeds, tmp_path):
    with pytest.raises(FadevizError, match="a, b are for runs of one operator, FADE. Give its runs the same label"):
        fadeviz.figures(two_seeds, tmp_path / "2", labels=["a", "b", "c", "c"])
    with pytest.raises(FadevizError, match="3 for 2 operators"):
        fadeviz.figures(two_seeds, tmp_path / "2", labels=["a", "b", "c"])


@pytest.mark.slow
def test_labels_name_operators_in_every_figure(two_seeds, tmp_path):
    options = ("--steps", "0,60", "--format", "svg")
    for number, labels in enumerate((["Ours", "Théirs & co"], ["Ours"] * 2 + ["Théirs & co"] * 2)):
        words = [word for label in labels for word in ("--label", label)]
        result = call("figures", *(run.path for run in two_seeds), *options, *words, "-o", tmp_path / str(number))
        assert result.exit_code == 0, result.output
        for name in ("features", "gradients", "responses"):
            text = (tmp_path / str(number) / f"{name}.svg").read_text()
            assert "Ours" in text, name
            assert "FADE" not in text.partition("</metadata>")[2], name
        assert r"Théirs \& co" in (tmp_path / str(number) / "verdicts.tex").read_text()
        listed = commands((tmp_path / str(number) / "README.md").read_text())
        assert all(command.count("--label") == 2 for name, command in listed.items() if name != "verdicts")
