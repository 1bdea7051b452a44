"""Each command is one public function: the same words for the same options, in its parameters and in its messages."""

import dataclasses
import inspect

import click
import pytest
from click.testing import CliRunner
from fadeviz_cli.groups import Commands
from fadeviz_cli.main import main
from fadeviz_cli.messages import in_options

import fadeviz
from fadeviz import FadevizError, RunConfig
from fadeviz.render.selection import FigureContent, MapSelection
from fadeviz.render.style import FigureStyle


def commands(group=main, path=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands())
FUNCTIONS = {
    "analyze": [fadeviz.analyze],
    "animate": [fadeviz.animate, MapSelection, FigureContent, FigureStyle],
    "bench": [fadeviz.run_bench],
    "check": [fadeviz.check_run],
    "compare": [fadeviz.compare, FigureStyle],
    "data check": [fadeviz.check_data],
    "data get": [fadeviz.get_data],
    "demo": [fadeviz.run_demo],
    "export": [fadeviz.export_run],
    "figures": [fadeviz.figures, FigureStyle],
    "grid": [fadeviz.grid, MapSelection, FigureContent, FigureStyle],
    "import": [fadeviz.import_maps],
    "info": [fadeviz.Run.summary],
    "layers": [fadeviz.list_layers],
    "ls": [fadeviz.list_runs],
    "plot": [fadeviz.plot, FigureStyle],
    "predict": [fadeviz.predict],
    "record": [fadeviz.train, RunConfig],
    "record-checkpoints": [RunConfig, fadeviz.record_network_checkpoints],
    "report": [fadeviz.write_report],
    "sweep": [fadeviz.run_sweep, fadeviz.plan_sweep, RunConfig],
    "upsamplers": [fadeviz.list_upsamplers],
    "view": [fadeviz.view],
}
"""The function of each command, with the class of the settings that it takes."""

OTHERWISE = {
    ("analyze", "csv_file"): "Analysis.to_csv()",
    ("analyze", "json_file"): "Analysis.to_dict()",
    ("import", "animate"): "fadeviz.animate(run, file)",
    ("info", "run"): "the run itself",
    ("ls", "as_json"): "RunList.to_dicts()",
    ("record", "requeue"): "fadeviz.sweep.has_begun, for train(resume=...)",
    ("sweep", "dry_run"): "fadeviz.sweep.unfinished_trials",
    ("sweep", "scheduler"): "executor=DaskCluster(address)",
    ("sweep", "slurm_options"): "executor=SlurmArray(options)",
    ("upsamplers", "as_json"): "UpsamplerTable.to_dicts()",
    ("view", "no_browser"): "webbrowser.open(viewer.url)",
}
"""Parameters of a command that are no parameters of its function, and what stands for them in Python."""

SPELLED_OTHERWISE = {
    ("analyze", "csv_file"): "--csv",
    ("analyze", "json_file"): "--json",
    ("animate", "duration_ms"): "--duration",  # the unit is in its help
    ("export", "target"): "--to",
    ("ls", "as_json"): "--json",
    ("sweep", "slurm_options"): "--slurm",
    ("upsamplers", "as_json"): "--json",
}
PLURAL = {("bench", "precisions"), ("figures", "formats"), ("upsamplers", "networks")}
"""Options whose one value is a list: --precision fp32,bf16."""

UNLIKE = {"crop", "executor", "percentiles", "what"}
"""Parameters whose value is text on the command line, and something else in Python."""

HELP_DIFFERS = {
    "--call": "the call to show, or the one to keep",
    "--classes": "of a folder's masks, of those of imported maps, or of the network",
    "--key": "of maps, or of weights",
    "--image": "the first, or one that is chosen",
    "--images": "numbers of images, or how many",
    "--json": "a file, or a flag",
    "--kind": "one kind of map, or those to keep",
    "--layer": "one layer, or those to keep",
    "--network": "the network to train, or whose costs are listed",
    "--out": "the folder of a run, of a sweep, or of the demo",
    "--output": "each says which kinds of file",
    "--overwrite": "a run, a demo, an export",
    "--seed": "of the training to come, or of one that was",
    "--size": "of the training images, or of those to predict",
    "--steps": "to train, or to show",
    "--title": "of a page, or of a figure",
    "--width": "of a figure, or of a network",
    "--upsamplers": "to train, or to measure",
    "--colormap": "an export draws only for some targets",
    "--normalize": "an export draws only for some targets",
    "--data": "to train on, or to check",
    "--data-dir": "to train on, or where it is now",
    "--precision": "of a training, or several to measure",
}
"""Options that are spelled alike and cannot have one sentence."""


def parameters(name):
    found = {}
    for function in FUNCTIONS[name]:
        found |= inspect.signature(function).parameters
    return found


def test_every_command_has_its_function():
    assert set(FUNCTIONS) == set(COMMANDS)
    for name, functions in FUNCTIONS.items():
        for function in functions:
            public = function.__qualname__.partition(".")[0]
            assert public in fadeviz.__all__ or function in (MapSelection, FigureContent, FigureStyle), name


@pytest.mark.parametrize("name", COMMANDS)
def test_parameters_are_the_functions(name):
    names = {parameter.name for parameter in COMMANDS[name].params}
    otherwise = {parameter for command, parameter in OTHERWISE if command == name}
    assert otherwise <= names
    assert not otherwise & set(parameters(name)), "no exception any more"
    assert names - otherwise <= set(parameters(name))


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_spelled_as_the_parameters(name):
    for option in COMMANDS[name].params:
        if not isinstance(option, click.Option):
            continue
        long = next(word for word in option.opts if word.startswith("--"))
        if (name, option.name) in SPELLED_OTHERWISE:
            assert long == SPELLED_OTHERWISE[name, option.name]
            continue
        word = long.removeprefix("--").replace("-", "_")
        plural = option.multiple or (name, option.name) in PLURAL
        assert option.name in ((word, f"{word}s") if plural else (word,))


@pytest.mark.parametrize("name", COMMANDS)
def test_defaults_are_the_functions(name):
    known = parameters(name)
    with click.Context(COMMANDS[name]) as context:
        for parameter in COMMANDS[name].params:
            ours = known.get(parameter.name)
            if ours is None or ours.default is inspect.Parameter.empty or parameter.name in UNLIKE:
                continue
            default = parameter.get_default(context)
            if repr(default).startswith("Sentinel"):  # click's for none
                default = None
            if isinstance(default, str) and isinstance(ours.default, tuple):
                default = tuple(default.split(",")) if default else ()
            assert (default or None) == (ours.default or None), parameter.name


def test_the_same_option_has_the_same_sentence():
    sentences = {}
    for name, command in COMMANDS.items():
        for option in command.params:
            if isinstance(option, click.Option):
                sentences.setdefault(next(word for word in option.opts if word.startswith("--")), {}).setdefault(
                    option.help, []
                ).append(name)
    several = {option for option, by_help in sentences.items() if len(by_help) > 1}
    assert several == set(HELP_DIFFERS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_shows_whole_sentences(name):
    assert not COMMANDS[name].get_short_help_str(60).endswith("...")


def test_the_maps_to_draw_are_the_selections_fields():
    fields = {field.name for part in (MapSelection, FigureContent) for field in dataclasses.fields(part)}
    for name in ("grid", "animate"):
        assert fields <= {parameter.name for parameter in COMMANDS[name].params}


class TestMessages:
    @pytest.mark.parametrize(
        ("command", "message", "expected"),
        [
            ("record", "use overwrite=True, or resume=True.", "use --overwrite, or --resume."),
            ("grid", "choose one: layer=...", "choose one: --layer"),
            ("grid", "use kind='channels', or omit channel=...", "use --kind channels, or omit --channel"),
            ("predict", "use size=256 or less; size is 300", "use --size 256 or less; size is 300"),
            ("predict", "in trimaps=DIR, or beside it", "in --trimaps DIR, or beside it"),
            ("record", "channels_last=False, tf32=True", "--contiguous, --tf32"),
            ("record", "data_dir=... is needed", "--data-dir is needed"),
            ("record", "with data='weizmann'", "with --data weizmann"),
            ("record", "lr=0.01. Or lr=1e-3.", "--lr 0.01. Or --lr 1e-3."),
            ("export", "kinds=['gate', 'feature'] (layers=...)", "--kind gate --kind feature (--layer)"),
            ("compare", "name some: test=[0, 1] or files=[FILE]", "name some: --test 0,1 or --file FILE"),
            ("grid", "percentiles=(1, 99)", "--percentiles 1,99"),
            ("grid", "choose layer={'a': 'up1', 'b': 'up 2'}", "choose --layer a=up1 --layer 'b=up 2'"),
            ("grid", "layer='c=up1': nothing", "--layer c=up1: nothing"),
            ("report", "choose with layer=... or kind='gate'", "choose with --layer or --kind gate"),
            ("animate", "duration_ms=120", "--duration 120"),
            ("bench", "device='cuda'", "--device cuda"),
            ("record", "weights='my file.pth'", "--weights 'my file.pth'"),
        ],
    )
    def test_arguments_become_options(self, command, message, expected):
        assert in_options(message, COMMANDS[command]) == expected

    @pytest.mark.parametrize(
        "message",
        [
            "",
            "no layer 'kind=x' in SegNet",
            "see run.grid(image=..., kind=...)",
            'Record it: Recorder(..., kind="gate", layer=(1, 2))',
            "fade:kind=m2o,image=2",
            "x=1, layers=3",
            "outputs/layer=3/run.json",
            "kind == 'gate' and kind = 3",
            "layer=None takes the first",
            "--kind=gate",
            "`kind=1`",
        ],
    )
    def test_all_else_stays(self, message):
        assert in_options(message, COMMANDS["grid"]) == message

    def test_a_flag_that_cannot_be_turned_off_stays(self):
        assert in_options("overwrite=False", COMMANDS["record"]) == "overwrite=False"

    def test_of_a_command_in_a_group(self):
        """An error is in the words of the command that raised it, however deep."""

        @click.group(cls=Commands)
        def outer():
            pass

        @outer.group(cls=Commands)
        def inner():
            pass

        @inner.command()
        @click.option("--many", "several")
        @click.pass_context
        def draw(ctx, several):
            raise FadevizError("use several=3")

        result = CliRunner().invoke(outer, ["inner", "draw"])
        assert (result.exit_code, result.stderr) == (1, "Error: use --many 3\n")
